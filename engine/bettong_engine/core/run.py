"""One generation of a worker: its record paths, and the epochs that run on them.

Turns what the source boundary and the dataflow decide into effects, and closes the
delta of each epoch that has become complete. Nothing is carried over to the next
generation but what was prepared.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager

from bettong_engine.core.boundary import EndEpoch, SourceBoundary, Stamp
from bettong_engine.core.dataflow import (
    BarrierTo,
    Dataflow,
    Grant,
    StageDone,
    ToSink,
    ToStage,
)
from bettong_engine.core.dataflow import Effect as FlowEffect
from bettong_engine.core.delta import (
    EncodeDelta,
    SinkDelta,
    StoredDelta,
    StreamState,
    TimerColumns,
)
from bettong_engine.core.effects import Effect, SendBarrier, SendTimers, StoreDeltas
from bettong_engine.core.epochs import EpochLedger, OpenEpoch
from bettong_engine.core.ids import (
    Epoch,
    Generation,
    InstanceId,
    partition_of,
    sink_home,
    stream_partition,
)
from bettong_engine.core.output_log import OutputLog
from bettong_engine.core.partition import Partition
from bettong_engine.core.resets import watermark_of
from bettong_engine.core.timers import EVENT_TIME, PROCESSING_TIME
from bettong_engine.core.topology import Topology
from bettong_engine.errors import ProtocolError


class Run:
    """What exists from one Install to the next generation.

    Invariant: once `is_broken`, no further epoch is prepared: something of an open
    epoch may be missing, and only the next generation can redo it.
    """

    def __init__(
        self,
        generation: Generation,
        flow: Dataflow,
        partitions: Sequence[Partition],
        logs: Mapping[tuple[int, int], OutputLog],
        *,
        last_epoch: Epoch,
        encode: EncodeDelta,
    ) -> None:
        self.generation = generation
        self.flow = flow
        self.boundary = SourceBoundary(Epoch(last_epoch + 1), feeders_of(flow.topology))
        self.ledger = EpochLedger(flow.stage_runs())
        # Computations that have not answered the reset.
        self.unreset = {instance for instance, _ in flow.stage_runs()}
        # The plugins that serve each source and sink in this generation; a later
        # one has to wait for the next, which fences off what the first still does.
        self.source_plugins: dict[str, InstanceId] = {}
        self.sink_plugins: dict[int, InstanceId] = {}
        self.is_installed = False
        self.is_broken = False
        self._topology = flow.topology
        self._partitions = partitions
        self._logs = logs
        self._encode = encode
        # The highest watermark of each stage that some delta holds.
        self._kept_watermarks = {
            stage.name: watermark_of(partitions, stage.name)
            for stage in flow.topology.stages
        }

    @contextmanager
    def broken_by_error(self) -> Iterator[None]:
        """Mark the run as broken if an event is refused when it is half done."""
        try:
            yield
        except ProtocolError:
            self.is_broken = True
            raise

    def on_cut(
        self, epoch: Epoch, processing_time_us: int, now_ms: int
    ) -> list[Effect]:
        """End an epoch at the source boundary, as soon as no read is under way."""
        if epoch < self.boundary.open_epoch:
            return []
        self.ledger.of(epoch).processing_time_us = processing_time_us
        return self.on_boundary(self.boundary.ask_cut(epoch), now_ms)

    def on_boundary(
        self, found: Sequence[Stamp | EndEpoch], now_ms: int
    ) -> list[Effect]:
        """Do what the source boundary has decided, in order."""
        effects: list[Effect] = []
        for item in found:
            entry = self.ledger.of(item.epoch)
            if isinstance(item, Stamp):
                if entry.opened_ms is None:
                    entry.opened_ms = now_ms
                entry.records_read += item.frame.records_read
                entry.records_skipped += item.frame.records_skipped
                for batch in item.frame.batches:
                    routed = self.flow.on_source_batch(item.source, batch, item.epoch)
                    effects += self.on_flow(routed)
            else:
                entry.is_ended = True
                entry.streams = item.streams
                ended = self.flow.on_boundary_end(item.epoch, item.marks)
                effects += self.on_flow(ended)
                effects += self.prepare_complete()
        return effects

    def on_flow(self, found: Sequence[FlowEffect]) -> list[Effect]:
        """Do what the dataflow has decided, in order."""
        effects: list[Effect] = []
        for item in found:
            match item:
                case ToStage() | Grant():
                    effects.append(item)
                case ToSink():
                    place = (item.sink, item.sink_partition)
                    self.ledger.of(item.epoch).add_output(place, item.batch)
                case BarrierTo():
                    effects += self._barrier(item)
                case StageDone():
                    done = (item.instance, item.stage)
                    self.ledger.of(item.epoch).awaited.discard(done)
        return effects

    def prepare_complete(self) -> list[Effect]:
        """Close and store the deltas of the epochs that have become complete."""
        if self.is_broken:
            return []
        return [
            StoreDeltas(self.generation, entry.epoch, tuple(self._prepare(entry)))
            for entry in self.ledger.take_complete()
        ]

    def _barrier(self, item: BarrierTo) -> list[Effect]:
        entry = self.ledger.of(item.epoch)
        stage = self._topology.stages[item.stage]
        mark = item.mark
        if mark.watermark_us is not None:
            entry.watermarks[stage.name] = mark.watermark_us
        where = (item.instance, self.generation, item.stage, item.epoch)
        effects: list[Effect] = []
        if stage.keyed:
            owned = self.flow.partitions_of(item.instance, item.stage)
            due = self._due(
                stage.name, owned, mark.watermark_us, entry.processing_time_us
            )
            if due is not None:
                effects.append(SendTimers(*where, due))
        barrier = SendBarrier(
            *where, mark.watermark_us, mark.is_idle, entry.processing_time_us
        )
        return [*effects, barrier]

    def _due(
        self,
        stage: str,
        partitions: Iterable[int],
        watermark_us: int | None,
        processing_time_us: int,
    ) -> TimerColumns | None:
        found: list[tuple[int, bytes, str, int]] = []
        for number in partitions:
            timers = self._partitions[number].timers_of(stage)
            if watermark_us is not None:
                for due, key, name in timers.due(EVENT_TIME, watermark_us):
                    found.append((due, key, name, EVENT_TIME))
            for due, key, name in timers.due(PROCESSING_TIME, processing_time_us):
                found.append((due, key, name, PROCESSING_TIME))
        if not found:
            return None
        found.sort()
        return TimerColumns(
            keys=[key for _, key, _, _ in found],
            names=[name for _, _, name, _ in found],
            kinds=[kind for _, _, _, kind in found],
            due_us=[due for due, _, _, _ in found],
        )

    def _prepare(self, entry: OpenEpoch) -> list[StoredDelta]:
        """Close the delta of every partition that the epoch changed."""
        count = self._topology.partitions
        streams: dict[int, list[StreamState]] = {}
        for state in entry.streams:
            home = stream_partition(state.source, state.stream, count)
            streams.setdefault(home, []).append(state)
        sinks: dict[int, list[SinkDelta]] = {}
        for place, log in self._logs.items():
            marks = tuple(entry.skipped.get(place, ()))
            delta = log.prepare(entry.outputs.get(place, []), marks)
            if delta is not None:
                home = sink_home(log.sink, log.sink_partition, count)
                sinks.setdefault(home, []).append(delta)
        self._keep_watermarks(entry)
        deltas: list[StoredDelta] = []
        for number in sorted({*entry.touched, *streams, *sinks}):
            stored = self._partitions[number].prepare(
                entry.epoch,
                self.generation,
                streams=streams.get(number, []),
                sinks=sinks.get(number, []),
                watermarks=entry.watermarks,
                encode=self._encode,
            )
            entry.digests[number] = stored.digest
            deltas.append(stored)
        return deltas

    def _keep_watermarks(self, entry: OpenEpoch) -> None:
        """See to it that a watermark that rose is in some delta, rows or not."""
        for stage, watermark_us in entry.watermarks.items():
            if self._kept_watermarks[stage] == watermark_us:
                continue
            self._kept_watermarks[stage] = watermark_us
            if stage in entry.touched_stages:
                continue
            home = partition_of(f"stage/{stage}".encode(), self._topology.partitions)
            self._partitions[home].on_stage_rows(entry.epoch, stage, None, None)
            entry.touched.add(home)


def feeders_of(topology: Topology) -> dict[int, list[str]]:
    """Return the sources that feed each stage, for stages that have some."""
    return {
        number: [
            source.name
            for source in topology.sources
            if any(output.stage == number for output in source.outputs)
        ]
        for number, is_fed in enumerate(topology.fed_by_source)
        if is_fed
    }
