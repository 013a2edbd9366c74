"""The sink role: sequence, durability, refusals, trouble."""

from typing import Any

import pytest
from tests.sdk.runtime.memory_connectors import ListSink, ListTarget

import bettong as bt
from bettong.codecs import text
from bettong.plan import SinkPlan
from bettong.runtime import limits
from bettong.runtime.sink import SinkMachine
from bettong_proto.plugin.v1 import batch_pb2, error_pb2, sink_pb2

HISTORY = b"h" * 16


class Bench:
    """A machine whose partition 0 is opened, and what it sent."""

    def __init__(self, sink: ListSink | None = None, *, is_opened: bool = True) -> None:
        self.sink = sink or ListSink()
        self.machine = SinkMachine(SinkPlan("out", self.sink, (text,)))
        self.now_ms = 0
        self.sent: list[sink_pb2.SinkRequest] = []
        if is_opened:
            self.open(1)
            self.work()

    @property
    def target(self) -> ListTarget:
        return self.sink.targets[0]

    def tell(self, **message: Any) -> None:
        response = sink_pb2.SinkResponse(**message)
        self.sent += self.machine.on_message(response, self.now_ms)

    def open(self, generation: int, window_bytes: int = 1_000_000) -> None:
        self.tell(
            open=sink_pb2.OpenSink(
                partition=0,
                history=HISTORY,
                generation=generation,
                window_bytes=window_bytes,
            )
        )

    def give(self, first: int, *values: str, generation: int = 1, **more: Any) -> None:
        records = batch_pb2.Records(values=[value.encode() for value in values])
        self.tell(
            input=sink_pb2.SinkInput(
                generation=generation,
                first_sequence=first,
                count=len(values),
                records=records.SerializeToString(),
                **more,
            )
        )

    def work(self, *, is_more_waiting: bool = False) -> list[str]:
        """Step while there is work; return the kinds of all that was sent."""
        for _ in range(100):
            if not self.machine.has_work(self.now_ms):
                break
            self.sent += self.machine.step(self.now_ms, is_more_waiting=is_more_waiting)
        return [message.WhichOneof("message") or "" for message in self.sent]

    def take(self) -> list[sink_pb2.SinkRequest]:
        sent, self.sent = self.sent, []
        return sent

    def progress(self) -> list[int]:
        return [m.progress.sequence for m in self.take() if m.HasField("progress")]


def test_open_fences_then_tells_the_position() -> None:
    sink = ListSink()
    sink.targets[0] = ListTarget(["a"], HISTORY, 1)
    bench = Bench(sink)

    (message,) = bench.sent
    assert (message.opened.partition, message.opened.generation) == (0, 1)
    assert message.opened.durable.sequence == 1
    assert message.opened.durable.history == HISTORY
    assert sink.opened == [(0, bt.Fence(HISTORY, 1))]


def test_outputs_are_written_in_sequence_then_flushed_then_told() -> None:
    bench = Bench()

    bench.give(1, "a", "b")
    bench.give(3, "c")
    bench.work()

    assert bench.target.records == ["a", "b", "c"]
    assert bench.progress() == [3]


def test_what_the_target_has_is_cut_off() -> None:
    sink = ListSink()
    sink.targets[0] = ListTarget(["a", "b"], HISTORY, 2)
    bench = Bench(sink)

    bench.give(1, "a")
    bench.give(2, "b", "c")
    bench.work()

    assert bench.target.records == ["a", "b", "c"]


def test_gap_is_a_protocol_error() -> None:
    bench = Bench()
    bench.give(2, "b")

    with pytest.raises(bt.ProtocolError, match="from 2 while 1 is next"):
        bench.work()


def test_input_of_a_future_generation_is_a_protocol_error_and_of_a_past_ignored() -> (
    None
):
    bench = Bench()
    bench.open(3)
    bench.work()

    bench.give(1, "old", generation=2)
    bench.work()

    assert bench.target.records == []
    with pytest.raises(bt.ProtocolError, match="generation 4"):
        bench.give(1, "new", generation=4)


def test_flush_waits_while_more_is_waiting_but_not_too_long() -> None:
    bench = Bench()
    bench.take()
    bench.give(1, "a")
    bench.sent += bench.machine.step(0, is_more_waiting=True)

    early = bench.machine.step(0, is_more_waiting=True)
    late = bench.machine.step(limits.SINK_FLUSH_INTERVAL_MS, is_more_waiting=True)

    assert early == []
    assert late[0].progress.sequence == 1


def test_flush_comes_at_half_the_window() -> None:
    bench = Bench(is_opened=False)
    bench.open(1, window_bytes=20)
    bench.work()
    bench.take()

    bench.give(1, "x" * 10)
    bench.machine.step(0, is_more_waiting=True)

    assert bench.machine.step(0, is_more_waiting=True)[0].progress.sequence == 1


def test_unknown_position_takes_the_first_that_comes() -> None:
    sink = ListSink()
    sink.says_unknown = True
    bench = Bench(sink)

    bench.give(41, "a")
    bench.give(42, "b")
    bench.work()

    assert bench.sent[0].opened.unknown
    assert bench.target.records == ["a", "b"]
    assert bench.progress() == [42]


def test_after_trouble_an_unknown_position_is_the_one_last_told() -> None:
    sink = ListSink()
    sink.says_unknown = True
    bench = Bench(sink)
    bench.give(41, "a")
    sink.faults["write"] = bt.SinkError("gone")
    bench.work()
    bench.now_ms += limits.RETRY_DELAY_MS_MIN
    bench.work()

    bench.give(43, "c")
    bench.give(41, "a")
    bench.give(42, "b")
    bench.work()

    assert bench.target.records == ["a", "b"]


def test_refused_output_is_told_after_what_came_before_is_durable() -> None:
    sink = ListSink()
    sink.refuses.add("bad")
    bench = Bench(sink)
    bench.take()

    bench.give(1, "a", "bad", "c")
    bench.give(4, "d")
    kinds = bench.work()
    refused = bench.sent[1].refused
    before = list(bench.target.records)
    bench.tell(skip=sink_pb2.Skip(generation=1, sequence=2))
    bench.give(1, "a", "bad", "c")
    bench.give(4, "d")
    bench.work()

    assert kinds == ["progress", "refused"]
    assert refused.sequence == 2
    assert refused.error.error_class == error_pb2.ERROR_CLASS_RECORD
    assert before == ["a"]
    assert bench.target.records == ["a", "c", "d"]
    assert bench.target.sequence == 4


def test_skip_of_what_is_past_is_ignored() -> None:
    bench = Bench()
    bench.give(1, "a")
    bench.work()

    bench.tell(skip=sink_pb2.Skip(generation=1, sequence=1))
    bench.give(2, "b")
    bench.work()

    assert bench.target.records == ["a", "b"]


def test_output_that_its_codec_cannot_read_is_refused() -> None:
    bench = Bench()
    records = batch_pb2.Records(values=[b"a", b"\xff", b"c"])
    bench.tell(
        input=sink_pb2.SinkInput(
            generation=1,
            first_sequence=1,
            count=3,
            records=records.SerializeToString(),
        )
    )

    kinds = bench.work()

    assert kinds[1:] == ["progress", "refused"]
    assert bench.sent[-1].refused.sequence == 2
    assert bench.target.records == ["a"]


@pytest.mark.parametrize("call", ["write", "flush"])
def test_retryable_trouble_opens_again_and_drops_what_was_on_its_way(call: str) -> None:
    bench = Bench()
    bench.give(1, "a")
    bench.work()
    bench.take()
    bench.sink.faults[call] = bt.SinkError("disk full")

    bench.give(2, "b")
    kinds = bench.work()
    error = bench.take()[0].error.error
    bench.give(3, "c")
    early = bench.work()
    bench.now_ms += limits.RETRY_DELAY_MS_MIN
    bench.work()
    opened = bench.take()[0].opened
    bench.give(3, "c")
    bench.give(2, "b", "c")
    bench.work()

    assert kinds == ["error"]
    assert error.error_class == error_pb2.ERROR_CLASS_RETRYABLE
    assert early == []
    assert opened.durable.sequence == 1
    assert bench.target.records == ["a", "b", "c"]


def test_open_is_tried_again_with_longer_and_longer_delays() -> None:
    bench = Bench(is_opened=False)
    bench.open(1)
    delays = []
    for _ in range(4):
        bench.sink.faults["open"] = bt.SinkError("not there")
        bench.work()
        wake_ms = bench.machine.wake_at_ms()
        assert wake_ms is not None
        delays.append(wake_ms - bench.now_ms)
        bench.now_ms = wake_ms

    bench.work()

    assert delays == [100, 200, 400, 800]
    assert bench.sent[-1].HasField("opened")


def test_fenced_writer_stops_until_it_is_opened_again() -> None:
    bench = Bench()
    bench.target.generation = 9

    bench.give(1, "a")
    bench.work()
    error = bench.take()[-1].error.error
    bench.now_ms += 1_000_000
    bench.give(2, "b")
    bench.work()

    assert error.error_class == error_pb2.ERROR_CLASS_FENCED
    assert bench.take() == []
    assert bench.machine.wake_at_ms() is None


def test_bug_of_a_connector_closes_the_partition_with_a_stack() -> None:
    bench = Bench()
    bench.sink.faults["write"] = KeyError("oops")

    bench.give(1, "a")
    bench.work()

    error = bench.take()[-1].error.error
    assert error.error_class == error_pb2.ERROR_CLASS_FATAL
    assert "KeyError" in error.stack


def test_higher_generation_closes_the_writer_and_opens_another() -> None:
    bench = Bench()
    bench.give(1, "a")

    bench.open(2)
    bench.work()
    bench.give(1, "a", generation=2)
    bench.work()

    assert [fence.generation for _, fence in bench.sink.opened] == [1, 2]
    assert bench.target.records == ["a"]


def test_close_is_answered_also_if_nothing_is_open() -> None:
    bench = Bench(is_opened=False)

    bench.tell(close=sink_pb2.CloseSink(partition=0, generation=5))

    assert bench.sent[0].closed.generation == 5


def test_closed_partition_writes_nothing_more() -> None:
    bench = Bench()
    bench.give(1, "a")
    bench.tell(close=sink_pb2.CloseSink(partition=0, generation=1))

    bench.give(1, "a")
    bench.work()

    assert bench.target.records == []
    assert [m.WhichOneof("message") for m in bench.sent] == ["opened", "closed"]


def test_writer_that_claims_more_than_it_got_is_closed() -> None:
    bench = Bench()
    bench.target.sequence = 0
    bench.give(1, "a")
    bench.sent += bench.machine.step(0, is_more_waiting=True)
    writer = bench.machine._partitions[0].writer
    assert writer is not None
    writer.flush = lambda: 99  # type: ignore[method-assign]

    bench.work()

    error = bench.take()[-1].error.error
    assert "99 is durable, but only 1" in error.message
    assert error.error_class == error_pb2.ERROR_CLASS_FATAL


def test_two_partitions_are_independent() -> None:
    sink = ListSink(partitions=2)
    machine = SinkMachine(SinkPlan("out", sink, (text,)))
    for number in (0, 1):
        opening = sink_pb2.OpenSink(partition=number, history=HISTORY, generation=1)
        machine.on_message(sink_pb2.SinkResponse(open=opening), 0)
    sink.faults["open"] = bt.SinkError("not there")
    for _ in range(4):
        machine.step(0, is_more_waiting=False)

    records = batch_pb2.Records(values=[b"a"]).SerializeToString()
    given = sink_pb2.SinkInput(
        partition=1, generation=1, first_sequence=1, count=1, records=records
    )
    machine.on_message(sink_pb2.SinkResponse(input=given), 0)
    machine.step(0, is_more_waiting=False)
    machine.step(0, is_more_waiting=False)

    assert sink.targets[1].records == ["a"]
    assert machine.wake_at_ms() == limits.RETRY_DELAY_MS_MIN
