"""What plugins are told when a generation begins: routes, partitions, positions."""

from collections.abc import Iterable, Sequence

from bettong_engine.core.dataflow import Dataflow
from bettong_engine.core.delta import StreamState
from bettong_engine.core.effects import (
    ResetCompute,
    ResetSource,
    Route,
    StageAssignment,
)
from bettong_engine.core.ids import Epoch, Generation, InstanceId
from bettong_engine.core.partition import Partition
from bettong_engine.core.topology import OutputSpec


def reset_compute(
    flow: Dataflow,
    partitions: Sequence[Partition],
    instance: InstanceId,
    *,
    generation: Generation,
    epoch: Epoch,
    processing_time_us: int,
) -> ResetCompute:
    """Say which stages and partitions an instance runs, and where its outputs go."""
    stages = []
    for owner, stage in flow.stage_runs():
        if owner != instance:
            continue
        spec = flow.topology.stages[stage]
        owned = flow.partitions_of(instance, stage) if spec.keyed else []
        fresh = [p for p in owned if partitions[p].is_fresh(spec.name)]
        stages.append(
            StageAssignment(
                stage,
                tuple(owned),
                tuple(fresh),
                routes_of(flow, spec.outputs),
                watermark_of(partitions, spec.name),
            )
        )
    return ResetCompute(instance, generation, epoch, tuple(stages), processing_time_us)


def reset_source(
    flow: Dataflow,
    instance: InstanceId,
    outputs: Sequence[OutputSpec],
    streams: Sequence[StreamState],
    *,
    generation: Generation,
    epoch: Epoch,
) -> ResetSource:
    """Say which streams a source has, and where to take them up."""
    targets = tuple(stream_targets(flow, outputs, s.source, s.stream) for s in streams)
    routes = routes_of(flow, outputs)
    return ResetSource(instance, generation, epoch, routes, tuple(streams), targets)


def routes_of(flow: Dataflow, outputs: Sequence[OutputSpec]) -> tuple[Route, ...]:
    """Return where each output goes in this generation."""
    routes = []
    for number, spec in enumerate(outputs):
        targets: tuple[int, ...] = ()
        sink_partitions = 0
        if spec.sink is not None:
            sink_partitions = flow.topology.sinks[spec.sink].partitions
        elif spec.stage is not None and flow.topology.stages[spec.stage].keyed:
            targets = flow.targets_of(spec.stage)
        routes.append(Route(number, spec, targets, sink_partitions))
    return tuple(routes)


def stream_targets(
    flow: Dataflow, outputs: Sequence[OutputSpec], source: str, stream: str
) -> tuple[int, ...]:
    """Return the target of a stream in each stage without key that is fed."""
    return tuple(
        flow.stream_target(spec.stage, source, stream)
        for spec in outputs
        if spec.stage is not None and not flow.topology.stages[spec.stage].keyed
    )


def watermark_of(partitions: Iterable[Partition], stage: str) -> int | None:
    """Return the highest watermark of a stage that any partition has committed."""
    marks = [p.watermarks[stage] for p in partitions if stage in p.watermarks]
    return max(marks, default=None)
