"""Drives epochs and generations: the role that one worker at a time holds.

Start, loss, arrival, upgrade: all are the same procedure. Raise the generation in
the coordination store, so that no commit of an older one can follow; bring everybody
to the last committed epoch; install; go on. A failure on the way starts the next
generation. Epochs commit one after the other, each by one guarded transaction, and
nothing is announced before it has succeeded.

Relies on: transactions are linearizable, and compare every revision they name.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from bettong_engine.core.coordinator_state import NEXT
from bettong_engine.core.coordinator_state import CoordinatorState as CoordinatorState
from bettong_engine.core.ids import Epoch, Generation, PartitionId, Term, WorkerId
from bettong_engine.core.messages import (
    Assignment,
    Cause,
    Committed,
    Cut,
    Finished,
    FromWorker,
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


@dataclass(frozen=True, slots=True)
class Manifest:
    """The commit record: all that says an epoch is committed.

    digests: the chain of each partition, in order; b"" for one without a delta.
    """

    epoch: Epoch
    generation: Generation
    term: Term
    processing_time_us: int
    digests: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class GenerationRecord:
    """The newest generation; without an assignment until one is decided."""

    generation: Generation
    term: Term
    assignment: Assignment | None = None


@dataclass(frozen=True, slots=True)
class Record:
    """What the coordination store holds, and at which revisions."""

    generation: GenerationRecord
    commit: Manifest
    leader_revision: int = 0
    generation_revision: int = 0
    commit_revision: int = 0


@dataclass(frozen=True, slots=True)
class Transact:
    """Write what is not None, if the store is still at the revisions of `expected`."""

    token: int
    expected: Record
    generation: GenerationRecord | None = None
    commit: Manifest | None = None


@dataclass(frozen=True, slots=True)
class ReadRecord:
    """Read the store again: the outcome of a transaction is not known."""

    token: int


@dataclass(frozen=True, slots=True)
class Send:
    """Send a message to a worker."""

    worker: WorkerId
    message: ToWorker


@dataclass(frozen=True, slots=True)
class StateChanged:
    """For logs and status."""

    state: "CoordinatorState"
    generation: Generation
    epoch: Epoch
    cause: Cause | None


@dataclass(frozen=True, slots=True)
class StepDown:
    """Another coordinator has taken over."""


@dataclass(frozen=True, slots=True)
class ApplicationFinished:
    """Bounded input has ended and all of its results are durable."""


@dataclass(frozen=True, slots=True)
class Drained:
    """Nothing uncommitted is left that could be committed."""


Effect = (
    Transact
    | ReadRecord
    | Send
    | StateChanged
    | StepDown
    | ApplicationFinished
    | Drained
)


@dataclass(frozen=True, slots=True)
class CoordinatorLimits:
    """How often epochs are cut.

    epoch_interval_ms_min: between two cuts. epoch_cpu_ratio_max: share of the time
    that epochs may cost; dearer epochs are cut more rarely. epoch_interval_ms_max:
    bound of that. epochs_in_flight_max: cut and not committed.
    """

    epoch_interval_ms_min: int = 5
    epoch_interval_ms_max: int = 1000
    epoch_cpu_ratio_max: float = 0.1
    epochs_in_flight_max: int = 4


@dataclass(slots=True)
class _Epochs:
    """Epochs of a generation. committed <= cut_to."""

    cut_to: Epoch
    next_cut_ms: int
    has_work: bool = False
    is_urgent: bool = False
    prepared: dict[Epoch, dict[WorkerId, Prepared]] = field(default_factory=dict)
    times_us: dict[Epoch, int] = field(default_factory=dict)


class Coordinator:
    """Invariant: at most one transaction is under way; epochs commit in order."""

    def __init__(
        self,
        term: Term,
        record: Record,
        workers: Sequence[WorkerId],
        *,
        limits: CoordinatorLimits,
    ) -> None:
        self.term = term
        self.state = CoordinatorState.IDLE
        self.pause: Cause | None = None
        self.missing_stages: tuple[str, ...] = ()
        self._record = record
        self._workers = tuple(workers)
        self._limits = limits
        self._probed: dict[WorkerId, Probed] = {}
        self._installed: set[WorkerId] = set()
        self._finished: set[WorkerId] = set()
        self._epochs = _Epochs(record.commit.epoch, 0)
        self._interval_ms = limits.epoch_interval_ms_min
        self._under_way: Transact | None = None
        # A try of it may have been applied although nobody said so.
        self._is_outcome_unknown = False
        self._token = 0
        self._restart: Cause | None = None
        self._is_draining = False
        self._is_drain_cut = False

    @property
    def generation(self) -> Generation:
        """The newest generation."""
        return self._record.generation.generation

    @property
    def committed_epoch(self) -> Epoch:
        """The last committed epoch."""
        return self._record.commit.epoch

    @property
    def open_epochs(self) -> int:
        """Epochs that are cut and not committed."""
        return self._epochs.cut_to - self.committed_epoch

    def wake_at_ms(self) -> int | None:
        """Return when `on_tick` is wanted, or None."""
        if self._may_cut():
            return self._epochs.next_cut_ms
        return None

    def on_start(self) -> list[Effect]:
        """Begin the first generation of this term."""
        return self._begin(Cause("UNSPECIFIED", "the coordinator starts"))

    def on_tick(self, now_ms: int) -> list[Effect]:
        """Cut an epoch if it is time."""
        return self._cut_if_due(now_ms)

    def on_message(self, message: FromWorker, now_ms: int) -> list[Effect]:
        """Take a message of a worker; those of an older generation are dropped."""
        if isinstance(message, NeedGeneration):
            return self._begin(message.cause)
        if message.generation != self.generation:
            return []
        match message:
            case Probed():
                return self._on_probed(message)
            case Installed():
                return self._on_installed(message, now_ms)
            case WorkAvailable():
                return self._on_work(message, now_ms)
            case Prepared():
                return self._on_prepared(message)
            case NeedPause():
                return self.on_pause(message.cause)
            case Finished():
                return self._on_finished(message)

    def on_pause(self, cause: Cause) -> list[Effect]:
        """Stop letting records in until `on_resume`; the first cause stands."""
        if self.pause is not None:
            return []
        self.pause = cause
        return [
            *self._broadcast_hold(cause.message),
            self._changed(cause),
            *self._drained_if_ready(),
        ]

    def on_resume(self) -> list[Effect]:
        """Go on after a pause: the operator has mended the cause."""
        if self.pause is None:
            return []
        self.pause = None
        return self._begin(Cause("UNSPECIFIED", "the operator resumes"))

    def on_drain(self, now_ms: int) -> list[Effect]:
        """Let no new read in, and commit what there is."""
        self._is_draining = True
        effects: list[Effect] = list(self._broadcast_hold("the application stops"))
        return effects + self._cut_if_due(now_ms) + self._drained_if_ready()

    # The store answers.

    def on_applied(
        self, token: int, revisions: tuple[int, int], now_ms: int
    ) -> list[Effect]:
        """Learn that a transaction is durable, with the revisions of its keys.

        revisions: of the generation and of the commit, as they are now.
        """
        done = self._under_way
        if done is None or token != done.token:
            return []
        self._under_way = None
        self._record = replace(
            self._record,
            generation=done.generation or self._record.generation,
            commit=done.commit or self._record.commit,
            generation_revision=revisions[0],
            commit_revision=revisions[1],
        )
        effects: list[Effect] = []
        if done.commit is not None:
            effects += self._announce_commit(done.commit)
        if self._restart is not None and self.pause is None:
            return effects + self._begin(self._restart)
        if done.commit is not None:
            effects += self._commit_next()
            return effects + self._cut_if_due(now_ms) + self._drained_if_ready()
        assert done.generation is not None
        if self.state is CoordinatorState.FENCING:
            return self._probe()
        return self._install(done.generation)

    def on_conflict(self, token: int) -> list[Effect]:
        """Learn that somebody else wrote: this coordinator has lost its term."""
        if self._under_way is None or token != self._under_way.token:
            return []
        if self._is_outcome_unknown:
            # A first try of it, late, may be what the second has met.
            return [ReadRecord(token)]
        return self._depose()

    def on_unknown(self, token: int) -> list[Effect]:
        """Learn that nobody knows whether a transaction was applied: look."""
        if self._under_way is None or token != self._under_way.token:
            return []
        self._is_outcome_unknown = True
        return [ReadRecord(token)]

    def on_record(self, token: int, record: Record, now_ms: int) -> list[Effect]:
        """Decide from what the store holds: applied, to be tried again, or lost."""
        tried = self._under_way
        if tried is None or token != tried.token:
            return []
        if record.leader_revision != tried.expected.leader_revision:
            return self._depose()
        generation = tried.generation or tried.expected.generation
        commit = tried.commit or tried.expected.commit
        if (record.generation, record.commit) == (generation, commit):
            revisions = (record.generation_revision, record.commit_revision)
            return self.on_applied(token, revisions, now_ms)
        if record == tried.expected:
            return [tried]
        return self._depose()

    def _depose(self) -> list[Effect]:
        self._under_way = None
        return [*self._enter(CoordinatorState.DEPOSED), StepDown()]

    # Generations.

    def _begin(self, cause: Cause) -> list[Effect]:
        """Start the next generation, as soon as no transaction is under way."""
        if self.state in (CoordinatorState.DEPOSED, CoordinatorState.FINISHED):
            return []
        if self.pause is not None:
            return []
        if self._under_way is not None:
            self._restart = cause
            if self.state is CoordinatorState.FENCING:
                # The generation that is being written takes it in.
                self._restart = None
            return []
        self._restart = None
        record = GenerationRecord(Generation(self.generation + 1), self.term)
        return [
            *self._enter(CoordinatorState.FENCING, cause),
            self._transact(generation=record),
        ]

    def _probe(self) -> list[Effect]:
        self._probed.clear()
        self._installed.clear()
        self._finished.clear()
        self._is_drain_cut = False
        self._epochs = _Epochs(self.committed_epoch, 0)
        commit = self._record.commit
        message = StartGeneration(
            self.term, self.generation, commit.epoch, commit.digests
        )
        return [*self._enter(CoordinatorState.PROBING), *self._broadcast(message)]

    def _on_probed(self, message: Probed) -> list[Effect]:
        if self.state is not CoordinatorState.PROBING:
            return []
        self._probed[message.worker] = message
        if len(self._probed) < len(self._workers):
            return []
        count = len(self._record.commit.digests)
        lost = [
            PartitionId(p)
            for p in range(count)
            if not any(answer.in_sync[p] for answer in self._probed.values())
        ]
        if lost:
            return self._lost(lost)
        missing = set.intersection(*(set(a.missing) for a in self._probed.values()))
        self.missing_stages = tuple(sorted(missing))
        if missing:
            return [*self._enter(CoordinatorState.WAITING), *self._drained_if_ready()]
        assignment = Assignment(
            tuple(
                next(w for w in self._workers if self._probed[w].in_sync[p])
                for p in range(count)
            )
        )
        record = replace(self._record.generation, assignment=assignment)
        return [
            *self._enter(CoordinatorState.ASSIGNING),
            self._transact(generation=record),
        ]

    def _lost(self, partitions: Sequence[PartitionId]) -> list[Effect]:
        names = ", ".join(map(str, partitions[:8]))
        more = f" and {len(partitions) - 8} more" if len(partitions) > 8 else ""
        self.pause = Cause(
            "STATE_LOST",
            f"no copy of partition {names}{more} holds the committed epoch"
            f" {self.committed_epoch}: restore the data directory from a backup, or"
            " start a new application; nothing is started empty",
        )
        return [self._changed(self.pause), *self._drained_if_ready()]

    def _install(self, record: GenerationRecord) -> list[Effect]:
        assert record.assignment is not None
        commit = self._record.commit
        message = Install(
            self.generation, commit.epoch, record.assignment, commit.processing_time_us
        )
        return [*self._enter(CoordinatorState.INSTALLING), *self._broadcast(message)]

    def _on_installed(self, message: Installed, now_ms: int) -> list[Effect]:
        if self.state is not CoordinatorState.INSTALLING:
            return []
        self._installed.add(message.worker)
        if len(self._installed) < len(self._workers):
            return []
        effects = self._enter(CoordinatorState.RUNNING)
        if self._is_draining:
            effects += self._broadcast_hold("the application stops")
        elif self.pause is not None:
            effects += self._broadcast_hold(self.pause.message)
        return effects + self._cut_if_due(now_ms)

    def _on_finished(self, message: Finished) -> list[Effect]:
        if self.state is not CoordinatorState.RUNNING:
            # The next generation is being written; its workers will say it again.
            return []
        self._finished.add(message.worker)
        if len(self._finished) < len(self._workers):
            return []
        return [*self._enter(CoordinatorState.FINISHED), ApplicationFinished()]

    # Epochs.

    def _on_work(self, message: WorkAvailable, now_ms: int) -> list[Effect]:
        epochs = self._epochs
        if message.epoch != epochs.cut_to + 1:
            return []
        epochs.has_work = True
        epochs.is_urgent = epochs.is_urgent or message.is_urgent
        return self._cut_if_due(now_ms)

    def _may_cut(self) -> bool:
        wants = self._epochs.has_work or (self._is_draining and not self._is_drain_cut)
        return (
            wants
            and self.state is CoordinatorState.RUNNING
            and self.pause is None
            and self.open_epochs < self._limits.epochs_in_flight_max
        )

    def _cut_if_due(self, now_ms: int) -> list[Effect]:
        epochs = self._epochs
        if not self._may_cut():
            return []
        if now_ms < epochs.next_cut_ms and not (epochs.is_urgent or self._is_draining):
            return []
        epochs.has_work = epochs.is_urgent = False
        self._is_drain_cut = self._is_draining
        epochs.cut_to = Epoch(epochs.cut_to + 1)
        epochs.next_cut_ms = now_ms + self._interval_ms
        latest = max(epochs.times_us.values(), default=0)
        time_us = max(now_ms * 1000, latest, self._record.commit.processing_time_us)
        epochs.times_us[epochs.cut_to] = time_us
        return self._broadcast(Cut(self.generation, epochs.cut_to, time_us))

    def _on_prepared(self, message: Prepared) -> list[Effect]:
        if message.epoch <= self.committed_epoch:
            return []
        answers = self._epochs.prepared.setdefault(message.epoch, {})
        known = answers.setdefault(message.worker, message)
        assert known.digests == message.digests, "one epoch prepared in two ways"
        self._space_by(message.cpu_us)
        return self._commit_next()

    def _space_by(self, cpu_us: int) -> None:
        limits = self._limits
        wanted_ms = cpu_us / 1000 / limits.epoch_cpu_ratio_max
        smooth_ms = int((self._interval_ms + wanted_ms) / 2)
        self._interval_ms = min(
            max(smooth_ms, limits.epoch_interval_ms_min), limits.epoch_interval_ms_max
        )

    def _commit_next(self) -> list[Effect]:
        """Commit the next epoch if everybody has prepared it."""
        epoch = Epoch(self.committed_epoch + 1)
        answers = self._epochs.prepared.get(epoch, {})
        if (
            self._under_way is not None
            or self.state is not CoordinatorState.RUNNING
            or len(answers) < len(self._workers)
        ):
            return []
        digests = list(self._record.commit.digests)
        for answer in answers.values():
            for partition, digest in answer.digests.items():
                digests[partition] = digest
        manifest = Manifest(
            epoch,
            self.generation,
            self.term,
            self._epochs.times_us[epoch],
            tuple(digests),
        )
        return [self._transact(commit=manifest)]

    def _announce_commit(self, commit: Manifest) -> list[Effect]:
        self._epochs.prepared.pop(commit.epoch, None)
        self._epochs.times_us.pop(commit.epoch, None)
        return self._broadcast(Committed(self.generation, commit.epoch))

    def _drained_if_ready(self) -> list[Effect]:
        if not self._is_draining:
            return []
        is_idle = self.state is not CoordinatorState.RUNNING or self.pause is not None
        if is_idle or (self._is_drain_cut and not self.open_epochs):
            return [Drained()]
        return []

    # Small things.

    def _transact(
        self,
        *,
        generation: GenerationRecord | None = None,
        commit: Manifest | None = None,
    ) -> Transact:
        assert self._under_way is None, "one transaction at a time"
        self._token += 1
        self._is_outcome_unknown = False
        self._under_way = Transact(self._token, self._record, generation, commit)
        return self._under_way

    def _enter(
        self, state: CoordinatorState, cause: Cause | None = None
    ) -> list[Effect]:
        assert state in NEXT[self.state], f"{self.state} may not become {state}"
        self.state = state
        return [self._changed(cause)]

    def _changed(self, cause: Cause | None) -> StateChanged:
        return StateChanged(self.state, self.generation, self.committed_epoch, cause)

    def _broadcast(self, message: ToWorker) -> list[Effect]:
        return [Send(worker, message) for worker in self._workers]

    def _broadcast_hold(self, reason: str) -> list[Effect]:
        return self._broadcast(HoldSources(self.generation, reason))
