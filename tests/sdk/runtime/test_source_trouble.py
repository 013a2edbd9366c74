"""The source role: trouble, event time, drain."""

from typing import Any

import pytest
from tests.sdk.runtime.memory_connectors import ListSource
from tests.sdk.runtime.source_bench import Bench, named, plan_of, started, words_of

import bettong as bt
from bettong.program.columns import SizeLimits
from bettong.runtime import limits
from bettong_proto.plugin.v1 import (
    batch_pb2,
    error_pb2,
)

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
