"""The compute role: barriers, credit, state, timers, errors."""

import pytest
from tests.sdk.runtime.compute_bench import Bench, Count, plan_of, timer_plan

import bettong as bt
from bettong.codecs import msgpack
from bettong.dead_letter import build_dead_letter
from bettong.program.columns import SizeLimits
from bettong.runtime import limits
from bettong_proto.plugin.v1 import batch_pb2, compute_pb2, error_pb2


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
