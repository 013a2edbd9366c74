"""Routes, credits and barriers over whole graphs."""

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bettong_engine.core.alignment import Mark
from bettong_engine.core.boundary import SourceBatch
from bettong_engine.core.dataflow import (
    BarrierTo,
    Dataflow,
    Effect,
    FlowLimits,
    Grant,
    StageDone,
    ToSink,
    ToStage,
)
from bettong_engine.core.ids import Epoch, InstanceId, partition_of
from bettong_engine.core.topology import (
    OutputSpec,
    SinkSpec,
    SourceSpec,
    StageSpec,
    Topology,
)
from bettong_engine.errors import ProtocolError
from bettong_engine.net.records import check_records, split_records
from bettong_proto.plugin.v1.batch_pb2 import Records

A, B = InstanceId(1), InstanceId(2)
LIMITS = FlowLimits(credit_records=8, credit_bytes=1 << 20)
PARTITIONS = 8


def to_stage(stage: int, number: int = 0) -> OutputSpec:
    return OutputSpec(stage, None, number)


def to_sink() -> OutputSpec:
    return OutputSpec(None, 0)


def graph(*stages: StageSpec, source: tuple[OutputSpec, ...]) -> Topology:
    return Topology(
        "test",
        (SourceSpec("in", False, source),),
        stages,
        (SinkSpec("out"),),
        PARTITIONS,
    )


CHAIN = graph(
    StageSpec("first", True, (to_stage(1),)),
    StageSpec("second", True, (to_sink(),)),
    source=(to_stage(0),),
)
# Stage 0 feeds 1 and 2, which both feed 3; the source feeds 3 directly as well.
DIAMOND = graph(
    StageSpec("top", True, (to_stage(1), to_stage(2))),
    StageSpec("left", True, (to_stage(3),)),
    StageSpec("right", True, (to_stage(3, 1),)),
    StageSpec("bottom", True, (to_sink(),)),
    source=(to_stage(0), to_stage(3, 2)),
)


def flow_of(topology: Topology, *instances: InstanceId) -> Dataflow:
    stages = range(len(topology.stages))
    return Dataflow(
        topology,
        [(instance, list(stages)) for instance in instances],
        last_epoch=Epoch(6),
        watermarks={},
        limits=LIMITS,
        split=split_records,
        check=check_records,
    )


def records(*keys: bytes) -> bytes:
    return Records(keys=keys, values=keys).SerializeToString()


def batch(*keys: bytes, target: int = 0, output: int = 0) -> SourceBatch:
    return SourceBatch(output, target, len(keys), records(*keys))


def marks(topology: Topology) -> dict[int, Mark]:
    return {i: Mark() for i, fed in enumerate(topology.fed_by_source) if fed}


def barriers(effects: list[Effect]) -> list[tuple[int, int, int]]:
    return [(e.instance, e.stage, e.epoch) for e in effects if isinstance(e, BarrierTo)]


def key_in(partition: int) -> bytes:
    return next(
        key
        for key in (b"%d" % n for n in range(1000))
        if partition_of(key, PARTITIONS) == partition
    )


def test_every_partition_has_one_owner() -> None:
    flow = flow_of(CHAIN, A, B)

    owned = [*flow.partitions_of(A, 0), *flow.partitions_of(B, 0)]

    assert sorted(owned) == list(range(PARTITIONS))
    assert all(flow.owner_of(0, p) == A for p in flow.partitions_of(A, 0))


def test_batch_goes_to_its_target() -> None:
    flow = flow_of(CHAIN, A, B)

    (effect,) = flow.on_source_batch("in", batch(b"k", target=1), Epoch(7))

    assert isinstance(effect, ToStage)
    assert (effect.instance, effect.stage, effect.batch.count) == (B, 0, 1)


def test_ungrouped_batch_is_split_by_owner_and_keeps_its_order() -> None:
    flow = flow_of(CHAIN, A, B)
    even, odd = key_in(0), key_in(1)
    mixed = SourceBatch(0, 0, 3, records(even, odd, even), is_ungrouped=True)

    effects = flow.on_source_batch("in", mixed, Epoch(7))

    found = {
        e.instance: list(Records.FromString(e.batch.records).keys)
        for e in effects
        if isinstance(e, ToStage)
    }
    assert found == {A: [even, even], B: [odd]}


def test_credit_is_cumulative_and_returned_a_quarter_at_a_time() -> None:
    flow = flow_of(CHAIN, A)
    (effect,) = flow.on_source_batch("in", batch(b"k"), Epoch(7))
    assert isinstance(effect, ToStage)
    channel = effect.batch.channel

    assert flow.on_consumed(A, channel, 1, 10) == []
    (grant,) = flow.on_consumed(A, channel, 2, 20)
    assert flow.on_consumed(A, channel, 2, 20) == []
    assert flow.on_consumed(A, channel, 1, 10) == []

    assert isinstance(grant, Grant)
    assert (grant.instance, grant.source, grant.stage) == (None, "in", -1)
    assert (grant.records, grant.bytes) == (8 + 2, (1 << 20) + 20)


def test_output_to_a_sink_is_consumed_when_it_is_taken() -> None:
    flow = flow_of(CHAIN, A)

    effects = flow.on_stage_output(A, 1, batch(b"a", b"b"))

    assert [type(e) for e in effects] == [ToSink, Grant]
    assert isinstance(effects[0], ToSink)
    assert (effects[0].epoch, effects[0].batch.count) == (7, 2)


def test_ungrouped_output_has_credit_for_all_targets_together() -> None:
    """Else its sender would wait for ever once all it may send is consumed."""
    flow = flow_of(CHAIN, A, B)
    even, odd = key_in(0), key_in(1)
    granted, sent = LIMITS.credit_records, 0
    while sent < 50:
        assert sent < granted, "the sender waits for ever"
        mixed = SourceBatch(0, 0, 2, records(even, odd), is_ungrouped=True)
        effects = flow.on_source_batch("in", mixed, Epoch(7))
        sent += 2
        for effect in effects:
            assert isinstance(effect, ToStage)
            for grant in flow.on_consumed(
                effect.instance, effect.batch.channel, sent // 2, sent
            ):
                assert isinstance(grant, Grant)
                assert grant.target == 0
                granted = grant.records


@pytest.mark.parametrize(
    ("sent", "fault"),
    [
        (batch(b"k", target=2), "no target 2"),
        (batch(b"k", output=1), "no output 1"),
        (SourceBatch(0, 0, 0, b""), "empty batch"),
        (SourceBatch(0, 1, 1, records(b"k"), is_ungrouped=True), "nothing to group"),
    ],
)
def test_batch_that_breaks_the_contract_is_refused(
    sent: SourceBatch, fault: str
) -> None:
    with pytest.raises(ProtocolError, match=fault):
        flow_of(CHAIN, A, B).on_source_batch("in", sent, Epoch(7))


def test_output_whose_count_is_wrong_never_gets_a_number() -> None:
    wrong = SourceBatch(0, 0, 3, records(b"a", b"b"))

    with pytest.raises(ProtocolError, match="3 records with 2 elements"):
        flow_of(CHAIN, A).on_stage_output(A, 1, wrong)


def test_message_for_a_stage_that_is_not_assigned_is_refused() -> None:
    flow = flow_of(CHAIN, A)

    events: list[Callable[[], list[Effect]]] = [
        lambda: flow.on_stage_output(B, 0, batch(b"k")),
        lambda: flow.on_stage_ack(B, 0, Epoch(7)),
        lambda: flow.on_stage_output(A, 9, batch(b"k")),
        lambda: flow.on_consumed(A, 99, 1, 1),
    ]
    for event in events:
        with pytest.raises(ProtocolError):
            event()


def test_barrier_of_a_chain_follows_the_acks() -> None:
    flow = flow_of(CHAIN, A, B)

    first = flow.on_boundary_end(Epoch(7), marks(CHAIN))
    one = flow.on_stage_ack(A, 0, Epoch(7))
    two = flow.on_stage_ack(B, 0, Epoch(7))

    assert barriers(first) == [(A, 0, 7), (B, 0, 7)]
    assert one == [StageDone(A, 0, Epoch(7))]
    assert barriers(two) == [(A, 1, 7), (B, 1, 7)]


def test_bottom_of_a_diamond_waits_for_both_sides_and_the_source() -> None:
    flow = flow_of(DIAMOND, A)

    assert barriers(flow.on_boundary_end(Epoch(7), marks(DIAMOND))) == [(A, 0, 7)]
    top = flow.on_stage_ack(A, 0, Epoch(7))
    left = flow.on_stage_ack(A, 1, Epoch(7))
    right = flow.on_stage_ack(A, 2, Epoch(7))

    assert barriers(top) == [(A, 1, 7), (A, 2, 7)]
    assert barriers(left) == []
    assert barriers(right) == [(A, 3, 7)]


def test_output_after_an_ack_belongs_to_the_next_epoch() -> None:
    flow = flow_of(CHAIN, A, B)
    flow.on_boundary_end(Epoch(7), marks(CHAIN))
    flow.on_stage_ack(A, 0, Epoch(7))

    early = flow.on_stage_output(A, 0, batch(b"k", target=0))
    freed = flow.on_stage_ack(B, 0, Epoch(7))

    assert early == []
    kinds = [type(e) for e in freed if getattr(e, "instance", None) == A]
    assert kinds == [BarrierTo, ToStage]


@given(st.lists(st.integers(0, 7), max_size=60), st.sampled_from([CHAIN, DIAMOND]))
def test_barriers_come_in_order_whoever_is_fast(
    turns: list[int], topology: Topology
) -> None:
    """Acks in any order: each (instance, stage) sees 7, 8, 9; sinks get all."""
    flow = flow_of(topology, A, B)
    waiting: list[BarrierTo] = []
    seen: dict[tuple[int, int], list[int]] = {}
    done: list[StageDone] = []
    outputs: list[int] = []
    acked: dict[tuple[int, int], int] = {}

    def do(effects: list[Effect]) -> None:
        for effect in effects:
            if isinstance(effect, BarrierTo):
                where = (effect.instance, effect.stage)
                assert acked.get(where, 6) == effect.epoch - 1, "not acked"
                seen.setdefault(where, []).append(effect.epoch)
                waiting.append(effect)
            elif isinstance(effect, StageDone):
                done.append(effect)
            elif isinstance(effect, ToSink):
                outputs.append(effect.epoch)

    ended = 6
    last = len(topology.stages) - 1
    for turn in [*turns, *[7, 7, 7], *([0] * 40)]:
        if turn == 7 and ended < 9:
            ended += 1
            do(flow.on_boundary_end(Epoch(ended), marks(topology)))
        elif waiting:
            barrier = waiting.pop(turn % len(waiting))
            where = (barrier.instance, barrier.stage)
            if barrier.stage == last:
                do(flow.on_stage_output(barrier.instance, last, batch(b"k")))
                assert outputs[-1] == barrier.epoch
            acked[where] = barrier.epoch
            do(flow.on_stage_ack(barrier.instance, barrier.stage, barrier.epoch))

    runs = flow.stage_runs()
    assert seen == {run: [7, 8, 9] for run in runs}
    assert len(done) == 3 * len(runs)
    assert sorted(outputs) == [7, 7, 8, 8, 9, 9]
