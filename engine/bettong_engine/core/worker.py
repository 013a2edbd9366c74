"""One worker: partitions, plugins and the epochs between them.

Holds the committed state of its partitions, runs the record paths of the current
generation, gathers what each epoch changed, and obeys the coordinator. A message of
an older generation changes nothing, whoever sends it.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from bettong_engine.core import delivery
from bettong_engine.core.boundary import (
    EndEpoch,
    Frame,
    SourceBatch,
    SourceBoundary,
    Stamp,
)
from bettong_engine.core.dataflow import (
    BarrierTo,
    CheckRecords,
    Dataflow,
    FlowLimits,
    Grant,
    SplitRecords,
    StageDone,
    ToSink,
    ToStage,
)
from bettong_engine.core.dataflow import Effect as FlowEffect
from bettong_engine.core.delivery import Delivery
from bettong_engine.core.delta import (
    EncodeDelta,
    OutputBatch,
    RowColumns,
    SinkDelta,
    StoredDelta,
    StreamState,
    TimerColumns,
)
from bettong_engine.core.effects import (
    DropInstance,
    Effect,
    EpochReport,
    FoundRow,
    HoldSource,
    NotifyCommitted,
    OpenStream,
    SendBarrier,
    SendRows,
    SendTimers,
    StoreDeltas,
    Tell,
    ToSinkPlugin,
    TruncateStore,
)
from bettong_engine.core.epochs import EpochLedger, OpenEpoch
from bettong_engine.core.ids import (
    Epoch,
    Generation,
    Incarnation,
    InstanceId,
    PartitionId,
    Term,
    WorkerId,
    partition_of,
    sink_home,
    stream_partition,
)
from bettong_engine.core.messages import (
    Cause,
    Committed,
    Cut,
    Finished,
    HoldSources,
    Install,
    Installed,
    NeedGeneration,
    NeedPause,
    Prepared,
    Probed,
    StartGeneration,
    ToWorker,
    WorkAvailable,
)
from bettong_engine.core.partition import Partition
from bettong_engine.core.resets import (
    reset_compute,
    reset_source,
    stream_targets,
    watermark_of,
)
from bettong_engine.core.sessions import ComputeSession, Sessions, SourceSession
from bettong_engine.core.timers import EVENT_TIME, PROCESSING_TIME
from bettong_engine.core.topology import Topology
from bettong_engine.errors import ProtocolError

# (records of the batch, index, sink, sequence, cause) -> a Records of one.
MakeDeadLetter = Callable[[bytes, int, str, int, Cause], bytes]


@dataclass(frozen=True, slots=True)
class WorkerLimits:
    """Bounds of a worker. Half of either of the first two asks for a cut.

    uncommitted_bytes_max: of frames in the open epoch. output_log_bytes_max: of
    outputs that targets do not have; at it no new read is let in.
    progress_delay_ms_max: how long a target's progress may wait to be recorded.
    """

    flow: FlowLimits = FlowLimits()
    uncommitted_bytes_max: int = 64 << 20
    output_log_bytes_max: int = 256 << 20
    progress_delay_ms_max: int = 1000


@dataclass(frozen=True, slots=True)
class WorkerPorts:
    """Pure functions over wire formats, which the core does not know."""

    encode_delta: EncodeDelta
    split_records: SplitRecords
    check_records: CheckRecords
    make_dead_letter: MakeDeadLetter


@dataclass(slots=True)
class _Run:
    """What exists from one Install to the next generation."""

    generation: Generation
    flow: Dataflow
    boundary: SourceBoundary
    ledger: EpochLedger
    unreset: set[InstanceId]
    is_installed: bool = False
    announced: Epoch | None = None
    is_announced_urgent: bool = False
    is_held_by_log: bool = False
    is_stopping: bool = False
    is_finished_told: bool = False


class Worker:
    """Invariant: nothing of an epoch is visible outside before its commit."""

    def __init__(
        self,
        worker: WorkerId,
        incarnation: Incarnation,
        topology: Topology,
        *,
        history: bytes,
        partitions: Sequence[Partition],
        limits: WorkerLimits,
        ports: WorkerPorts,
    ) -> None:
        self.id = worker
        self.incarnation = incarnation
        self.topology = topology
        self.history = history
        self.partitions = list(partitions)
        self.limits = limits
        self.ports = ports
        self.sessions = Sessions()
        self.deliveries: dict[tuple[int, int], Delivery] = {}
        # The fence: messages below it are dropped.
        self.term = Term(0)
        self.generation = Generation(0)
        self.committed_epoch = Epoch(0)
        self._run: _Run | None = None
        self._progress_since_ms: int | None = None
        self._now_ms = 0
        for number, sink in enumerate(topology.sinks):
            for place in range(sink.partitions):
                log = self._home(number, place).log_of(sink.name, place)
                self.deliveries[number, place] = Delivery(log, history)

    # Time.

    def wake_at_ms(self) -> int | None:
        """Return when `on_tick` is wanted, or None."""
        if self._progress_since_ms is None:
            return None
        return self._progress_since_ms + self.limits.progress_delay_ms_max

    def on_tick(self, now_ms: int) -> list[Effect]:
        """Do what is due. Processing-time timers count by the same clock."""
        self._now_ms = now_ms
        return self._settle()

    def next_timer_due_us(self) -> int | None:
        """Return when the first processing-time timer is due, or None."""
        due = [
            at
            for p in self.partitions
            for stage in self.topology.stages
            if stage.keyed
            and (at := p.timers_of(stage.name).next_due_us(PROCESSING_TIME)) is not None
        ]
        return min(due, default=None)

    # The coordinator.

    def on_coordinator(self, message: ToWorker) -> list[Effect]:
        """Obey a message of the coordinator, unless it is of an older generation."""
        if isinstance(message, StartGeneration):
            return self._start_generation(message)
        if message.generation != self.generation:
            return []
        match message:
            case Install():
                return self._install(message)
            case Cut():
                return self._cut(message)
            case Committed():
                return self._committed(message.epoch)
            case HoldSources():
                return self._hold_sources(message.reason)

    def on_stored(
        self, generation: Generation, epoch: Epoch, cpu_us: int
    ) -> list[Effect]:
        """Learn that an epoch's deltas are kept."""
        run = self._run
        if run is None or generation != run.generation:
            return []
        entry = run.ledger.of(epoch)
        cost = cpu_us + entry.flush_cpu_us
        return [Tell(Prepared(self.id, generation, epoch, entry.digests, cost))]

    # Plugins come and go.

    def on_compute_attached(
        self, instance: InstanceId, stages: Sequence[str]
    ) -> list[Effect]:
        """Use a computation from the next generation on, which it asks for."""
        numbers = []
        for name in stages:
            number = self.topology.stage_number(name)
            if number is None:
                raise ProtocolError("UNKNOWN_NAME", f"no stage is called {name!r}")
            numbers.append(number)
        self.sessions.computes[instance] = ComputeSession(instance, tuple(numbers))
        return self._need_generation("PLUGIN_JOINED", "a computation has attached")

    def on_source_attached(
        self, instance: InstanceId, source: str, *, is_local: bool
    ) -> list[Effect]:
        """Use this plugin as the source from now on."""
        if self.topology.source_named(source) is None:
            raise ProtocolError("UNKNOWN_NAME", f"no source is called {source!r}")
        effects: list[Effect] = []
        old = self.sessions.sources.get(source)
        if old is not None:
            effects += self._fenced(old.instance, f"source {source!r}")
            effects += self._need_generation("FENCED", f"source {source!r} is replaced")
        self.sessions.sources[source] = SourceSession(instance, is_local)
        if self._run is not None and old is None:
            effects += self._reset_source(self._run, source)
        return effects

    def on_sink_attached(self, instance: InstanceId, sink: str) -> list[Effect]:
        """Deliver to this plugin from now on."""
        number = self.topology.sink_number(sink)
        if number is None:
            raise ProtocolError("UNKNOWN_NAME", f"no sink is called {sink!r}")
        effects: list[Effect] = []
        old = self.sessions.sinks.get(number)
        self.sessions.sinks[number] = instance
        if old is not None:
            effects += self._fenced(old, f"sink {sink!r}")
            effects += self._need_generation("FENCED", f"sink {sink!r} is replaced")
        for (owner, _), target in self.deliveries.items():
            if owner == number:
                opened = target.on_attached(instance, self.generation)
                if self._run is not None and old is None:
                    effects += self._delivery(owner, target, opened)
        return effects

    def on_lost(self, instance: InstanceId, cause: Cause) -> list[Effect]:
        """Go on without a plugin's stream: a new generation undoes what it half did."""
        if self.sessions.computes.pop(instance, None) is not None:
            return [Tell(NeedGeneration(self.id, cause))]
        source = self.sessions.source_of(instance)
        if source is not None:
            del self.sessions.sources[source]
            return [Tell(NeedGeneration(self.id, cause))]
        sink = self.sessions.sink_of(instance)
        if sink is not None:
            del self.sessions.sinks[sink]
            for (owner, _), target in self.deliveries.items():
                if owner == sink:
                    target.on_lost()
            return [Tell(NeedGeneration(self.id, cause))]
        return []

    def on_pause_wanted(self, cause: Cause) -> list[Effect]:
        """Ask for a pause: a plugin or the runtime met what only a person can mend."""
        return [Tell(NeedPause(self.id, self.generation, cause))]

    # Sources.

    def on_streams_found(
        self, instance: InstanceId, streams: Iterable[str], *, is_complete: bool
    ) -> list[Effect]:
        """Open the streams that a source names for the first time."""
        name = self._source_name(instance)
        if name is None:
            return []
        session = self.sessions.sources[name]
        fresh = [s for s in streams if s not in session.found]
        session.found.update(dict.fromkeys(fresh))
        session.is_complete = session.is_complete or is_complete
        is_first, session.is_listed = not session.is_listed, True
        run = self._run
        if run is None:
            return []
        effects: list[Effect] = []
        for stream in fresh:
            if not run.boundary.knows(name, stream):
                run.boundary.appear(name, stream, is_local=session.is_local)
                state = StreamState(name, stream)
                targets = self._stream_targets(run, name, stream)
                effects.append(OpenStream(instance, run.generation, state, targets))
        if is_first and session.is_local:
            effects += self._end_unnamed(run, name)
        run.boundary.add_source(name, is_complete=session.is_complete)
        return effects + self._settle()

    def on_frame(
        self, instance: InstanceId, generation: Generation, frame: Frame
    ) -> list[Effect]:
        """Take a frame of a source into the open epoch."""
        run, name = self._run, self._source_name(instance)
        if run is None or name is None or generation != run.generation:
            return []
        effects = self._boundary(run, run.boundary.on_frame(name, frame))
        return effects + self._settle()

    # Computations.

    def on_compute_reset(
        self, instance: InstanceId, generation: Generation
    ) -> list[Effect]:
        """Learn that a computation is ready for the generation."""
        run = self._run
        if run is None or generation != run.generation:
            return []
        run.unreset.discard(instance)
        return self._installed_if_ready(run)

    def on_stage_output(
        self,
        instance: InstanceId,
        generation: Generation,
        stage: int,
        batch: SourceBatch,
    ) -> list[Effect]:
        """Route a batch that a stage has put out."""
        run = self._run
        if run is None or generation != run.generation:
            return []
        found = run.flow.on_stage_output(instance, stage, batch)
        return self._flow(run, found)

    def on_consumed(
        self, instance: InstanceId, channel: int, records: int, size: int
    ) -> list[Effect]:
        """Return credit for what an instance has consumed.

        Before its answer to the reset, it speaks of the generation before.
        """
        run = self._run
        if run is None or instance in run.unreset:
            return []
        return self._flow(run, run.flow.on_consumed(instance, channel, records, size))

    def on_state_get(
        self,
        instance: InstanceId,
        generation: Generation,
        request: int,
        stage: int,
        wanted: Sequence[tuple[int, bytes, bytes]],
        *,
        all_entries: bool = False,
    ) -> list[Effect]:
        """Answer with the newest rows of (state, key, entry), in order."""
        run = self._run
        if run is None or generation != run.generation:
            return []
        name = self._stage_name(stage)
        rows: list[FoundRow] = []
        for state, key, entry in wanted:
            place = self._owned_partition(run, instance, stage, key)
            if all_entries:
                entries = self.partitions[place].entries_of(name, state, key)
                rows += [FoundRow(state, key, e, row) for e, row in entries.items()]
            else:
                row = self.partitions[place].row_of(name, state, key, entry)
                rows.append(FoundRow(state, key, entry, row))
        return [SendRows(instance, generation, request, rows)]

    def on_delta(
        self,
        instance: InstanceId,
        generation: Generation,
        epoch: Epoch,
        stage: int,
        parts: Iterable[tuple[int, RowColumns | None, TimerColumns | None]],
    ) -> list[Effect]:
        """Take a piece of what an epoch changed in a stage."""
        run = self._run
        if run is None or generation != run.generation:
            return []
        name = self._stage_name(stage)
        entry = run.ledger.of(epoch)
        if (instance, stage) not in entry.awaited or not entry.is_ended:
            raise ProtocolError("PROTOCOL", f"delta of epoch {epoch} out of place")
        for partition, rows, timers in parts:
            if (
                not 0 <= partition < self.topology.partitions
                or run.flow.owner_of(stage, partition) != instance
            ):
                raise ProtocolError(
                    "PROTOCOL", f"delta for partition {partition}, which is not its own"
                )
            self.partitions[partition].on_stage_rows(epoch, name, rows, timers)
            entry.touched.add(partition)
        return []

    def on_barrier_ack(
        self,
        instance: InstanceId,
        generation: Generation,
        epoch: Epoch,
        stage: int,
        flush_cpu_us: int,
    ) -> list[Effect]:
        """Learn that a stage has finished an epoch."""
        run = self._run
        if run is None or generation != run.generation:
            return []
        entry = run.ledger.of(epoch)
        entry.flush_cpu_us += flush_cpu_us
        found = run.flow.on_stage_ack(instance, stage, epoch)
        return self._flow(run, found) + self._prepare_complete(run) + self._settle()

    # Sinks.

    def on_sink_opened(
        self,
        instance: InstanceId,
        sink_partition: int,
        generation: Generation,
        position: tuple[bytes, int] | None,
    ) -> list[Effect]:
        """Learn where a target stands."""
        return self._on_sink(
            instance, sink_partition, lambda d: d.on_opened(generation, position)
        )

    def on_progress(
        self,
        instance: InstanceId,
        sink_partition: int,
        generation: Generation,
        sequence: int,
    ) -> list[Effect]:
        """Learn what a target has made durable."""
        return self._on_sink(
            instance, sink_partition, lambda d: d.on_progress(generation, sequence)
        )

    def on_refused(
        self,
        instance: InstanceId,
        sink_partition: int,
        generation: Generation,
        sequence: int,
        cause: Cause,
    ) -> list[Effect]:
        """Learn that a target refuses an output for good."""
        return self._on_sink(
            instance,
            sink_partition,
            lambda d: d.on_refused(generation, sequence, cause),
        )

    def on_sink_error(
        self,
        instance: InstanceId,
        sink_partition: int,
        generation: Generation,
        cause: Cause,
        *,
        is_retryable: bool,
    ) -> list[Effect]:
        """Learn that a target is in trouble."""
        return self._on_sink(
            instance,
            sink_partition,
            lambda d: d.on_error(generation, cause, is_retryable=is_retryable),
        )

    # Inside: the generation protocol.

    def _start_generation(self, message: StartGeneration) -> list[Effect]:
        """Raise the fence and, in the same step, go back to the committed epoch.

        A late message of a generation that has begun already truncates nothing.
        """
        if (message.term, message.generation) <= (self.term, self.generation):
            return []
        self.term, self.generation = message.term, message.generation
        if self._run is not None:
            for number in range(self.committed_epoch + 1, message.epoch + 1):
                entry = self._run.ledger.close(Epoch(number))
                self._forget_streams(entry.streams if entry else ())
        self._run = None
        self._progress_since_ms = None
        in_sync = []
        for partition, digest in zip(self.partitions, message.digests, strict=True):
            if partition.digest_at(message.epoch) == digest:
                partition.commit(message.epoch)
                in_sync.append(True)
            else:
                in_sync.append(partition.digest == digest)
            partition.drop_open()
        self.committed_epoch = message.epoch
        missing = self.sessions.missing_stages(len(self.topology.stages))
        names = tuple(self.topology.stages[s].name for s in missing)
        answer = Probed(
            self.id, self.incarnation, self.generation, tuple(in_sync), names
        )
        return [TruncateStore(message.epoch), Tell(answer)]

    def _install(self, message: Install) -> list[Effect]:
        if self.sessions.missing_stages(len(self.topology.stages)):
            return []  # What was lost has asked for the next generation.
        topology = self.topology
        flow = Dataflow(
            topology,
            self.sessions.compute_hosts(),
            last_epoch=message.epoch,
            watermarks={
                number: mark
                for number, stage in enumerate(topology.stages)
                if (mark := watermark_of(self.partitions, stage.name)) is not None
            },
            limits=self.limits.flow,
            split=self.ports.split_records,
            check=self.ports.check_records,
        )
        ledger = EpochLedger(flow.stage_runs())
        run = self._run = _Run(
            message.generation,
            flow,
            SourceBoundary(Epoch(message.epoch + 1)),
            ledger,
            {instance for instance, _ in flow.stage_runs()},
        )
        effects: list[Effect] = [
            reset_compute(
                flow,
                self.partitions,
                instance,
                generation=message.generation,
                epoch=message.epoch,
                processing_time_us=message.processing_time_us,
            )
            for instance in sorted(run.unreset)
        ]
        for source in topology.sources:
            self._fill_boundary(run, source.name)
            if source.name in self.sessions.sources:
                effects += self._reset_source(run, source.name)
        for (sink, _), target in self.deliveries.items():
            opened = target.on_generation(message.generation)
            effects += self._delivery(sink, target, opened)
        return effects + self._installed_if_ready(run)

    def _installed_if_ready(self, run: _Run) -> list[Effect]:
        if run.unreset or run.is_installed:
            return []
        run.is_installed = True
        return [Tell(Installed(self.id, run.generation)), *self._settle()]

    def _cut(self, message: Cut) -> list[Effect]:
        run = self._run
        if run is None or message.epoch != run.boundary.open_epoch:
            return []
        run.ledger.of(message.epoch).processing_time_us = message.processing_time_us
        return self._boundary(run, run.boundary.ask_cut()) + self._settle()

    def _committed(self, epoch: Epoch) -> list[Effect]:
        run = self._run
        if run is None or epoch <= self.committed_epoch:
            return []
        effects: list[Effect] = []
        for number in range(self.committed_epoch + 1, epoch + 1):
            entry = run.ledger.close(Epoch(number))
            assert entry is not None and entry.is_prepared, "commit before prepare"
            effects += self._release(run, entry)
        self.committed_epoch = epoch
        return effects + self._settle()

    def _release(self, run: _Run, entry: OpenEpoch) -> list[Effect]:
        """Merge a committed epoch; outputs and positions become visible."""
        for partition in sorted(entry.digests):
            self.partitions[partition].commit(entry.epoch)
        effects: list[Effect] = []
        for (sink, _), target in self.deliveries.items():
            effects += self._delivery(sink, target, target.on_committed())
        self._forget_streams(entry.streams)
        for name, session in self.sessions.sources.items():
            streams = tuple(s for s in entry.streams if s.source == name)
            if streams:
                effects.append(NotifyCommitted(session.instance, entry.epoch, streams))
        batches = [b for found in entry.outputs.values() for b in found]
        effects.append(
            EpochReport(
                run.generation,
                entry.epoch,
                entry.opened_ms,
                entry.flush_cpu_us,
                entry.records_read,
                sum(b.count for b in batches),
                entry.output_bytes,
            )
        )
        return effects

    def _hold_sources(self, reason: str) -> list[Effect]:
        if self._run is None:
            return []
        self._run.is_stopping = True
        return self._set_hold(self._run, reason)

    # Inside: sources.

    def _fill_boundary(self, run: _Run, source: str) -> None:
        session = self.sessions.sources.get(source)
        spec = self.topology.source_named(source)
        assert spec is not None
        for state in self._committed_streams(source):
            run.boundary.add_stream(state, is_local=spec.is_local)
        if session is None:
            run.boundary.add_source(source)
            return
        for stream in session.found:
            if not run.boundary.knows(source, stream):
                run.boundary.appear(source, stream, is_local=spec.is_local)
        run.boundary.add_source(source, is_complete=session.is_complete)

    def _reset_source(self, run: _Run, source: str) -> list[Effect]:
        session = self.sessions.sources[source]
        spec = self.topology.source_named(source)
        assert spec is not None
        streams = self._committed_streams(source)
        known = {s.stream for s in streams}
        streams += [StreamState(source, s) for s in session.found if s not in known]
        effects: list[Effect] = [
            reset_source(
                run.flow,
                session.instance,
                spec.outputs,
                streams,
                generation=run.generation,
                epoch=self.committed_epoch,
            )
        ]
        if session.is_listed and session.is_local:
            effects += self._end_unnamed(run, source)
        if run.is_stopping or run.is_held_by_log:
            effects.append(HoldSource(session.instance, True, "held"))
        return effects

    def _end_unnamed(self, run: _Run, source: str) -> list[Effect]:
        """End the local streams that their source, attached anew, does not name."""
        found = self.sessions.sources[source].found
        effects: list[Effect] = []
        for stream in run.boundary.open_streams(source):
            if stream not in found:
                ended = run.boundary.end_stream(source, stream)
                effects += self._boundary(run, ended)
        return effects

    def _committed_streams(self, source: str) -> list[StreamState]:
        return [
            state
            for partition in self.partitions
            for state in partition.streams.values()
            if state.source == source
        ]

    def _stream_targets(self, run: _Run, source: str, stream: str) -> tuple[int, ...]:
        spec = self.topology.source_named(source)
        assert spec is not None
        return stream_targets(run.flow, spec.outputs, source, stream)

    def _forget_streams(self, streams: Iterable[StreamState]) -> None:
        """Drop local streams whose end is committed from what sources named."""
        for state in streams:
            session = self.sessions.sources.get(state.source)
            if state.is_forgotten and session is not None:
                session.found.pop(state.stream, None)

    def _source_name(self, instance: InstanceId) -> str | None:
        return self.sessions.source_of(instance)

    # Inside: effects of the parts.

    def _boundary(self, run: _Run, found: Sequence[Stamp | EndEpoch]) -> list[Effect]:
        effects: list[Effect] = []
        for item in found:
            entry = run.ledger.of(item.epoch)
            if isinstance(item, Stamp):
                if entry.opened_ms is None:
                    entry.opened_ms = self._now_ms
                entry.records_read += item.frame.records_read
                for batch in item.frame.batches:
                    flow = run.flow.on_source_batch(item.source, batch, item.epoch)
                    effects += self._flow(run, flow)
            else:
                entry.is_ended = True
                entry.streams = item.streams
                marks = {
                    number: run.boundary.mark_of(self._feeders(number))
                    for number, fed in enumerate(self.topology.fed_by_source)
                    if fed
                }
                effects += self._flow(run, run.flow.on_boundary_end(item.epoch, marks))
                effects += self._prepare_complete(run)
        return effects

    def _feeders(self, stage: int) -> list[str]:
        return [
            source.name
            for source in self.topology.sources
            if any(o.stage == stage for o in source.outputs)
        ]

    def _flow(self, run: _Run, found: Sequence[FlowEffect]) -> list[Effect]:
        effects: list[Effect] = []
        for item in found:
            match item:
                case ToStage() | Grant():
                    effects.append(item)
                case ToSink():
                    entry = run.ledger.of(item.epoch)
                    place = (item.sink, item.sink_partition)
                    entry.outputs.setdefault(place, []).append(item.batch)
                    entry.output_bytes += len(item.batch.records)
                case BarrierTo():
                    effects += self._barrier(run, item)
                case StageDone():
                    run.ledger.of(item.epoch).awaited.discard(
                        (item.instance, item.stage)
                    )
        return effects

    def _barrier(self, run: _Run, item: BarrierTo) -> list[Effect]:
        entry = run.ledger.of(item.epoch)
        stage = self.topology.stages[item.stage]
        mark = item.mark
        if mark.watermark_us is not None:
            entry.watermarks[stage.name] = mark.watermark_us
        where = (item.instance, run.generation, item.stage, item.epoch)
        effects: list[Effect] = []
        if stage.keyed:
            owned = run.flow.partitions_of(item.instance, item.stage)
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
            timers = self.partitions[number].timers_of(stage)
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

    def _prepare_complete(self, run: _Run) -> list[Effect]:
        effects: list[Effect] = []
        for entry in run.ledger.take_complete():
            deltas = self._prepare(run, entry)
            effects.append(StoreDeltas(run.generation, entry.epoch, tuple(deltas)))
        return effects

    def _prepare(self, run: _Run, entry: OpenEpoch) -> list[StoredDelta]:
        """Close the delta of every partition that the epoch changed."""
        count = self.topology.partitions
        streams: dict[int, list[StreamState]] = {}
        for state in entry.streams:
            home = stream_partition(state.source, state.stream, count)
            streams.setdefault(home, []).append(state)
        sinks: dict[int, list[SinkDelta]] = {}
        for place, target in self.deliveries.items():
            marks = tuple(entry.skipped.get(place, ()))
            delta = target.log.prepare(entry.outputs.get(place, []), marks)
            if delta is not None:
                home = sink_home(target.log.sink, target.log.sink_partition, count)
                sinks.setdefault(home, []).append(delta)
        self._progress_since_ms = None
        deltas: list[StoredDelta] = []
        for number in sorted({*entry.touched, *streams, *sinks}):
            stored = self.partitions[number].prepare(
                entry.epoch,
                run.generation,
                streams=streams.get(number, []),
                sinks=sinks.get(number, []),
                watermarks=entry.watermarks,
                encode=self.ports.encode_delta,
            )
            entry.digests[number] = stored.digest
            deltas.append(stored)
        return deltas

    def _on_sink(
        self,
        instance: InstanceId,
        sink_partition: int,
        event: Callable[[Delivery], list[delivery.Effect]],
    ) -> list[Effect]:
        sink = self.sessions.sink_of(instance)
        if sink is None or self._run is None:
            return []
        target = self.deliveries.get((sink, sink_partition))
        if target is None:
            raise ProtocolError(
                "PROTOCOL",
                f"sink {self.topology.sinks[sink].name!r} has no sink partition"
                f" {sink_partition}",
            )
        return self._delivery(sink, target, event(target)) + self._settle()

    def _delivery(
        self, sink: int, target: Delivery, found: Sequence[delivery.Effect]
    ) -> list[Effect]:
        effects: list[Effect] = []
        for item in found:
            if isinstance(item, delivery.Quarantine):
                effects += self._quarantine(sink, target, item)
            elif isinstance(item, delivery.Blocked):
                effects += self.on_pause_wanted(item.cause)
            else:
                effects.append(ToSinkPlugin(item))
        return effects

    def _quarantine(
        self, sink: int, target: Delivery, item: delivery.Quarantine
    ) -> list[Effect]:
        """Make a dead letter of a refused output, in the open epoch, with its mark."""
        dead = self.topology.dead_letter_sink
        if dead is None or dead == sink or self._run is None:
            return self.on_pause_wanted(item.cause)
        numbered = target.log.batch_of(item.sequence)
        assert numbered is not None, "a delivery quarantines what it has sent"
        record = self.ports.make_dead_letter(
            numbered.batch.records,
            item.sequence - numbered.first_sequence,
            target.log.sink,
            item.sequence,
            item.cause,
        )
        entry = self._run.ledger.of(self._run.boundary.open_epoch)
        entry.outputs.setdefault((dead, 0), []).append(OutputBatch(1, record))
        entry.output_bytes += len(record)
        place = (sink, target.log.sink_partition)
        entry.skipped.setdefault(place, []).append(item.sequence)
        return []

    # Inside: what follows from every event.

    def _settle(self) -> list[Effect]:
        """Announce work, hold or release sources, and notice the end."""
        run = self._run
        if run is None or not run.is_installed:
            return []
        return [*self._hold_by_log(run), *self._announce(run), *self._finish(run)]

    def _log_bytes(self, run: _Run) -> int:
        logs = sum(d.log.bytes for d in self.deliveries.values())
        return logs + run.ledger.output_bytes

    def _hold_by_log(self, run: _Run) -> list[Effect]:
        is_full = self._log_bytes(run) >= self.limits.output_log_bytes_max
        if is_full == run.is_held_by_log:
            return []
        run.is_held_by_log = is_full
        return self._set_hold(run, "a sink is behind: its output log is full")

    def _set_hold(self, run: _Run, reason: str) -> list[Effect]:
        is_held = run.is_held_by_log or run.is_stopping
        effects: list[Effect] = [
            HoldSource(session.instance, is_held, reason)
            for session in self.sessions.sources.values()
        ]
        return effects + self._boundary(run, run.boundary.hold(is_held))

    def _announce(self, run: _Run) -> list[Effect]:
        epoch = run.boundary.open_epoch
        half_log = self.limits.output_log_bytes_max // 2
        is_log_half_full = self._log_bytes(run) >= half_log
        is_urgent = run.boundary.open_bytes * 2 >= self.limits.uncommitted_bytes_max
        if run.announced == epoch and (run.is_announced_urgent or not is_urgent):
            return []
        if not (
            run.boundary.has_work()
            or run.ledger.of(epoch).skipped
            or self._has_progress_due(is_log_half_full)
            or self._has_timer_due()
        ):
            return []
        run.announced, run.is_announced_urgent = epoch, is_urgent
        return [Tell(WorkAvailable(self.id, run.generation, epoch, is_urgent))]

    def _has_progress_due(self, is_log_half_full: bool) -> bool:
        if not any(d.log.has_unrecorded_progress() for d in self.deliveries.values()):
            self._progress_since_ms = None
            return False
        if self._progress_since_ms is None:
            self._progress_since_ms = self._now_ms
        waited = self._now_ms - self._progress_since_ms
        return is_log_half_full or waited >= self.limits.progress_delay_ms_max

    def _has_timer_due(self) -> bool:
        due_us = self.next_timer_due_us()
        return due_us is not None and due_us <= self._now_ms * 1000

    def _finish(self, run: _Run) -> list[Effect]:
        if (
            run.is_finished_told
            or not run.boundary.is_exhausted()
            or run.boundary.has_work()
            or run.boundary.open_epoch != self.committed_epoch + 1
            or run.ledger.of(run.boundary.open_epoch).skipped
            or self._has_timer_due()
            or not all(d.has_delivered_all for d in self.deliveries.values())
        ):
            return []
        run.is_finished_told = True
        return [Tell(Finished(self.id, run.generation))]

    # Inside: small things.

    def _need_generation(self, code: str, message: str) -> list[Effect]:
        return [Tell(NeedGeneration(self.id, Cause(code, message)))]

    def _fenced(self, instance: InstanceId, what: str) -> list[Effect]:
        cause = Cause("FENCED", f"{what} is served by a newer plugin")
        return [DropInstance(instance, cause)]

    def _home(self, sink: int, sink_partition: int) -> Partition:
        name = self.topology.sinks[sink].name
        number = sink_home(name, sink_partition, self.topology.partitions)
        return self.partitions[number]

    def _stage_name(self, stage: int) -> str:
        if not 0 <= stage < len(self.topology.stages):
            raise ProtocolError("PROTOCOL", f"there is no stage {stage}")
        return self.topology.stages[stage].name

    def _owned_partition(
        self, run: _Run, instance: InstanceId, stage: int, key: bytes
    ) -> PartitionId:
        place = partition_of(key, self.topology.partitions)
        if run.flow.owner_of(stage, place) != instance:
            raise ProtocolError(
                "PROTOCOL", f"state of partition {place}, which is not its own"
            )
        return place
