"""The source role: frames, credit, memory, replay, trouble."""

from collections.abc import Callable, Sequence
from typing import Any

import pytest
from tests.sdk.runtime.memory_connectors import ListSink, ListSource

import bettong as bt
from bettong.plan import Plan
from bettong.program.columns import SizeLimits
from bettong.runtime import limits
from bettong.runtime.source import SourceMachine
from bettong_proto.plugin.v1 import (
    application_pb2,
    batch_pb2,
    error_pb2,
    source_pb2,
)

PARTITIONS = 4
ENOUGH = (1_000_000, 1_000_000_000)


def plan_of(
    source: ListSource,
    step: Callable[[str], Any] = str.split,
    on_error: Any = "fail",
    **how: Any,
) -> Plan:
    app = bt.App("app", partitions=PARTITIONS, on_error=on_error)
    (
        app.source("lines", source, **how)
        .flat_map(step, name="split")
        .key_by(lambda word: word, key=str, name="by_word")
        .stateful(lambda key, word, state: word, state=list, name="count")
        .sink("out", ListSink(codec=bt.msgpack))
    )
    return app.plan()


def named(stream: str, position: str | None = None, **more: Any) -> Any:
    found = source_pb2.StreamPosition(stream=stream, **more)
    if position is not None:
        found.position = position.encode()
    return found


class Bench:
    """A machine and what it sent. Time stands still unless a test moves it."""

    def __init__(self, plan: Plan, **how: Any) -> None:
        self.machine = SourceMachine(
            plan, plan.sources[0], sizes=how.pop("sizes", SizeLimits()), **how
        )
        self.now_ms = 1000
        self.generation = 0
        self.sent: list[source_pb2.SourceRequest] = [self.machine.attach(b"s")]

    def tell(self, **message: Any) -> None:
        response = source_pb2.SourceResponse(**message)
        self.sent += self.machine.on_message(response, self.now_ms)

    def reset(
        self,
        *streams: Any,
        credit: tuple[int, int] = ENOUGH,
        targets: Sequence[int] = (0,) * PARTITIONS,
    ) -> None:
        self.generation += 1
        self.tell(
            reset=source_pb2.SourceReset(
                generation=self.generation,
                routes=[batch_pb2.Route(output=0, targets=targets)],
                streams=streams,
                credit_records=credit[0],
                credit_bytes=credit[1],
            )
        )

    def steps(self, count: int = 100) -> None:
        for _ in range(count):
            sent = self.machine.step(self.now_ms)
            if not sent:
                return
            self.sent += sent

    def credit(self, records: int, target: int = 0) -> None:
        self.tell(
            credits=[
                batch_pb2.Credit(
                    output=0, target=target, records=records, bytes=1_000_000_000
                )
            ]
        )

    def commit(self, *streams: Any) -> None:
        self.tell(committed=source_pb2.Committed(epoch=1, streams=streams))

    def take(self) -> list[source_pb2.SourceRequest]:
        sent, self.sent = self.sent, []
        return sent

    def frames(self) -> list[source_pb2.Frame]:
        return [m.frame for m in self.take() if m.HasField("frame")]

    def words(self) -> list[list[str]]:
        """Return the words of each frame that was sent, and forget them."""
        return [words_of(frame) for frame in self.frames()]

    def errors(self) -> list[error_pb2.Error]:
        return [m.error for m in self.take() if m.HasField("error")]


def words_of(frame: source_pb2.Frame) -> list[str]:
    found: list[str] = []
    for batch in frame.batches:
        records = batch_pb2.Records.FromString(batch.records)
        assert len(records.keys) == batch.count
        found += [key.decode() for key in records.keys]
    return found


def started(source: ListSource, **how: Any) -> Bench:
    bench = Bench(plan_of(source), **how)
    bench.reset(*[named(stream) for stream in source.contents])
    return bench


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


# Trouble ---------------------------------------------------------------------


def test_retryable_trouble_closes_the_reader_and_opens_it_again_later() -> None:
    source = ListSource({"a": ["x", "y"]}, records_a_read=1)
    bench = started(source)
    bench.sent += bench.machine.step(bench.now_ms)
    bench.sent += bench.machine.step(bench.now_ms)
    bench.sent += bench.machine.step(bench.now_ms)
    source.fault = bt.SourceError("connection lost")

    bench.steps()
    (error,) = bench.errors()
    bench.steps()
    early = bench.take()
    bench.now_ms += limits.RETRY_DELAY_MS_MIN
    bench.steps()

    assert error.error_class == error_pb2.ERROR_CLASS_RETRYABLE
    assert "connection lost" in error.message
    assert early == []
    assert source.opened == [("a", None), ("a", b"1")]
    assert bench.words() == [["y"]]


def test_trouble_that_no_retry_helps_stops_the_stream_until_it_is_named() -> None:
    source = ListSource({"a": ["x", "y"]}, records_a_read=1)
    bench = started(source)
    source.fault = bt.SourceError(
        "the position is gone", is_retryable=False, code=bt.ErrorCode.SOURCE_TRUNCATED
    )

    bench.steps()
    (error,) = bench.errors()
    bench.now_ms += 100_000
    bench.steps()
    stopped = bench.words()
    bench.reset(named("a"))
    bench.steps()

    assert error.code == error_pb2.ERROR_CODE_SOURCE_TRUNCATED
    assert error.error_class == error_pb2.ERROR_CLASS_FATAL
    assert (stopped, bench.words()) == ([], [["x"], ["y"]])


def test_bug_of_a_connector_stops_its_stream_with_a_stack() -> None:
    source = ListSource({"a": ["x"]})
    bench = started(source)
    source.fault = KeyError("oops")

    bench.steps()

    (error,) = bench.errors()
    assert error.error_class == error_pb2.ERROR_CLASS_FATAL
    assert "KeyError" in error.stack


def test_bad_record_stops_the_stream_before_its_read() -> None:
    def parse(line: str) -> list[str]:
        if line == "bad":
            raise ValueError("no")
        return [line]

    source = ListSource({"a": ["x", "bad", "y"]}, records_a_read=1)
    bench = Bench(plan_of(source, parse))
    bench.reset(named("a"))

    bench.steps()
    frames = [m.frame for m in bench.sent if m.HasField("frame")]
    (error,) = bench.errors()
    bench.steps()

    assert [words_of(frame) for frame in frames] == [["x"]]
    assert error.error_class == error_pb2.ERROR_CLASS_RECORD
    assert (error.step, error.stream) == ("split", "a")
    assert bench.take() == []


def test_skipped_records_are_counted_in_their_frame() -> None:
    def parse(line: str) -> list[str]:
        return [str(int(line))]

    source = ListSource({"a": ["1", "x", "2"]})
    bench = Bench(plan_of(source, parse, on_error="skip"))
    bench.reset(named("a"))

    bench.steps()

    (frame,) = bench.frames()
    assert words_of(frame) == ["1", "2"]
    assert (frame.records_read, frame.records_skipped) == (3, 1)


@pytest.mark.parametrize(
    ("position", "complaint"),
    [(b"", "an empty position"), (b"p" * 5000, "5000 bytes")],
)
def test_position_that_breaks_the_contract_stops_the_stream(
    position: bytes, complaint: str
) -> None:
    class Odd(ListSource):
        def open(self, stream: str, at: bytes | None) -> Any:
            reader = super().open(stream, at)
            reader.read = lambda: bt.Read(["x"], position)  # type: ignore[method-assign]
            return reader

    bench = started(Odd({"a": []}))

    bench.steps()

    (error,) = bench.errors()
    assert complaint in error.message


def test_oversize_record_is_an_error_of_its_own_class() -> None:
    bench = Bench(
        plan_of(ListSource({"a": ["x" * 200]})), sizes=SizeLimits(record=150, key=100)
    )
    bench.reset(named("a"))

    bench.steps()

    (error,) = bench.errors()
    assert error.error_class == error_pb2.ERROR_CLASS_TOO_LARGE


# Event time and drain --------------------------------------------------------


def timed(source: ListSource) -> Bench:
    plan = plan_of(
        source,
        lambda line: [line],
        event_time=int,
        out_of_order_us=10,
        idle_after_ms=500,
    )
    bench = Bench(plan)
    bench.reset(*[named(stream) for stream in source.contents])
    return bench


def test_watermark_follows_the_latest_record_and_never_falls() -> None:
    bench = timed(ListSource({"a": ["100", "50", "120"]}, records_a_read=1))

    bench.steps()

    frames = bench.frames()
    assert [frame.watermark_us for frame in frames] == [90, 90, 110]
    assert not any(frame.idle for frame in frames)
    times = [
        batch_pb2.Records.FromString(b.records).event_time_us
        for f in frames
        for b in f.batches
    ]
    assert [list(t) for t in times] == [[100], [50], [120]]


def test_silent_stream_says_once_that_it_is_idle() -> None:
    source = ListSource({"a": ["100"]}, is_complete=False)
    bench = timed(source)
    bench.steps()
    bench.take()

    bench.now_ms += 499
    bench.steps()
    early = bench.frames()
    bench.now_ms += 1
    bench.steps()
    bench.steps()
    marks = bench.frames()
    source.contents["a"].append("200")
    bench.steps()

    assert early == []
    (mark,) = marks
    assert mark.idle
    assert not mark.position
    assert not mark.batches
    (frame,) = bench.frames()
    assert (frame.idle, frame.watermark_us) == (False, 190)


def test_named_watermark_is_restored() -> None:
    source = ListSource({"a": ["50"]})
    plan = plan_of(source, lambda line: [line], event_time=int)
    bench = Bench(plan)

    bench.reset(named("a", watermark_us=70))
    bench.steps()

    assert [frame.watermark_us for frame in bench.frames()] == [70]


def test_drained_source_sends_what_it_read_and_begins_nothing() -> None:
    source = ListSource({"a": ["x", "y", "z"]}, records_a_read=1)
    bench = Bench(plan_of(source))
    bench.reset(named("a"), credit=(1, 1_000_000))
    bench.steps()
    bench.take()

    bench.machine.drain()
    waits = bench.machine.is_drained()
    bench.credit(100)
    bench.steps()

    assert not waits
    assert bench.machine.is_drained()
    assert bench.words() == [["y"]]
