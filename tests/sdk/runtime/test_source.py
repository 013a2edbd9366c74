"""The source role: frames, credit, memory, replay, trouble."""

import pytest
from tests.sdk.runtime.memory_connectors import ListSource
from tests.sdk.runtime.source_bench import Bench, named, plan_of, started, words_of

import bettong as bt
from bettong.runtime import limits
from bettong_proto.plugin.v1 import (
    application_pb2,
    error_pb2,
    source_pb2,
)


def test_attach_then_streams_are_the_first_messages() -> None:
    bench = Bench(plan_of(ListSource({"a": [], "b": []}, is_complete=False)))

    bench.steps()

    attach, found = bench.sent
    assert (attach.attach.source, attach.attach.session_id) == ("lines", b"s")
    assert attach.attach.kind == application_pb2.STREAM_KIND_SHARED
    assert list(found.streams_found.streams) == ["a", "b"]
    assert not found.streams_found.complete


def test_later_streams_are_named_when_they_appear() -> None:
    source = ListSource({"a": []}, is_complete=False)
    bench = Bench(plan_of(source))
    bench.steps()
    bench.take()

    source.contents["b"] = []
    bench.steps()
    too_early = bench.take()
    bench.now_ms += limits.STREAMS_INTERVAL_MS
    bench.steps()

    assert too_early == []
    assert list(bench.sent[0].streams_found.streams) == ["b"]


def test_no_stream_is_read_before_the_engine_names_it() -> None:
    source = ListSource({"a": ["x"]})
    bench = Bench(plan_of(source))

    bench.steps()
    bench.reset()
    bench.steps()

    assert source.opened == []


def test_reads_become_numbered_frames_with_positions() -> None:
    bench = started(ListSource({"a": ["x y", "z", "", "w"]}, records_a_read=2))

    bench.steps()

    kinds = [m.WhichOneof("message") for m in bench.sent]
    assert kinds == [
        "attach",
        "reset_done",
        "streams_found",
        "stream_opened",
        "frame",
        "frame",
    ]
    first, last = bench.frames()
    assert (first.number, first.position, words_of(first)) == (
        1,
        b"2",
        ["x", "y", "z"],
    )
    assert (last.number, last.position, words_of(last)) == (2, b"4", ["w"])
    assert (first.end, last.end, first.records_read) == (False, True, 2)
    assert first.idle
    assert not first.HasField("watermark_us")


def test_read_without_credit_waits_and_the_next_is_not_begun() -> None:
    source = ListSource({"a": ["x", "y", "z"]}, records_a_read=1)
    bench = Bench(plan_of(source))
    bench.reset(named("a"), credit=(1, 1_000_000))

    bench.steps()
    first = bench.words()
    bench.steps()
    waiting = bench.words()
    bench.credit(2)
    bench.steps()

    assert (first, waiting, bench.words()) == ([["x"]], [], [["y"]])


def test_large_read_goes_on_with_more_and_its_last_part_needs_no_credit() -> None:
    line = " ".join(f"w{i}" for i in range(10))
    bench = Bench(plan_of(ListSource({"a": [line]})), batch_records=2)
    bench.reset(named("a"), credit=(4, 1_000_000))

    bench.steps()

    frames = bench.frames()
    assert [len(frame.batches) for frame in frames] == [2, 3]
    assert [frame.more for frame in frames] == [True, False]
    assert [frame.position for frame in frames] == [b"", b"1"]
    assert [frame.number for frame in frames] == [1, 2]


def test_frames_are_at_most_a_mebibyte_unless_a_batch_is_larger() -> None:
    line = " ".join("w" * 1000 for _ in range(3000))
    bench = started(ListSource({"a": [line]}))

    bench.steps()

    frames = bench.frames()
    assert len(frames) >= 3
    assert max(frame.ByteSize() for frame in frames) <= limits.FRAME_BYTES_MAX + 1000
    assert sum(len(words_of(frame)) for frame in frames) == 3000


def test_records_are_grouped_by_target() -> None:
    words = [f"w{i}" for i in range(40)]
    bench = Bench(plan_of(ListSource({"a": [" ".join(words)]})))
    bench.reset(named("a"), targets=(5, 6, 5, 6))

    bench.steps()

    (frame,) = bench.frames()
    assert [batch.target for batch in frame.batches] == [5, 6]
    assert sorted(words_of(frame)) == sorted(words)
    assert words_of(frame) != words


def test_held_source_begins_no_read_and_sends_no_first_frame() -> None:
    source = ListSource({"a": ["x", "y", "z"]}, records_a_read=1)
    bench = Bench(plan_of(source))
    bench.reset(named("a"), credit=(1, 1_000_000))
    bench.steps()
    bench.take()

    bench.tell(hold=source_pb2.Hold(held=True, reason="the log is full"))
    bench.credit(100)
    bench.steps()
    held = bench.words()
    bench.tell(hold=source_pb2.Hold(held=False))
    bench.steps()

    assert (held, bench.words()) == ([], [["y"], ["z"]])


def test_no_read_begins_at_the_limit_of_uncommitted_bytes() -> None:
    source = ListSource({"a": ["x" * 100, "y", "z"]}, records_a_read=1)
    bench = started(source, uncommitted_bytes_max=100)

    bench.steps()
    first = bench.words()
    assert not bench.machine.is_waiting_for_records()
    bench.commit(named("a", "1"))
    bench.steps()

    assert first == [["x" * 100]]
    assert bench.words() == [["y"], ["z"]]


def test_commit_tells_the_upstream_and_frees_memory() -> None:
    source = ListSource({"a": ["x", "y", "z"]}, records_a_read=1)
    bench = started(source)
    bench.steps()
    before = bench.machine.uncommitted_bytes

    bench.commit(named("a", "2"))
    bench.commit(named("a", "2"))
    middle = bench.machine.uncommitted_bytes
    bench.commit(named("a", "3", ended=True))

    assert source.committed == {"a": [2, 3]}
    assert before > middle > bench.machine.uncommitted_bytes == 0
    assert source.closed == ["a"]


def test_reset_replays_frames_after_the_named_position_by_the_new_routes() -> None:
    words = " ".join(f"w{i}" for i in range(9))
    source = ListSource({"a": ["x", words, "z"]}, records_a_read=1)
    bench = started(source)
    bench.steps()
    before = bench.frames()

    bench.reset(named("a", "1"), targets=(5, 6, 5, 6))
    bench.steps()

    opened = [m.stream_opened for m in bench.sent if m.HasField("stream_opened")]
    frames = bench.frames()
    assert [o.reopened for o in opened] == [False]
    assert [frame.number for frame in frames] == [1, 2]
    assert [frame.position for frame in frames] == [f.position for f in before[1:]]
    assert sorted(words_of(frames[0])) == sorted(words_of(before[1]))
    assert {batch.target for batch in frames[0].batches} == {5, 6}
    assert frames[1].end
    assert len(source.opened) == 1
    assert source.committed == {"a": [1]}


def test_partly_sent_read_is_replayed_whole() -> None:
    bench = Bench(plan_of(ListSource({"a": ["a b c d e f"]})), batch_records=1)
    bench.reset(named("a"), credit=(1, 1_000_000))
    bench.sent += bench.machine.step(0)  # streams
    bench.sent += bench.machine.step(0)  # open
    bench.sent += bench.machine.step(0)  # first part

    bench.reset(named("a"))
    bench.take()
    bench.steps()

    assert bench.words() == [["a", "b", "c", "d", "e", "f"]]


def test_replayed_bytes_are_those_of_the_first_time() -> None:
    bench = started(ListSource({"a": ["x y z", "u v"]}, records_a_read=1))
    bench.steps()
    before = [b.records for f in bench.frames() for b in f.batches]

    bench.reset(named("a"))
    bench.steps()

    assert [b.records for f in bench.frames() for b in f.batches] == before


def test_stream_at_an_unknown_position_is_opened_there() -> None:
    source = ListSource({"a": ["u", "v", "w", "x"]}, records_a_read=1)
    bench = started(source)
    bench.sent += bench.machine.step(0)
    bench.steps()
    bench.commit(named("a", "3"))
    bench.take()

    bench.reset(named("a", "1"))
    bench.steps()

    opened = [m.stream_opened for m in bench.sent if m.HasField("stream_opened")]
    assert [o.reopened for o in opened] == [True]
    assert bench.words() == [["v"], ["w"], ["x"]]
    assert source.opened == [("a", None), ("a", b"1")]


def test_local_stream_at_an_unknown_position_is_an_error() -> None:
    source = ListSource({"a": ["x", "y"]}, kind=bt.StreamKind.LOCAL, records_a_read=1)
    bench = started(source)
    bench.steps()
    bench.commit(named("a", "2"))
    bench.take()

    bench.reset(named("a", "1"))
    bench.steps()

    (error,) = bench.errors()
    assert error.code == error_pb2.ERROR_CODE_SOURCE_BAD_POSITION
    assert (error.error_class, error.stream) == (error_pb2.ERROR_CLASS_FATAL, "a")


def test_stream_that_is_not_named_is_closed_and_ended_ones_stay_closed() -> None:
    source = ListSource({"a": ["x"], "b": ["y"], "c": ["z"]})
    bench = started(source)
    bench.steps()
    bench.take()

    bench.reset(named("a", "1", ended=True), named("c", "1", ended=True))
    bench.steps()

    assert sorted(source.closed) == ["a", "b", "c"]
    assert bench.frames() == []
    assert source.committed == {"a": [1], "c": [1]}


def test_message_of_an_older_generation_is_ignored_and_a_newer_refused() -> None:
    bench = started(ListSource({"a": ["x"]}))
    bench.reset(named("a"))

    bench.tell(close_stream=source_pb2.CloseStream(generation=1, stream="a"))
    bench.steps()

    assert bench.words() == [["x"]]
    with pytest.raises(bt.ProtocolError, match="generation 9"):
        bench.tell(close_stream=source_pb2.CloseStream(generation=9, stream="a"))


def test_streams_take_turns() -> None:
    lines = ["x"] * 6
    bench = started(ListSource({"a": lines, "b": lines}, records_a_read=1))

    bench.steps()

    order = [frame.stream for frame in bench.frames()]
    assert order in (["a", "b"] * 6, ["b", "a"] * 6)


def test_frames_survive_a_new_session_of_the_same_process() -> None:
    source = ListSource({"a": ["x", "y"]}, records_a_read=1)
    bench = started(source)
    bench.steps()
    bench.take()

    bench.sent.append(bench.machine.attach(b"second"))
    bench.steps()
    attach, found = bench.take()
    bench.reset(named("a", "1"))
    bench.steps()

    assert attach.attach.session_id == b"second"
    assert list(found.streams_found.streams) == ["a"]
    assert found.streams_found.complete
    assert bench.words() == [["y"]]
    assert len(source.opened) == 1


def test_small_reads_wait_for_more_while_others_are_in_flight() -> None:
    source = ListSource({"a": ["x", "y"]}, records_a_read=1)
    bench = started(source, linger_ms=2)

    bench.steps()

    assert len(bench.frames()) == 1
    assert bench.machine.is_lingering(bench.now_ms)

    bench.now_ms += 2
    bench.steps()

    assert len(bench.frames()) == 1


def test_nothing_lingers_once_all_is_committed() -> None:
    source = ListSource({"a": ["x", "y"]}, records_a_read=1)
    bench = started(source, linger_ms=2)

    bench.steps()

    bench.commit(named("a", "1"))

    assert not bench.machine.is_lingering(bench.now_ms)
