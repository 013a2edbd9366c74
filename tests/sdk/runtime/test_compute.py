"""The compute role: barriers, credit, state, timers, errors."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from tests.sdk.runtime.memory_connectors import ListSink, ListSource

import bettong as bt
from bettong.codecs import msgpack
from bettong.dead_letter import build_dead_letter
from bettong.plan import Plan
from bettong.program.columns import SizeLimits
from bettong.runtime import limits
from bettong.runtime.compute import ComputeMachine
from bettong_proto.plugin.v1 import batch_pb2, compute_pb2, error_pb2

PARTITIONS = 4
NO_STATE: Any = None
ENOUGH = (1_000_000, 1_000_000_000)


@dataclass
class Count:
    count: int = 0


def count(key: str, word: str, state: Count) -> str:
    if word == "bad":
        raise ValueError("a bad word")
    state.count += 1
    return f"{key}{state.count}"


def plan_of(function: Any = count, *, second: bool = False, **how: Any) -> Plan:
    """One stage that counts words; with `second`, one more behind it."""
    on_error = how.pop("on_error", "fail")
    letters = ListSink(codec=bt.json) if on_error == "dead_letter" else None
    app = bt.App("words", partitions=PARTITIONS, on_error=on_error, dead_letter=letters)
    stream = (
        app.source("lines", ListSource({}))
        .key_by(lambda word: word, key=str, name="by_word")
        .stateful(function, state=Count, name="count", **how)
    )
    if second:
        stream = stream.key_by(lambda text: text[0], key=str, name="again").stateful(
            count, state=Count, name="count2"
        )
    stream.sink("out", ListSink())
    return app.plan()


class Bench:
    """A machine after its first reset, and what it sent."""

    def __init__(
        self,
        plan: Plan,
        *,
        credit: tuple[int, int] = ENOUGH,
        is_fresh: bool = True,
        sizes: SizeLimits | None = None,
    ) -> None:
        self.plan = plan
        self.machine = ComputeMachine(
            plan, sizes=sizes or SizeLimits(), cpu_clock=lambda: 0.0
        )
        self.generation = 0
        self.sent: list[compute_pb2.ComputeRequest] = []
        self.reset(credit=credit, is_fresh=is_fresh)
        self.sent.clear()

    def reset(
        self,
        *,
        epoch: int = 0,
        credit: tuple[int, int] = ENOUGH,
        is_fresh: bool = False,
    ) -> None:
        self.generation += 1
        stages = []
        for stage in self.plan.stages:
            routes = [
                batch_pb2.Route(output=edge.number, targets=[0] * PARTITIONS)
                if edge.to_stage
                else batch_pb2.Route(output=edge.number, sink_partitions=1)
                for edge in stage.outputs
            ]
            stages.append(
                compute_pb2.StageAssignment(
                    stage=stage.index,
                    partitions=range(PARTITIONS),
                    fresh_partitions=range(PARTITIONS) if is_fresh else (),
                    routes=routes,
                )
            )
        self.tell(
            reset=compute_pb2.ComputeReset(
                generation=self.generation,
                committed_epoch=epoch,
                stages=stages,
                credit_records=credit[0],
                credit_bytes=credit[1],
            )
        )

    def tell(self, **message: Any) -> None:
        self.sent += self.machine.on_message(compute_pb2.ComputeResponse(**message))

    def give(
        self, *words: str, stage: int = 0, channel: int = 1, values: Any = None
    ) -> None:
        keys = [word.encode() for word in words]
        records = batch_pb2.Records(
            keys=keys, values=values, value_is_key=values is None
        )
        self.tell(
            input=compute_pb2.StageInput(
                generation=self.generation,
                stage=stage,
                channel=channel,
                count=len(words),
                records=records.SerializeToString(),
            )
        )

    def barrier(self, epoch: int, *, stage: int = 0, **times: int) -> None:
        self.tell(
            barrier=compute_pb2.Barrier(
                generation=self.generation, epoch=epoch, stage=stage, **times
            )
        )

    def credit(self, records: int, *, stage: int = 0) -> None:
        self.tell(
            credits=[
                compute_pb2.StageCredit(
                    stage=stage,
                    credit=batch_pb2.Credit(records=records, bytes=1_000_000),
                )
            ]
        )

    def work(self) -> list[str]:
        """Do all work; return the kinds of what was sent, and clear it."""
        for _ in range(10_000):
            if not self.machine.has_work():
                return self.kinds()
            self.sent += self.machine.step()
        raise AssertionError("work without end")

    def kinds(self) -> list[str]:
        return [message.WhichOneof("message") or "" for message in self.sent]

    def outputs(self) -> list[str]:
        found: list[str] = []
        for message in self.sent:
            if message.HasField("output"):
                records = batch_pb2.Records.FromString(message.output.batch.records)
                found += [value.decode() for value in records.values]
        return found

    def rows(self) -> dict[str, int | None]:
        found: dict[str, int | None] = {}
        for message in self.sent:
            for part in message.delta.partitions:
                rows = batch_pb2.StateRows.FromString(part.rows)
                for index, key in enumerate(rows.keys):
                    value = None
                    if index not in rows.absent:
                        value = msgpack(Count).decode(rows.values[index]).count
                    found[key.decode()] = value
        return found

    def timers(self) -> dict[tuple[str, str], int | None]:
        found: dict[tuple[str, str], int | None] = {}
        for message in self.sent:
            for part in message.delta.partitions:
                timers = batch_pb2.Timers.FromString(part.timers)
                for index, key in enumerate(timers.keys):
                    due = None if index in timers.deleted else timers.due_us[index]
                    found[key.decode(), timers.names[index]] = due
        return found

    def errors(self) -> list[error_pb2.Error]:
        return [m.error.error for m in self.sent if m.HasField("error")]


def test_batch_gives_outputs_and_its_consumption_with_them() -> None:
    bench = Bench(plan_of())

    bench.give("a", "b", "a")
    kinds = bench.work()

    assert kinds == ["output"]
    assert bench.outputs() == ["a1", "b1", "a2"]
    (consumed,) = bench.sent[0].consumed
    assert (consumed.channel, consumed.records) == (1, 3)


def test_consumption_without_output_goes_alone() -> None:
    bench = Bench(plan_of(lambda key, word, state: None))

    bench.give("a")
    bench.give("b")

    assert bench.work() == ["", ""]
    assert bench.sent[1].consumed[0].records == 2


def test_barrier_sends_delta_then_ack() -> None:
    bench = Bench(plan_of())

    bench.give("a", "b", "a")
    bench.barrier(1)
    bench.give("a")
    kinds = bench.work()
    first = bench.rows()
    bench.sent.clear()
    bench.barrier(2)
    bench.work()

    assert kinds == ["output", "delta", "barrier_ack", "output"]
    assert first == {"a": 2, "b": 1}
    assert bench.rows() == {"a": 3}


def test_barrier_of_another_epoch_is_a_protocol_error() -> None:
    bench = Bench(plan_of())

    bench.barrier(2)

    with pytest.raises(bt.ProtocolError, match="barrier 2"):
        bench.work()


def test_output_without_credit_is_kept_and_holds_input_and_barrier() -> None:
    bench = Bench(plan_of(), credit=(1, 1_000_000))

    bench.give("a")
    bench.give("b")
    bench.give("c")
    bench.barrier(1)
    bench.work()
    before = (bench.outputs(), bench.kinds(), len(bench.sent[-1].consumed))
    bench.credit(2)
    bench.work()
    bench.credit(9)
    bench.work()

    assert before == (["a1"], ["output"], 1)
    assert bench.outputs() == ["a1", "b1", "c1"]
    assert bench.kinds()[-2:] == ["delta", "barrier_ack"]
    consumed = [c.records for m in bench.sent for c in m.consumed]
    assert consumed == [1, 2, 3]


def test_kept_output_is_not_consumption_until_it_is_sent() -> None:
    bench = Bench(plan_of(), credit=(1, 1_000_000))
    bench.give("a")
    bench.give("b")
    bench.work()
    bench.sent.clear()

    bench.credit(1)
    nothing = list(bench.sent)
    bench.credit(2)

    assert nothing == []
    assert bench.sent[0].consumed[0].records == 2


def test_barrier_waits_for_the_kept_outputs_of_its_timers() -> None:
    bench = Bench(timer_plan(), credit=(1, 1_000_000))
    bench.give("a", values=[b"at 5"])
    bench.barrier(1, watermark_us=5)
    bench.work()
    before = bench.kinds()

    bench.credit(2)
    bench.work()

    assert before == ["output"]
    assert bench.kinds() == ["output", "output", "delta", "barrier_ack"]


def test_later_stage_goes_first() -> None:
    bench = Bench(plan_of(second=True))

    bench.give("a")
    bench.give("x", stage=1, channel=2)
    bench.give("b")
    stages = []
    while bench.machine.has_work():
        stages += [m.output.stage for m in bench.machine.step()]

    assert stages == [1, 0, 0]


def test_stage_without_credit_does_not_stop_a_later_one() -> None:
    bench = Bench(plan_of(second=True), credit=(1, 1_000_000))
    bench.give("a")
    bench.give("b")
    bench.give("c")
    bench.work()

    bench.give("x", stage=1, channel=2)
    bench.work()

    assert bench.outputs() == ["a1", "x1"]


def test_missing_keys_are_asked_for_in_one_request() -> None:
    bench = Bench(plan_of(), is_fresh=False)

    bench.give("a", "b", "a", "c")
    bench.give("d")
    asked = bench.work()
    request = bench.sent[0].state_get
    bench.tell(
        state_values=compute_pb2.StateValues(
            generation=1,
            request=request.request,
            more=True,
            rows=batch_pb2.StateRows(
                keys=[b"a", b"b"],
                values=[msgpack(Count).encode(Count(7)), b""],
                absent=[1],
            ),
        )
    )
    still = bench.machine.has_work()
    bench.tell(
        state_values=compute_pb2.StateValues(
            generation=1,
            request=request.request,
            rows=batch_pb2.StateRows(keys=[b"c"], values=[b""], absent=[0]),
        )
    )
    bench.work()

    assert asked == ["state_get"]
    assert list(request.keys) == [b"a", b"b", b"c"]
    assert not still
    assert bench.outputs() == ["a8", "b1", "a9", "c1"]
    assert bench.kinds()[-1] == "state_get"


def test_other_stages_go_on_while_one_waits_for_state() -> None:
    bench = Bench(plan_of(second=True), is_fresh=False)
    bench.give("a", stage=1, channel=2)
    bench.work()

    bench.give("b", stage=0)

    assert bench.machine.has_work()


def test_row_of_a_newer_schema_stops_the_stage() -> None:
    bench = Bench(plan_of(), is_fresh=False)
    bench.give("a")
    bench.work()

    bench.tell(
        state_values=compute_pb2.StateValues(
            generation=1,
            request=bench.sent[0].state_get.request,
            rows=batch_pb2.StateRows(keys=[b"a"], values=[b"x"], schema_versions=[3]),
        )
    )

    (error,) = bench.errors()
    assert error.code == error_pb2.ERROR_CODE_STATE_SCHEMA
    assert error.error_class == error_pb2.ERROR_CLASS_FATAL


def test_reset_drops_what_was_queued_and_answers_once() -> None:
    bench = Bench(plan_of())
    bench.give("a")
    bench.work()
    bench.give("b")

    bench.sent.clear()
    bench.reset()

    assert bench.kinds() == ["reset_done"]
    assert not bench.sent[0].consumed
    assert not bench.machine.has_work()


def test_messages_of_an_older_generation_are_dropped_and_newer_refused() -> None:
    bench = Bench(plan_of())
    bench.reset()
    old = compute_pb2.Barrier(generation=1, epoch=1)
    new = compute_pb2.Barrier(generation=3, epoch=1)

    bench.tell(barrier=old)

    assert not bench.machine.has_work()
    with pytest.raises(bt.ProtocolError, match="generation 3"):
        bench.tell(barrier=new)


def test_keys_of_undone_epochs_are_asked_for_after_a_reset() -> None:
    bench = Bench(plan_of())
    bench.give("a")
    bench.barrier(1)
    bench.give("b")
    bench.barrier(2)
    bench.work()

    bench.reset(epoch=1)
    bench.sent.clear()
    bench.give("a", "b", "new")
    bench.work()

    assert list(bench.sent[0].state_get.keys) == [b"b"]


# Failures --------------------------------------------------------------------


def test_user_exception_is_told_and_stops_the_stage_until_a_reset() -> None:
    bench = Bench(plan_of())

    bench.give("a", "bad")
    bench.give("c")
    bench.barrier(1)
    kinds = bench.work()
    bench.give("d")
    (error,) = bench.errors()
    bench.reset()
    bench.give("a")
    bench.work()

    assert kinds == ["error"]
    assert error.error_class == error_pb2.ERROR_CLASS_RECORD
    assert error.code == error_pb2.ERROR_CODE_USER_CODE
    assert (error.step, error.key) == ("count", b"bad")
    assert "a bad word" in error.stack
    assert "bad word" not in error.message
    assert bench.kinds() == ["error", "reset_done", "state_get"]


def test_skipped_records_are_counted_in_the_ack() -> None:
    bench = Bench(plan_of(on_error="skip"))

    bench.give("a", "bad", "b")
    bench.barrier(1)
    bench.work()

    assert bench.outputs() == ["a1", "b1"]
    assert bench.sent[-1].barrier_ack.records_skipped == 1


def test_value_that_cannot_be_read_is_skipped_alone() -> None:
    bench = Bench(plan_of(on_error="skip"))

    bench.give("a", "b", "c", values=[b"x", b"\xff", b"z"])
    bench.barrier(1)
    bench.work()

    assert bench.outputs() == ["a1", "c1"]
    assert bench.sent[-1].barrier_ack.records_skipped == 1


def test_dead_letter_goes_to_its_output_and_nothing_else() -> None:
    bench = Bench(plan_of(on_error="dead_letter"))

    bench.give("a", "bad", "b")
    bench.barrier(1)
    bench.work()

    batches = [m.output.batch for m in bench.sent if m.HasField("output")]
    assert [(b.output, b.count) for b in batches] == [(0, 2), (1, 1)]
    letter = bt.json.decode(batch_pb2.Records.FromString(batches[1].records).values[0])
    expected = build_dead_letter(
        step="count", key=b"bad", value="bad", error=ValueError("a bad word")
    )
    for member in ("step", "key", "value", "error"):
        assert letter[member] == expected[member]
    assert bench.sent[-1].barrier_ack.records_skipped == 0
    # The key was met, so its row is told, as one that does not exist.
    assert bench.rows() == {"a": 1, "b": 1, "bad": None}


def test_state_over_the_limit_is_an_error_of_its_key() -> None:
    def grow(key: str, word: str, state: Count) -> None:
        state.count = 2**40

    bench = Bench(plan_of(grow), sizes=SizeLimits(state=10))

    bench.give("a")
    bench.barrier(1)
    bench.work()

    (error,) = bench.errors()
    assert error.error_class == error_pb2.ERROR_CLASS_TOO_LARGE
    assert error.key == b"a"


def test_batch_with_columns_of_wrong_length_is_a_protocol_error() -> None:
    bench = Bench(plan_of())

    bench.give("a", "b", values=[b"x"])

    with pytest.raises(bt.ProtocolError, match="2 keys, 1 values"):
        bench.work()


def test_nulls_reach_user_code_as_none() -> None:
    seen: list[object] = []

    def look(key: str, word: str, state: Count) -> None:
        seen.append(word)

    bench = Bench(plan_of(look))
    records = batch_pb2.Records(keys=[b"a", b"b"], values=[b"", b""], nulls=[1])

    bench.tell(
        input=compute_pb2.StageInput(
            generation=1, channel=1, count=2, records=records.SerializeToString()
        )
    )
    bench.work()

    assert seen == ["", None]


def test_delta_frames_are_at_most_a_mebibyte(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench(plan_of(lambda key, word, state: None))
    words = [f"{i:05d}" + "x" * 2000 for i in range(1500)]
    for begin in range(0, len(words), 100):
        bench.give(*words[begin : begin + 100])

    bench.barrier(1)
    bench.work()

    frames = [m.delta for m in bench.sent if m.HasField("delta")]
    assert len(frames) >= 3
    assert max(frame.ByteSize() for frame in frames) <= limits.FRAME_BYTES_MAX + 1024
    assert set(bench.rows()) == set(words)


# Timers ----------------------------------------------------------------------


def timed(
    key: str, word: str, state: Count, context: bt.Context[str, Count]
) -> Iterator[str]:
    state.count += 1
    command, *numbers = word.split()
    if command == "at":
        context.set_timer("t", int(numbers[0]))
    elif command == "clock":
        context.set_timer("p", int(numbers[0]), "processing")
    elif command == "forget":
        context.delete_timer("t")
    yield f"{key} {word}"


def on_timer(
    key: str, name: str, state: Count, context: bt.Context[str, Count]
) -> Iterator[str]:
    state.count += 100
    yield f"{key} {name} {context.timestamp_us} {state.count}"
    if name == "chain" and context.timestamp_us is not None:
        context.set_timer("chain", context.timestamp_us + 1)
    if name == "killer":
        context.delete_timer("victim")
    if name == "bad":
        raise ValueError("bad timer")


def timer_plan(on_error: str = "fail") -> Plan:
    return plan_of(timed, on_timer=on_timer, on_error=on_error)


def due(bench: Bench, *timers: tuple[str, str, int]) -> None:
    bench.tell(
        timers_due=compute_pb2.TimersDue(
            generation=bench.generation,
            epoch=1,
            timers=batch_pb2.Timers(
                keys=[key.encode() for key, _, _ in timers],
                names=[name for _, name, _ in timers],
                kinds=[batch_pb2.TIMER_KIND_EVENT_TIME] * len(timers),
                due_us=[due_us for _, _, due_us in timers],
            ),
        )
    )


def test_timers_fire_at_the_barrier_in_order_of_due_key_and_name() -> None:
    bench = Bench(timer_plan())
    due(bench, ("b", "t", 1), ("a", "z", 3), ("a", "y", 3), ("c", "t", 2))

    bench.barrier(1, watermark_us=5)
    bench.work()

    assert bench.outputs() == [
        "b t 1 100",
        "c t 2 100",
        "a y 3 100",
        "a z 3 200",
    ]
    assert set(bench.timers().values()) == {None}
    assert bench.rows() == {"a": 200, "b": 100, "c": 100}


def test_timer_set_in_the_epoch_fires_if_due_and_is_told_if_not() -> None:
    bench = Bench(timer_plan())
    bench.give("a", "b", values=[b"at 5", b"at 6"])
    bench.give("c", "d", values=[b"clock 7", b"clock 8"])

    bench.barrier(1, watermark_us=5, processing_time_us=7)
    bench.work()

    assert bench.outputs()[4:] == ["a t 5 101", "c p 7 101"]
    assert bench.timers() == {
        ("a", "t"): None,
        ("b", "t"): 6,
        ("c", "p"): None,
        ("d", "p"): 8,
    }


def test_event_timer_waits_for_a_watermark() -> None:
    bench = Bench(timer_plan())
    bench.give("a", values=[b"at 5"])

    bench.barrier(1)
    bench.work()

    assert bench.timers() == {("a", "t"): 5}


def test_due_timer_that_was_deleted_or_moved_does_not_fire() -> None:
    bench = Bench(timer_plan())
    bench.give("a", "b", values=[b"forget", b"at 99"])
    due(bench, ("a", "t", 1), ("b", "t", 1))

    bench.barrier(1, watermark_us=5)
    bench.work()

    assert bench.outputs() == ["a forget", "b at 99"]
    assert bench.timers() == {("a", "t"): None, ("b", "t"): 99}


def test_timer_may_delete_another_of_its_round() -> None:
    bench = Bench(timer_plan())
    due(bench, ("a", "killer", 1), ("a", "victim", 2))

    bench.barrier(1, watermark_us=5)
    bench.work()

    assert bench.outputs() == ["a killer 1 100"]


def test_timer_that_sets_itself_fires_until_it_is_no_longer_due() -> None:
    bench = Bench(timer_plan())
    due(bench, ("a", "chain", 1))

    bench.barrier(1, watermark_us=3)
    bench.work()

    assert bench.outputs() == ["a chain 1 100", "a chain 2 200", "a chain 3 300"]
    assert bench.timers() == {("a", "chain"): 4}


def test_rounds_of_timers_are_limited_and_the_rest_stays_set() -> None:
    bench = Bench(timer_plan())
    due(bench, ("a", "chain", 1))

    bench.barrier(1, watermark_us=1_000_000)
    bench.work()

    assert len(bench.outputs()) == limits.TIMER_ROUNDS_MAX
    assert bench.timers() == {("a", "chain"): limits.TIMER_ROUNDS_MAX + 1}
    assert bench.kinds()[-1] == "barrier_ack"


def test_states_of_due_timers_are_asked_for_before_they_fire() -> None:
    bench = Bench(timer_plan(), is_fresh=False)
    due(bench, ("a", "t", 1), ("b", "t", 1))
    bench.barrier(1, watermark_us=5)
    bench.work()
    request = bench.sent[0].state_get

    bench.tell(
        state_values=compute_pb2.StateValues(
            generation=1,
            request=request.request,
            rows=batch_pb2.StateRows(
                keys=request.keys,
                values=[msgpack(Count).encode(Count(1)), b""],
                absent=[1],
            ),
        )
    )
    bench.work()

    assert list(request.keys) == [b"a", b"b"]
    assert bench.outputs() == ["a t 1 101", "b t 1 100"]


def test_failed_timer_counts_as_fired_under_skip() -> None:
    bench = Bench(timer_plan("skip"))
    due(bench, ("a", "bad", 1), ("b", "t", 1))

    bench.barrier(1, watermark_us=5)
    bench.work()

    assert bench.outputs() == ["b t 1 100"]
    assert bench.timers() == {("a", "bad"): None, ("b", "t"): None}
    assert bench.rows() == {"a": None, "b": 100}
    assert bench.sent[-1].barrier_ack.records_skipped == 1
