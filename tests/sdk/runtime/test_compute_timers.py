"""The compute role: timers fire at barriers."""

from tests.sdk.runtime.compute_bench import Bench, Count, timer_plan

from bettong.codecs import msgpack
from bettong.runtime import limits
from bettong_proto.plugin.v1 import batch_pb2, compute_pb2


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
