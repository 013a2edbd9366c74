"""One worker: partitions, plugins and the epochs between them.

Holds committed state, runs the current generation, and obeys the coordinator. A
message of an older generation changes nothing, whoever sends it.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from bettong_engine.core import delivery
from bettong_engine.core.boundary import Frame, SourceBatch
from bettong_engine.core.dataflow import CheckRecords, Dataflow, SplitRecords
from bettong_engine.core.delivery import Delivery
from bettong_engine.core.delta import EncodeDelta, RowColumns, TimerColumns
from bettong_engine.core.effects import (
    DropInstance,
    Effect,
    EpochReport,
    NotifyCommitted,
    OpenStream,
    SendRows,
    Tell,
    TruncateStore,
)
from bettong_engine.core.epochs import OpenEpoch
from bettong_engine.core.ids import (
    Epoch,
    Generation,
    Incarnation,
    InstanceId,
    Term,
    WorkerId,
)
from bettong_engine.core.limits import WorkerLimits
from bettong_engine.core.lookups import find_rows
from bettong_engine.core.messages import (
    Cause,
    Committed,
    Cut,
    HoldSources,
    Install,
    Installed,
    NeedGeneration,
    Prepared,
    Probed,
    StartGeneration,
    ToWorker,
)
from bettong_engine.core.partition import Partition
from bettong_engine.core.resets import reset_compute, watermark_of
from bettong_engine.core.run import Run
from bettong_engine.core.sessions import ComputeSession, Sessions, SourceSession
from bettong_engine.core.sink_desk import MakeDeadLetter, SinkDesk
from bettong_engine.core.source_desk import SourceDesk
from bettong_engine.core.topology import Topology
from bettong_engine.core.work_watch import WorkWatch
from bettong_engine.errors import ProtocolError


@dataclass(frozen=True, slots=True)
class WorkerPorts:
    """Pure functions over wire formats, which the core does not know."""

    encode_delta: EncodeDelta
    split_records: SplitRecords
    check_records: CheckRecords
    make_dead_letter: MakeDeadLetter


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
        # The fence: messages below it are dropped.
        self.term = Term(0)
        self.generation = Generation(0)
        self.committed_epoch = Epoch(0)
        self._sources = SourceDesk(topology, self.partitions, self.sessions)
        self._sinks = SinkDesk(
            worker,
            topology,
            self.partitions,
            history=history,
            make_dead_letter=ports.make_dead_letter,
        )
        self._run: Run | None = None
        self._watch = WorkWatch(
            worker, topology, self.partitions, self._sinks, limits=limits
        )
        self._now_ms = 0

    @property
    def deliveries(self) -> dict[tuple[int, int], Delivery]:
        """The deliveries by (sink, sink partition), for status."""
        return self._sinks.deliveries

    # Time.

    def wake_at_ms(self) -> int | None:
        """Return when `on_tick` is wanted, or None."""
        return self._watch.wake_at_ms()

    def on_tick(self, now_ms: int) -> list[Effect]:
        """Do what is due. Processing-time timers count by the same clock."""
        self._now_ms = now_ms
        return self._settle()

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
                return self._watch.stop(self._run, message.reason, self._now_ms)

    def on_stored(
        self, generation: Generation, epoch: Epoch, cpu_us: int
    ) -> list[Effect]:
        """Learn that an epoch's deltas are kept."""
        run = self._run_of(generation)
        if run is None:
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
        return self._need_generation("UNSPECIFIED", "a computation has attached")

    def on_source_attached(
        self, instance: InstanceId, source: str, *, is_local: bool
    ) -> list[Effect]:
        """Use this plugin as the source: at once if it is the generation's first."""
        spec = self.topology.source_named(source)
        if spec is None:
            raise ProtocolError("UNKNOWN_NAME", f"no source is called {source!r}")
        if spec.is_local != is_local:
            raise ProtocolError(
                "PROTOCOL", f"source {source!r} is registered with another stream kind"
            )
        effects: list[Effect] = []
        old = self.sessions.sources.get(source)
        if old is not None:
            effects += self._replaced(old.instance, f"source {source!r}")
        self.sessions.sources[source] = SourceSession(instance, is_local)
        if self._run is not None and source not in self._run.source_plugins:
            effects += self._reset_source(self._run, source)
        return effects

    def on_sink_attached(self, instance: InstanceId, sink: str) -> list[Effect]:
        """Deliver to this plugin: at once if it is the generation's first."""
        number = self.topology.sink_number(sink)
        if number is None:
            raise ProtocolError("UNKNOWN_NAME", f"no sink is called {sink!r}")
        effects: list[Effect] = []
        old = self.sessions.sinks.get(number)
        if old is not None:
            effects += self._replaced(old, f"sink {sink!r}")
        self.sessions.sinks[number] = instance
        run = self._run
        if run is not None and number in run.sink_plugins:
            run = None
        if run is not None:
            run.sink_plugins[number] = instance
        return effects + self._sinks.on_attached(run, number, instance, self.generation)

    def on_lost(self, instance: InstanceId, cause: Cause) -> list[Effect]:
        """Go on without a plugin's stream: a new generation undoes what it half did."""
        need: list[Effect] = [Tell(NeedGeneration(self.id, cause))]
        if self.sessions.computes.pop(instance, None) is not None:
            return need
        source = self.sessions.source_of(instance)
        if source is not None:
            del self.sessions.sources[source]
            return need
        sink = self.sessions.sink_of(instance)
        if sink is not None:
            del self.sessions.sinks[sink]
            self._sinks.on_lost(sink)
            return need
        return []

    # Sources.

    def on_streams_found(
        self, instance: InstanceId, streams: Iterable[str], *, is_complete: bool
    ) -> list[Effect]:
        """Open the streams that a source names for the first time."""
        name = self.sessions.source_of(instance)
        if name is None:
            return []
        session = self.sessions.sources[name]
        was_awaited = self._sources.awaits_list(name)
        session.is_listed = True
        opened = self._sources.name_streams(
            self._run, name, streams, is_complete=is_complete
        )
        run = self._run
        if run is not None and was_awaited and name not in run.source_plugins:
            self._sources.fill_boundary(run, name)
            return self._reset_source(run, name) + self._settle()
        if run is None or run.source_plugins.get(name) != instance:
            return []
        effects: list[Effect] = [
            OpenStream(plugin, run.generation, state, targets)
            for plugin, state, targets in opened
        ]
        return effects + self._end_unnamed(run, name) + self._settle()

    def on_frame(
        self, instance: InstanceId, generation: Generation, frame: Frame
    ) -> list[Effect]:
        """Take a frame of a source into the open epoch."""
        run, name = self._run_of(generation), self.sessions.source_of(instance)
        if run is None or name is None or run.source_plugins.get(name) != instance:
            return []
        with run.broken_by_error():
            found = run.boundary.on_frame(name, frame)
            return run.on_boundary(found, self._now_ms) + self._settle()

    # Computations.

    def on_compute_reset(
        self, instance: InstanceId, generation: Generation
    ) -> list[Effect]:
        """Learn that a computation is ready for the generation."""
        run = self._run_of(generation)
        if run is None:
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
        run = self._run_of(generation)
        if run is None:
            return []
        with run.broken_by_error():
            return run.on_flow(run.flow.on_stage_output(instance, stage, batch))

    def on_consumed(
        self, instance: InstanceId, channel: int, records: int, size: int
    ) -> list[Effect]:
        """Return credit for what an instance has consumed."""
        run = self._run
        if run is None or instance in run.unreset:
            return []  # Of an older generation, whose channels are not these.
        with run.broken_by_error():
            return run.on_flow(run.flow.on_consumed(instance, channel, records, size))

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
        run = self._run_of(generation)
        if run is None:
            return []
        rows = find_rows(
            run.flow, self.partitions, instance, stage, wanted, all_entries=all_entries
        )
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
        run = self._run_of(generation)
        if run is None:
            return []
        name = run.flow.stage_name(stage)
        entry = run.ledger.of(epoch)
        with run.broken_by_error():
            if (instance, stage) not in entry.awaited or not entry.is_ended:
                raise ProtocolError("PROTOCOL", f"delta of epoch {epoch} out of place")
            for partition, rows, timers in parts:
                if (
                    not 0 <= partition < self.topology.partitions
                    or run.flow.owner_of(stage, partition) != instance
                ):
                    raise ProtocolError(
                        "PROTOCOL",
                        f"delta for partition {partition}, which is not its own",
                    )
                self.partitions[partition].on_stage_rows(epoch, name, rows, timers)
                entry.touched.add(partition)
                entry.touched_stages.add(name)
                if timers is not None:
                    self._watch.on_timers_changed()
        return []

    def on_barrier_ack(
        self,
        instance: InstanceId,
        generation: Generation,
        epoch: Epoch,
        stage: int,
        flush_cpu_us: int,
        *,
        records_skipped: int = 0,
    ) -> list[Effect]:
        """Learn that a stage has finished an epoch."""
        run = self._run_of(generation)
        if run is None:
            return []
        with run.broken_by_error():
            found = run.flow.on_stage_ack(instance, stage, epoch)
            entry = run.ledger.of(epoch)
            entry.flush_cpu_us += flush_cpu_us
            entry.records_skipped += records_skipped
            return run.on_flow(found) + run.prepare_complete() + self._settle()

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
                self._sources.forget(entry.streams if entry else ())
        self._run = None
        self._watch.on_generation()
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
        run = self._run = Run(
            message.generation,
            flow,
            self.partitions,
            self._sinks.logs,
            last_epoch=message.epoch,
            encode=self.ports.encode_delta,
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
            self._sources.fill_boundary(run, source.name)
        run.boundary.hold(self._watch.is_held)
        for source in topology.sources:
            if source.name in self.sessions.sources:
                effects += self._reset_source(run, source.name)
        run.sink_plugins.update(self.sessions.sinks)
        effects += self._sinks.on_generation(run)
        return effects + self._installed_if_ready(run)

    def _installed_if_ready(self, run: Run) -> list[Effect]:
        if run.unreset or run.is_installed:
            return []
        run.is_installed = True
        return [Tell(Installed(self.id, run.generation)), *self._settle()]

    def _cut(self, message: Cut) -> list[Effect]:
        run = self._run
        if run is None:
            return []
        found = run.on_cut(message.epoch, message.processing_time_us, self._now_ms)
        return found + self._settle()

    def _committed(self, epoch: Epoch) -> list[Effect]:
        run = self._run
        if run is None or epoch <= self.committed_epoch:
            return []
        effects: list[Effect] = []
        for number in range(self.committed_epoch + 1, epoch + 1):
            entry = run.ledger.close(Epoch(number))
            assert entry is not None, "commit before prepare"
            assert entry.is_prepared, "commit before prepare"
            effects += self._release(run, entry)
        self.committed_epoch = epoch
        return effects + self._settle()

    def _release(self, run: Run, entry: OpenEpoch) -> list[Effect]:
        """Merge a committed epoch; outputs and positions become visible."""
        for partition in sorted(entry.digests):
            self.partitions[partition].commit(entry.epoch)
        effects = self._sinks.on_committed(run)
        self._sources.forget(entry.streams)
        for name, instance in run.source_plugins.items():
            streams = tuple(s for s in entry.streams if s.source == name)
            if streams:
                effects.append(NotifyCommitted(instance, entry.epoch, streams))
        batches = [b for found in entry.outputs.values() for b in found]
        report = EpochReport(
            run.generation,
            entry.epoch,
            entry.opened_ms,
            entry.flush_cpu_us,
            entry.records_read,
            sum(b.count for b in batches),
            entry.output_bytes,
            entry.records_skipped,
        )
        return [*effects, report]

    # Inside: sources and sinks.

    def _reset_source(self, run: Run, source: str) -> list[Effect]:
        if self._sources.awaits_list(source):
            return []
        effects = self._sources.reset(
            run, source, self.committed_epoch, is_held=self._watch.is_held
        )
        return effects + self._end_unnamed(run, source)

    def _end_unnamed(self, run: Run, source: str) -> list[Effect]:
        effects: list[Effect] = []
        for stream in self._sources.unnamed(run, source):
            ended = run.boundary.end_stream(source, stream)
            effects += run.on_boundary(ended, self._now_ms)
        return effects

    def _on_sink(
        self,
        instance: InstanceId,
        sink_partition: int,
        event: Callable[[Delivery], list[delivery.Effect]],
    ) -> list[Effect]:
        sink, run = self.sessions.sink_of(instance), self._run
        if sink is None or run is None or run.sink_plugins.get(sink) != instance:
            return []
        found = self._sinks.on_event(run, sink, sink_partition, event)
        return found + self._settle()

    # Inside: small things.

    def _settle(self) -> list[Effect]:
        """Do what follows from every event."""
        if self._run is None or not self._run.is_installed:
            return []
        return self._watch.settle(self._run, self.committed_epoch, self._now_ms)

    def _run_of(self, generation: Generation) -> Run | None:
        run = self._run
        return run if run is not None and run.generation == generation else None

    def _need_generation(self, code: str, message: str) -> list[Effect]:
        return [Tell(NeedGeneration(self.id, Cause(code, message)))]

    def _replaced(self, instance: InstanceId, what: str) -> list[Effect]:
        cause = Cause("FENCED", f"{what} is served by a newer plugin")
        return [DropInstance(instance, cause), Tell(NeedGeneration(self.id, cause))]
