"""One engine process of the simulator: the real machines, effects done in order.

Mirrors the runtime's loop: the same queue, the same order, the same translation to
messages. What is a thread or a socket there is a queue here, which the world empties
when its dice say so.
"""

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from bettong_engine.core import effects as core_effects
from bettong_engine.core.coordinator import (
    ApplicationFinished,
    Coordinator,
    CoordinatorLimits,
    Drained,
    GenerationRecord,
    Manifest,
    ReadRecord,
    Record,
    Send,
    StateChanged,
    StepDown,
    Transact,
)
from bettong_engine.core.coordinator import Effect as CoordinatorEffect
from bettong_engine.core.dataflow import FlowLimits, Grant, ToStage
from bettong_engine.core.effects import Effect, EpochReport
from bettong_engine.core.ids import (
    Epoch,
    Generation,
    Incarnation,
    InstanceId,
    PartitionId,
    Term,
    WorkerId,
)
from bettong_engine.core.limits import WorkerLimits
from bettong_engine.core.messages import Cause, Committed, StartGeneration, ToWorker
from bettong_engine.core.partition import Partition
from bettong_engine.core.worker import Worker, WorkerPorts
from bettong_engine.errors import (
    ProtocolError,
    StateCorruptedError,
    StoreUnavailableError,
    StoreUnknownError,
)
from bettong_engine.net import incoming, outgoing, translate
from bettong_engine.net.delta_codec import (
    decode_delta,
    encode_delta,
    encode_generation,
    encode_manifest,
)
from bettong_engine.net.outbox import Outbox
from bettong_engine.net.records import check_records, make_dead_letter, split_records
from bettong_engine.sim.disk import (
    COMMIT_KEY,
    GENERATION_KEY,
    LEADER_KEY,
    OpenStore,
    SimDisk,
    Snapshot,
)
from bettong_engine.sim.options import SimOptions
from bettong_engine.sim.workload import application_of
from bettong_proto.plugin.v1 import compute_pb2, sink_pb2, source_pb2

WORKER = WorkerId("worker-1")
HISTORY = b"history-16-bytes"

_REQUESTS: dict[str, Any] = {
    "source": source_pb2.SourceRequest,
    "compute": compute_pb2.ComputeRequest,
    "sink": sink_pb2.SinkRequest,
}
_PACK: dict[str, Any] = {
    "source": translate.source_credits,
    "compute": translate.stage_credits,
    "sink": None,
}


class EngineWatch(Protocol):
    """Who looks on, and may raise."""

    def on_stage_input(self, engine: "SimEngine", effect: ToStage) -> None:
        """A batch goes to a stage."""

    def on_compute_reset(
        self, engine: "SimEngine", effect: core_effects.ResetCompute
    ) -> None:
        """A computation is told to go back."""

    def on_fence(self, engine: "SimEngine") -> None:
        """The worker has heard the coordinator."""

    def on_state(self, engine: "SimEngine", change: StateChanged) -> None:
        """The coordinator's state has changed."""

    def on_drop(self, engine: "SimEngine", instance: InstanceId, cause: Cause) -> None:
        """The engine ends a plugin's session."""

    def on_end(self, engine: "SimEngine", how: str) -> None:
        """The engine process ends: finished, drained or deposed."""

    def note(self, situation: str) -> None:
        """Something interesting has happened."""


@dataclass(slots=True)
class Wire:
    """One data stream. `outbox`: to the plugin. `inbox`: bytes to the engine.

    engine_is_gone, plugin_is_gone: that side is over; the other learns of it when it
    has read what was on its way.
    """

    instance: InstanceId
    role: str
    outbox: Outbox
    inbox: deque[bytes] = field(default_factory=deque)
    engine_is_gone: bool = False
    plugin_is_gone: bool = False


Job = Callable[[], Callable[[], None]]


class SimEngine:
    """Worker and coordinator over a store, from start to crash or end."""

    def __init__(
        self,
        options: SimOptions,
        disk: SimDisk,
        watch: EngineWatch,
        *,
        incarnation: int,
        now_ms: int,
    ) -> None:
        self.options = options
        self.watch = watch
        self.now_ms = now_ms
        self.number = incarnation
        self.is_over = False
        self.is_draining = False
        self.wires: dict[InstanceId, Wire] = {}
        self.jobs: deque[Job] = deque()
        # Told by the store, and not yet heard.
        self.told: deque[Callable[[], None]] = deque()
        self._instances = 0
        self._deltas: list[tuple[Epoch, tuple[Any, ...]]] = []
        self._queue: deque[Effect | CoordinatorEffect] = deque()
        self._is_performing = False
        self._epochs = 0
        self._heard: deque[ToWorker] = deque(maxlen=40)
        self._store = OpenStore(disk)
        self.topology = translate.topology_of(application_of(options))
        term, record, partitions = self._load()
        self.worker = Worker(
            WORKER,
            Incarnation(incarnation.to_bytes(16, "big")),
            self.topology,
            history=HISTORY,
            partitions=partitions,
            limits=WorkerLimits(
                flow=FlowLimits(options.credit_records, options.credit_bytes),
                uncommitted_bytes_max=options.uncommitted_bytes_max,
                output_log_bytes_max=options.output_log_bytes_max,
            ),
            ports=WorkerPorts(
                encode_delta, split_records, check_records, make_dead_letter
            ),
        )
        limits = CoordinatorLimits(epochs_in_flight_max=options.epochs_in_flight_max)
        self.coordinator = Coordinator(term, record, (WORKER,), limits=limits)
        self.perform(self.coordinator.on_start())

    # Start, as the runtime's `create_or_load`.

    def _load(self) -> tuple[Term, Record, list[Partition]]:
        store, disk = self._store, self._store.disk
        term = Term(store.campaign())
        count = self.topology.partitions
        if disk.record() is None:
            manifest = Manifest(Epoch(0), Generation(0), term, 0, (b"",) * count)
            generation = GenerationRecord(Generation(0), term)
            disk.put(
                {
                    COMMIT_KEY: encode_manifest(manifest),
                    GENERATION_KEY: encode_generation(generation),
                },
                (),
            )
        record = disk.record()
        assert record is not None
        store.truncate_after(record.commit.epoch)
        partitions = [Partition(PartitionId(n)) for n in range(count)]
        for number in sorted({*disk.deltas, *disk.snapshots}):
            snapshot = disk.snapshots.get(number)
            partitions[number].load(
                None if snapshot is None else decode_delta(snapshot.body),
                b"" if snapshot is None else snapshot.digest,
                [(decode_delta(d.body), d) for d in disk.deltas.get(number, [])],
            )
        for partition, digest in zip(partitions, record.commit.digests, strict=True):
            if partition.digest != digest:
                raise StateCorruptedError(f"partition {partition.number} on disk")
        return term, record, partitions

    # Plugins.

    def attach(self, role: str, first: bytes) -> Wire:
        """Open a data stream, whose first message is its Attach."""
        self._instances += 1
        instance = InstanceId(self.number * 10_000 + self._instances)
        wire = self.wires[instance] = Wire(instance, role, Outbox(_PACK[role]))
        attach = _REQUESTS[role].FromString(first).attach
        effects: Sequence[Effect]
        if role == "compute":
            effects = self.worker.on_compute_attached(instance, list(attach.stages))
        elif role == "source":
            effects = incoming.attach_source(self.worker, instance, attach)
        else:
            effects = self.worker.on_sink_attached(instance, attach.sink)
        self.perform(effects)
        return wire

    def receive(self, wire: Wire) -> Any:
        """Take the next message of a plugin; return it."""
        request = _REQUESTS[wire.role].FromString(wire.inbox.popleft())
        if wire.instance not in self.wires:
            return request
        try:
            if wire.role == "source":
                self._tick()
                answer = incoming.source_request(self.worker, wire.instance, request)
            elif wire.role == "compute":
                answer = incoming.compute_request(self.worker, wire.instance, request)
            else:
                self._tick()
                answer = incoming.sink_request(self.worker, wire.instance, request)
        except ProtocolError as error:
            self.watch.on_drop(self, wire.instance, Cause(error.code, str(error)))
            raise
        effects, trouble = answer
        self.perform(effects)
        if trouble is not None:
            self.watch.note("a plugin reports trouble")
            if trouble.is_fatal:
                self.perform(self.coordinator.on_pause(trouble.cause))
        return request

    def detach(self, wire: Wire) -> None:
        """Learn that a data stream is over."""
        wire.engine_is_gone = True
        if self.wires.pop(wire.instance, None) is not None:
            cause = Cause("PLUGIN_CRASHED", f"stream {wire.instance} ended")
            self.perform(self.worker.on_lost(wire.instance, cause))

    # Time and the operator.

    def wake_at_ms(self) -> int | None:
        """Return when `on_timer` is wanted, or None."""
        times = [self.worker.wake_at_ms(), self.coordinator.wake_at_ms()]
        return min((t for t in times if t is not None), default=None)

    def on_timer(self) -> None:
        """Do what is due."""
        self._queue.extend(self.worker.on_tick(self.now_ms))
        self.perform(self.coordinator.on_tick(self.now_ms))

    def drain(self) -> None:
        """Commit what there is, then end."""
        self.is_draining = True
        self.perform(self.coordinator.on_drain(self.now_ms))

    def pause(self, cause: Cause) -> None:
        """Let no new read in until `resume`."""
        self.perform(self.coordinator.on_pause(cause))

    def resume(self) -> None:
        """Go on after a pause."""
        self.perform(self.coordinator.on_resume())

    def hear_again(self, place: int) -> bool:
        """Let the worker hear a message that an older generation has left behind.

        Returns False if there is none: one of the newest is heard once only.
        """
        newest = self.worker.generation
        late = [
            m
            for m in self._heard
            if m.generation < newest
            or (m.generation == newest and isinstance(m, StartGeneration | Committed))
        ]
        if not late:
            return False
        self.perform(self.worker.on_coordinator(late[place % len(late)]))
        return True

    def crash(self) -> None:
        """Lose everything but the disk."""
        self.is_over = True
        for wire in self.wires.values():
            wire.engine_is_gone = True

    # The store's thread.

    def run_job(self) -> None:
        """Do the store's next job; its answer is heard later, in order."""
        try:
            answer = self.jobs[0]()
        except StoreUnavailableError:
            self.watch.note("the store refuses and the job is tried again")
            return
        self.jobs.popleft()
        self.told.append(answer)

    def hear(self) -> None:
        """Hear the next answer of the store."""
        self.told.popleft()()

    def _transact(self, effect: Transact) -> None:
        waiting, self._deltas = self._deltas, []
        expected = effect.expected
        guards = {
            LEADER_KEY: expected.leader_revision,
            GENERATION_KEY: expected.generation_revision,
            COMMIT_KEY: expected.commit_revision,
        }
        puts: dict[str, bytes] = {}
        if effect.generation is not None:
            puts[GENERATION_KEY] = encode_generation(effect.generation)
        if effect.commit is not None:
            puts[COMMIT_KEY] = encode_manifest(effect.commit)

        def job() -> Callable[[], None]:
            while waiting:
                self._store.append(*waiting.pop(0))
            try:
                revision = self._store.transact(guards, puts)
            except StoreUnknownError:
                return lambda: self.perform(self.coordinator.on_unknown(effect.token))
            return lambda: self._on_outcome(effect, revision)

        self.jobs.append(job)

    def _on_outcome(self, effect: Transact, revision: int | None) -> None:
        if revision is None:
            self.perform(self.coordinator.on_conflict(effect.token))
            return
        expected = effect.expected
        revisions = (
            revision if effect.generation else expected.generation_revision,
            revision if effect.commit else expected.commit_revision,
        )
        found = self.coordinator.on_applied(effect.token, revisions, self.now_ms)
        self.perform(found)

    def _read(self, token: int) -> None:
        def job() -> Callable[[], None]:
            record = self._store.disk.record()
            assert record is not None, "the records exist since the creation"
            return lambda: self.perform(
                self.coordinator.on_record(token, record, self.now_ms)
            )

        self.jobs.append(job)

    def _truncate(self, epoch: Epoch) -> None:
        self._deltas = [item for item in self._deltas if item[0] <= epoch]

        def job() -> Callable[[], None]:
            self._store.truncate_after(epoch)
            return _nothing

        self.jobs.append(job)

    def _fold(self) -> None:
        """Fold a partition into a snapshot now and then, as the compaction does."""
        every = self.options.snapshot_every
        self._epochs += 1
        if not every or self._epochs % every:
            return
        number = self._epochs // every % len(self.worker.partitions)
        partition = self.worker.partitions[number]
        if not partition.epoch:
            return
        snapshot = Snapshot(
            number,
            partition.epoch,
            partition.digest,
            encode_delta(partition.snapshot()),
        )

        def job() -> Callable[[], None]:
            self._store.put_snapshot(snapshot)
            self.watch.note("a partition is folded into a snapshot")
            return _nothing

        self.jobs.append(job)

    # Effects.

    def _tick(self) -> None:
        self._queue.extend(self.worker.on_tick(self.now_ms))

    def perform(self, found: Sequence[Effect] | Sequence[CoordinatorEffect]) -> None:
        """Do what the core asks for, and what follows from that, in order."""
        self._queue.extend(found)
        if self._is_performing:
            return
        self._is_performing = True
        try:
            while self._queue:
                self._do(self._queue.popleft())
        finally:
            self._is_performing = False

    def _do(self, effect: Effect | CoordinatorEffect) -> None:
        match effect:
            case Grant():
                self._grant(effect)
            case core_effects.StoreDeltas():
                self._deltas.append((effect.epoch, effect.deltas))
                stored = self.worker.on_stored(effect.generation, effect.epoch, 1)
                self._queue.extend(stored)
            case core_effects.Tell():
                self._queue.extend(
                    self.coordinator.on_message(effect.message, self.now_ms)
                )
            case Send():
                self._heard.append(effect.message)
                self._queue.extend(self.worker.on_coordinator(effect.message))
                self.watch.on_fence(self)
            case Transact():
                self._transact(effect)
            case ReadRecord():
                self.watch.note("the outcome of a transaction is looked up")
                self._read(effect.token)
            case core_effects.TruncateStore():
                self._truncate(effect.epoch)
            case EpochReport():
                self._fold()
            case core_effects.DropInstance():
                self.watch.on_drop(self, effect.instance, effect.cause)
            case StateChanged():
                self.watch.on_state(self, effect)
            case ApplicationFinished():
                self._end("finished")
            case Drained():
                if self.is_draining:
                    self._end("drained")
            case StepDown():
                self._end("deposed")
            case _:
                self._send(effect)

    def _end(self, how: str) -> None:
        if not self.is_over:
            self.crash()
            self.watch.on_end(self, how)

    def _send(self, effect: outgoing.ToPlugin) -> None:
        wire = self.wires.get(outgoing.instance_of(effect))
        if wire is None:
            return
        if isinstance(effect, ToStage):
            self.watch.on_stage_input(self, effect)
        elif isinstance(effect, core_effects.ResetCompute):
            self.watch.on_compute_reset(self, effect)
        limits = self.worker.limits.flow
        for message in outgoing.messages_of(effect, self.worker, limits):
            wire.outbox.send(message)

    def _grant(self, grant: Grant) -> None:
        instance = grant.instance
        if instance is None:
            session = self.worker.sessions.sources.get(grant.source)
            if session is None:
                return
            instance = session.instance
        wire = self.wires.get(instance)
        if wire is not None:
            wire.outbox.grant(grant)


def _nothing() -> None:
    pass
