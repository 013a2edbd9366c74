"""The record paths of one worker, for one generation.

Who feeds whom is fixed for a generation: every channel from the source boundary and
from each instance of each stage, its credits and its barriers. A new generation
makes a new dataflow; nothing is carried over.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from bettong_engine.core.alignment import (
    Align,
    Forward,
    InputBatch,
    Mark,
    StageAligner,
)
from bettong_engine.core.boundary import SourceBatch
from bettong_engine.core.delta import OutputBatch
from bettong_engine.core.ids import Epoch, InstanceId, partition_of
from bettong_engine.core.topology import OutputSpec, Topology
from bettong_engine.errors import ProtocolError

# Splits keyed records: (records, target of each partition) -> (target, count,
# records) for each target, ascending.
SplitRecords = Callable[[bytes, Sequence[int]], list[tuple[int, int, bytes]]]
# Raises ProtocolError unless every column of `records` fits `count`.
CheckRecords = Callable[[bytes, int], None]

BOUNDARY = 0


@dataclass(frozen=True, slots=True)
class ToStage:
    """Send a batch to a stage of an instance."""

    instance: InstanceId
    stage: int
    batch: InputBatch


@dataclass(frozen=True, slots=True)
class BarrierTo:
    """Send due timers, then the barrier, to a stage of an instance."""

    instance: InstanceId
    stage: int
    epoch: Epoch
    mark: Mark


@dataclass(frozen=True, slots=True)
class ToSink:
    """Add outputs to the epoch's part of a sink partition's log."""

    epoch: Epoch
    sink: int
    sink_partition: int
    batch: OutputBatch


@dataclass(frozen=True, slots=True)
class Grant:
    """Raise the credit of a channel. Totals since the generation began.

    instance None: the sender is the source of that name; then stage is -1.
    """

    instance: InstanceId | None
    source: str
    stage: int
    output: int
    target: int
    records: int
    bytes: int


@dataclass(frozen=True, slots=True)
class StageDone:
    """A stage of an instance has finished the epoch."""

    instance: InstanceId
    stage: int
    epoch: Epoch


Effect = ToStage | BarrierTo | ToSink | Grant | StageDone


@dataclass(slots=True)
class _Output:
    """An output of one sender, with its channels by target.

    is_ungrouped: the sender leaves the grouping to the engine, and has credit for
    all targets together. None: it has sent nothing yet.
    """

    channels: list["_Channel"] = field(default_factory=list)
    is_ungrouped: bool | None = None


@dataclass(slots=True)
class _Channel:
    """A credit channel: one output of one sender to one target."""

    number: int
    sender: int
    instance: InstanceId | None
    source: str
    stage: int
    output: int
    target: int
    spec: OutputSpec
    group: _Output
    consumed_records: int = 0
    consumed_bytes: int = 0
    granted_records: int = 0
    granted_bytes: int = 0


@dataclass(slots=True)
class _StageRun:
    """A stage on an instance: its aligner and the epoch that its outputs belong to."""

    aligner: StageAligner
    epoch: Epoch
    feeds: list[tuple[InstanceId, int]] = field(default_factory=list)
    sender_number: int = 0


@dataclass(frozen=True, slots=True)
class FlowLimits:
    """Credit that a channel starts with.

    Enough that a sender never idles while its receiver works (measured: with a
    quarter of it, a third of the throughput is lost), small enough that a barrier
    behind it waits some tens of milliseconds at most.
    """

    credit_records: int = 65_536
    credit_bytes: int = 4 << 20


class Dataflow:
    """Routes batches and barriers. Targets are numbered as `instances` are given.

    `instances`: each with the stages that it runs; every stage has at least one.
    """

    def __init__(
        self,
        topology: Topology,
        instances: Sequence[tuple[InstanceId, Sequence[int]]],
        *,
        last_epoch: Epoch,
        watermarks: Mapping[int, int],
        limits: FlowLimits,
        split: SplitRecords,
        check: CheckRecords,
    ) -> None:
        self.topology = topology
        self.limits = limits
        self._split = split
        self._check = check
        self._hosts: list[list[InstanceId]] = [
            [i for i, stages in instances if stage in stages]
            for stage in range(len(topology.stages))
        ]
        self._targets = [
            tuple(p % len(hosts) for p in range(topology.partitions))
            for hosts in self._hosts
        ]
        self._runs: dict[tuple[InstanceId, int], _StageRun] = {}
        self._channels: list[_Channel] = []
        self._by_sender: dict[tuple[InstanceId | str, int, int, int], _Channel] = {}
        self._build(last_epoch, watermarks)

    # The shape.

    def stage_runs(self) -> list[tuple[InstanceId, int]]:
        """Return every (instance, stage), in stage order."""
        return sorted(self._runs, key=lambda run: (run[1], run[0]))

    def stage_name(self, stage: int) -> str:
        """Return the name of a stage. Raises `ProtocolError`: there is none."""
        if not 0 <= stage < len(self.topology.stages):
            raise ProtocolError("PROTOCOL", f"there is no stage {stage}")
        return self.topology.stages[stage].name

    def targets_of(self, stage: int) -> tuple[int, ...]:
        """Return the target of each partition, for a keyed stage."""
        return self._targets[stage]

    def partitions_of(self, instance: InstanceId, stage: int) -> list[int]:
        """Return the partitions that an instance owns of a keyed stage."""
        hosts = self._hosts[stage]
        mine = hosts.index(instance)
        return [p for p, target in enumerate(self.targets_of(stage)) if target == mine]

    def owner_of(self, stage: int, partition: int) -> InstanceId:
        """Return the instance that owns a partition of a keyed stage."""
        return self._hosts[stage][self.targets_of(stage)[partition]]

    def stream_target(self, stage: int, source: str, stream: str) -> int:
        """Return the target of a stream's records in a stage that is not keyed."""
        name = f"{source}/{stream}".encode()
        return partition_of(name, len(self._hosts[stage]))

    def late_inputs(self) -> list[str]:
        """Name the stages that wait for a barrier, for status."""
        return [
            self.topology.stages[stage].name
            for (_, stage), run in self._runs.items()
            if run.aligner.late_channels()
        ]

    # Records.

    def on_source_batch(
        self, source: str, batch: SourceBatch, epoch: Epoch
    ) -> list[Effect]:
        """Route a batch that the source boundary has stamped."""
        spec = self._output(self._source_outputs(source), batch.output, source)
        return self._route((source, -1), spec, batch, epoch)

    def on_stage_output(
        self, instance: InstanceId, stage: int, batch: SourceBatch
    ) -> list[Effect]:
        """Route a batch that a stage has put out, in the epoch that it is in."""
        run = self._run(instance, stage)
        owner = self.topology.stages[stage]
        spec = self._output(owner.outputs, batch.output, owner.name)
        return self._route((instance, stage), spec, batch, run.epoch)

    def on_consumed(
        self, instance: InstanceId, channel: int, records: int, size: int
    ) -> list[Effect]:
        """Learn what an instance has consumed of a channel, in total."""
        if not 0 <= channel < len(self._channels):
            raise ProtocolError("PROTOCOL", f"consumed of unknown channel {channel}")
        link = self._channels[channel]
        link.consumed_records = max(link.consumed_records, records)
        link.consumed_bytes = max(link.consumed_bytes, size)
        return self._grant(link)

    # Barriers.

    def on_boundary_end(self, epoch: Epoch, marks: Mapping[int, Mark]) -> list[Effect]:
        """Send the boundary's barrier to every stage that sources feed.

        marks: the watermark of the boundary's channel into each stage.
        """
        effects: list[Effect] = []
        for (instance, stage), run in self._runs.items():
            if self.topology.fed_by_source[stage]:
                found = run.aligner.on_barrier(BOUNDARY, epoch, marks[stage])
                effects += self._aligned(instance, stage, found)
        return effects

    def on_stage_ack(
        self, instance: InstanceId, stage: int, epoch: Epoch
    ) -> list[Effect]:
        """Pass on the barrier that a stage has finished."""
        run = self._run(instance, stage)
        mark = run.aligner.last_mark
        found = run.aligner.on_ack(epoch)
        run.epoch = Epoch(epoch + 1)
        effects: list[Effect] = [StageDone(instance, stage, epoch)]
        for next_instance, next_stage in run.feeds:
            aligner = self._runs[next_instance, next_stage].aligner
            passed = aligner.on_barrier(run.sender_number, epoch, mark)
            effects += self._aligned(next_instance, next_stage, passed)
        return effects + self._aligned(instance, stage, found)

    # Inside.

    def _build(self, last_epoch: Epoch, watermarks: Mapping[int, int]) -> None:
        topology = self.topology
        runs = [(i, s) for s, hosts in enumerate(self._hosts) for i in hosts]
        numbers = {run: place for place, run in enumerate(runs, start=1)}
        for instance, stage in runs:
            senders = [BOUNDARY] if topology.fed_by_source[stage] else []
            for feeder in topology.fed_by_stages[stage]:
                senders += [numbers[host, feeder] for host in self._hosts[feeder]]
            aligner = StageAligner(
                senders, last_epoch=last_epoch, watermark_us=watermarks.get(stage)
            )
            run = _StageRun(aligner, Epoch(last_epoch + 1))
            run.sender_number = numbers[instance, stage]
            self._runs[instance, stage] = run
        for instance, stage in runs:
            outputs = topology.stages[stage].outputs
            fed = {o.stage for o in outputs if o.stage is not None}
            self._runs[instance, stage].feeds = [r for r in runs if r[1] in fed]
            self._add_channels(instance, stage, numbers[instance, stage], outputs)
        for source in topology.sources:
            self._add_channels(source.name, -1, BOUNDARY, source.outputs)

    def _add_channels(
        self,
        owner: InstanceId | str,
        stage: int,
        sender: int,
        outputs: Sequence[OutputSpec],
    ) -> None:
        for number, spec in enumerate(outputs):
            if spec.stage is not None:
                targets = len(self._hosts[spec.stage])
            else:
                assert spec.sink is not None
                targets = self.topology.sinks[spec.sink].partitions
            group = _Output()
            for target in range(targets):
                channel = _Channel(
                    len(self._channels),
                    sender,
                    None if isinstance(owner, str) else owner,
                    owner if isinstance(owner, str) else "",
                    stage,
                    number,
                    target,
                    spec,
                    group,
                )
                group.channels.append(channel)
                self._channels.append(channel)
                self._by_sender[owner, stage, number, target] = channel

    def _run(self, instance: InstanceId, stage: int) -> _StageRun:
        run = self._runs.get((instance, stage))
        if run is None:
            raise ProtocolError("PROTOCOL", f"stage {stage} is not assigned here")
        return run

    def _source_outputs(self, source: str) -> tuple[OutputSpec, ...]:
        spec = self.topology.source_named(source)
        assert spec is not None, "sources are checked when they attach"
        return spec.outputs

    def _output(
        self, outputs: tuple[OutputSpec, ...], number: int, owner: str
    ) -> OutputSpec:
        if not 0 <= number < len(outputs):
            raise ProtocolError("PROTOCOL", f"{owner!r} has no output {number}")
        return outputs[number]

    def _route(
        self,
        sender: tuple[InstanceId | str, int],
        spec: OutputSpec,
        batch: SourceBatch,
        epoch: Epoch,
    ) -> list[Effect]:
        link = self._by_sender.get((*sender, batch.output, batch.target))
        if link is None:
            raise ProtocolError(
                "PROTOCOL", f"output {batch.output} has no target {batch.target}"
            )
        if link.group.is_ungrouped is None:
            link.group.is_ungrouped = batch.is_ungrouped
        if link.group.is_ungrouped != batch.is_ungrouped:
            raise ProtocolError(
                "PROTOCOL", f"output {batch.output}: some batches are grouped, some not"
            )
        if not batch.is_ungrouped:
            return self._send(sender, batch, epoch)
        if batch.target or (
            spec.stage is not None and not self.topology.stages[spec.stage].keyed
        ):
            raise ProtocolError(
                "PROTOCOL", f"output {batch.output}: there is nothing to group by"
            )
        if spec.stage is None:
            assert spec.sink is not None
            count = self.topology.sinks[spec.sink].partitions
            table: tuple[int, ...] = tuple(range(count))
        else:
            table = self.targets_of(spec.stage)
        effects: list[Effect] = []
        for target, count, records in self._split(batch.records, table):
            part = SourceBatch(batch.output, target, count, records)
            effects += self._send(sender, part, epoch)
        return effects

    def _send(
        self, sender: tuple[InstanceId | str, int], batch: SourceBatch, epoch: Epoch
    ) -> list[Effect]:
        channel = self._by_sender[(*sender, batch.output, batch.target)]
        if batch.count < 1:
            raise ProtocolError("PROTOCOL", "an empty batch")
        spec = channel.spec
        if spec.sink is not None:
            self._check(batch.records, batch.count)
            channel.consumed_records += batch.count
            channel.consumed_bytes += len(batch.records)
            output = OutputBatch(batch.count, batch.records, spec.input)
            return [
                ToSink(epoch, spec.sink, batch.target, output),
                *self._grant(channel),
            ]
        assert spec.stage is not None
        instance = self._hosts[spec.stage][batch.target]
        run = self._runs[instance, spec.stage]
        item = InputBatch(
            channel.sender, channel.number, spec.input, batch.count, batch.records
        )
        found = run.aligner.on_batch(item, epoch)
        return self._aligned(instance, spec.stage, found)

    def _aligned(
        self, instance: InstanceId, stage: int, found: Sequence[Forward | Align]
    ) -> list[Effect]:
        effects: list[Effect] = []
        for effect in found:
            if isinstance(effect, Forward):
                effects.append(ToStage(instance, stage, effect.batch))
            else:
                effects.append(BarrierTo(instance, stage, effect.epoch, effect.mark))
        return effects

    def _grant(self, channel: _Channel) -> list[Effect]:
        """Pass consumption on as credit, a quarter of a window at a time."""
        together = [channel]
        if channel.group.is_ungrouped:
            together = channel.group.channels
            channel = together[0]
        consumed_records = sum(c.consumed_records for c in together)
        consumed_bytes = sum(c.consumed_bytes for c in together)
        records = consumed_records - channel.granted_records
        size = consumed_bytes - channel.granted_bytes
        limits = self.limits
        if records * 4 < limits.credit_records and size * 4 < limits.credit_bytes:
            return []
        channel.granted_records = consumed_records
        channel.granted_bytes = consumed_bytes
        return [
            Grant(
                channel.instance,
                channel.source,
                channel.stage,
                channel.output,
                channel.target,
                limits.credit_records + consumed_records,
                limits.credit_bytes + consumed_bytes,
            )
        ]
