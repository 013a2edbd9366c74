"""One schedule: an engine, its disk, plugin processes, and dice.

Everything that may happen next is a candidate, and the seed chooses. A message waits
in its queue, in order, until it is chosen; so does every answer of the store, every
unit of work of a plugin, and every tick of the clock.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from random import Random
from typing import Any

from bettong_engine.core.coordinator import (
    CoordinatorState,
    Manifest,
    StateChanged,
)
from bettong_engine.core.dataflow import BOUNDARY, ToStage
from bettong_engine.core.delta import StoredDelta
from bettong_engine.core.effects import ResetCompute
from bettong_engine.core.ids import InstanceId
from bettong_engine.core.messages import Cause
from bettong_engine.errors import BettongError
from bettong_engine.sim.claims import (
    CreditIsConserved,
    EpochsCommitInOrder,
    EveryCommitIsAConsistentCut,
    FenceNeverFalls,
    TargetsHoldAPrefixOfTheCommitted,
    Truth,
    Violation,
    decoded,
)
from bettong_engine.sim.disk import SimDisk
from bettong_engine.sim.engine import SimEngine, Wire
from bettong_engine.sim.nemesis import OPERATOR, Nemesis
from bettong_engine.sim.options import SimOptions
from bettong_engine.sim.outside import Outside
from bettong_engine.sim.port import Driver, Plugins
from bettong_engine.sim.workload import sink_names, source_names


@dataclass(slots=True)
class Role:
    """A driver of a process, and its data stream if there is one.

    is_quiet: `step` had nothing to do, and nothing has come since.
    """

    driver: Driver
    wire: Wire | None = None
    is_quiet: bool = False
    attach_at_ms: int = 0


@dataclass(slots=True)
class Process:
    """A plugin process. kind: what it offers. stalled_until_ms: it does nothing."""

    number: int
    kind: str
    roles: list[Role]
    stalled_until_ms: int = 0
    is_zombie: bool = False


@dataclass(slots=True)
class Result:
    """How a schedule went. trace: hash of all that happened."""

    seed: int
    steps: int
    commits: int
    faults: Counter[str]
    situations: Counter[str]
    trace: str = ""


Candidate = tuple[str, object]


@dataclass
class World:
    """Invariant: the same options give the same trace, in any process."""

    options: SimOptions
    plugins: Plugins
    tells: bool = False
    now_ms: int = 1_000
    steps: int = 0
    commits: int = 0
    faults: Counter[str] = field(default_factory=Counter)
    situations: Counter[str] = field(default_factory=Counter)
    processes: list[Process] = field(default_factory=list)
    # Processes to start again: (when, kind).
    restarts: list[tuple[int, str]] = field(default_factory=list)
    engine: SimEngine | None = None
    # Engines that have lost the lead and do not know it.
    zombies: list[SimEngine] = field(default_factory=list)
    engine_at_ms: int = 0
    is_finished: bool = False
    rng: Random = field(init=False)
    disk: SimDisk = field(init=False)
    outside: Outside = field(init=False)
    nemesis: Nemesis = field(init=False)
    truth: Truth = field(init=False)
    cut: EveryCommitIsAConsistentCut = field(init=False)
    targets: TargetsHoldAPrefixOfTheCommitted = field(init=False)
    epochs: EpochsCommitInOrder = field(default_factory=EpochsCommitInOrder)
    fences: FenceNeverFalls = field(default_factory=FenceNeverFalls)
    credit: CreditIsConserved = field(init=False)
    _numbers: int = 0
    _engines: int = 0
    _broken: Violation | None = None

    def __post_init__(self) -> None:
        options = self.options
        self.rng = Random(options.seed * 2 + 1)
        self._trace = blake2b(digest_size=8)
        self.disk = SimDisk(self._on_commit)
        self.outside = Outside(options, self.rng, self)
        self.truth = Truth()
        self.cut = EveryCommitIsAConsistentCut(options, self.outside, self.truth)
        self.targets = TargetsHoldAPrefixOfTheCommitted(
            options, self.outside, self.truth
        )
        self.credit = CreditIsConserved(options)
        self.nemesis = Nemesis(self, Random(options.seed * 2 + 2))
        self._speeds = dict(options.speeds)
        self._unreset: dict[InstanceId, int] = {}
        for kind in self.kinds():
            self.start_process(kind)

    def kinds(self) -> list[str]:
        """Return the processes that there should be."""
        if self.options.is_one_process:
            return ["all"]
        computes = [f"compute{n}" for n in range(self.options.computes)]
        return ["sources", *computes, "sinks"]

    # The run.

    def run(self) -> Result:
        """Run to the end of the input. Raises `Violation`."""
        options = self.options
        while not self.is_finished:
            self.steps += 1
            if self.steps <= options.fault_steps:
                self.nemesis.maybe_strike()
            elif self.steps == options.fault_steps + 1:
                self.nemesis.heal()
            elif self.steps > options.fault_steps + options.heal_steps:
                raise Violation("BoundedInputFinishes", self.describe())
            self._step()
            if self._broken is not None:
                raise self._broken
        self.cut.check_end()
        self.targets.check_end()
        return Result(
            options.seed,
            self.steps,
            self.commits,
            self.faults,
            self.situations,
            self._trace.hexdigest(),
        )

    def _step(self) -> None:
        self._start_what_is_due()
        candidates = self._candidates()
        if not candidates:
            self._advance_clock(is_idle=True)
            return
        for _ in range(8):
            kind, what = self.rng.choice(candidates)
            if self.rng.random() < self._speeds.get(kind, 1.0):
                break
        burst = self.rng.randint(1, self.options.burst)
        for _ in range(burst):
            if not self._do(kind, what):
                break
        if self.rng.random() < 0.05:
            self._advance_clock(is_idle=False)

    def _candidates(self) -> list[Candidate]:
        found: list[Candidate] = []
        for engine in (self.engine, *self.zombies):
            if engine is None:
                continue
            if engine.jobs:
                found.append(("store", engine))
            if engine.told:
                found.append(("tell", engine))
            wake_ms = engine.wake_at_ms()
            if wake_ms is not None and wake_ms <= self.now_ms:
                found.append(("timer", engine))
        for process in self.processes:
            is_stalled = process.stalled_until_ms > self.now_ms
            for role in process.roles:
                wire = role.wire
                if wire is not None:
                    if self._can_receive(wire):
                        found.append(("receive", wire))
                    if not is_stalled and (wire.outbox or wire.engine_is_gone):
                        found.append(("deliver", role))
                if not is_stalled and not role.is_quiet:
                    found.append(("step", role))
        for wire in self.nemesis.orphans:
            if self._can_receive(wire):
                found.append(("receive", wire))
        return found

    def _can_receive(self, wire: Wire) -> bool:
        if wire.engine_is_gone:
            return False
        return bool(wire.inbox) or wire.plugin_is_gone

    def _do(self, kind: str, what: object) -> bool:
        """Take one action; return whether it may be taken once more."""
        self._trace.update(kind.encode())
        if isinstance(what, SimEngine):
            return self._do_engine(kind, what)
        if isinstance(what, Wire):
            return self._receive(what)
        assert isinstance(what, Role)
        if kind == "deliver":
            return self._deliver(what)
        return self._work(what)

    def _do_engine(self, kind: str, engine: SimEngine) -> bool:
        engine.now_ms = self.now_ms
        if kind == "store":
            if engine.jobs:
                engine.run_job()
        elif kind == "tell":
            if engine.told:
                engine.hear()
        else:
            engine.on_timer()
        return False

    def _receive(self, wire: Wire) -> bool:
        engine = self.engine
        if engine is None or wire.engine_is_gone:
            return False
        engine.now_ms = self.now_ms
        if not wire.inbox:
            if wire.plugin_is_gone:
                engine.detach(wire)
            return False
        self._trace.update(wire.inbox[0])
        if self.tells:
            print(f"{self.steps:6} {self.now_ms} from {wire.role} {wire.instance}:")
        request = engine.receive(wire)
        if self.tells:
            print("      ", str(request).replace("\n", " ")[:300])
        if wire.role == "compute":
            self._count_consumed(wire.instance, request)
        return True

    def _count_consumed(self, instance: InstanceId, request: Any) -> None:
        """Count what is consumed since the last reset was answered."""
        if request.WhichOneof("message") == "reset_done":
            if self._unreset.get(instance) == request.reset_done.generation:
                del self._unreset[instance]
        elif instance not in self._unreset:
            for item in request.consumed:
                self.credit.on_consumed(
                    instance, item.channel, item.records, item.bytes
                )

    def _deliver(self, role: Role) -> bool:
        wire = role.wire
        if wire is None:
            return False
        if not wire.outbox:
            if wire.engine_is_gone:
                self.lose_session(role)
            return False
        message = wire.outbox.take()
        data = message.SerializeToString()
        self._trace.update(data)
        if self.tells:
            print(f"{self.steps:6} {self.now_ms} to {wire.role} {wire.instance}:")
            print("      ", str(message).replace("\n", " ")[:300])
        role.is_quiet = False
        self._send(role, role.driver.on_message(data, self.now_ms))
        return True

    def _work(self, role: Role) -> bool:
        if role.wire is None:
            if role.attach_at_ms > self.now_ms or self.engine is None:
                role.is_quiet = True
                return False
            self._attach(role, self.engine)
            return False
        is_more = bool(role.wire.outbox)
        sent = role.driver.step(self.now_ms, is_more_waiting=is_more)
        if sent is None:
            role.is_quiet = True
            return False
        self._send(role, sent)
        return True

    def _send(self, role: Role, sent: list[bytes]) -> None:
        if role.wire is not None and not role.wire.engine_is_gone:
            role.wire.inbox.extend(sent)

    def _attach(self, role: Role, engine: SimEngine) -> None:
        engine.now_ms = self.now_ms
        first, *rest = role.driver.attach()
        if self.tells:
            print(f"{self.steps:6} {self.now_ms} attach {role.driver.role}")
        role.wire = engine.attach(role.driver.role, first)
        role.wire.inbox.extend(rest)

    # Time, starts and ends.

    def _advance_clock(self, *, is_idle: bool) -> None:
        """Let time pass: a little, or as far as the next thing that waits for it."""
        step_ms = self.rng.choice((1, 1, 2, 5, 10))
        if is_idle:
            times = [at for at, _ in self.restarts]
            if self.engine is None:
                times.append(self.engine_at_ms)
            else:
                wake_ms = self.engine.wake_at_ms()
                times += [] if wake_ms is None else [wake_ms]
            for process in self.processes:
                times.append(process.stalled_until_ms)
                for role in process.roles:
                    wake_ms = role.driver.wake_at_ms()
                    times += [role.attach_at_ms]
                    times += [] if wake_ms is None else [wake_ms]
            ahead = [at for at in times if at > self.now_ms]
            step_ms = max(1, min([at - self.now_ms for at in ahead], default=20))
            step_ms = min(step_ms, 200)
        self.now_ms += step_ms
        for process in self.processes:
            for role in process.roles:
                role.is_quiet = False
        if self.options.late_streams and self.rng.random() < 0.3:
            hidden = [s for s in self.outside.streams.values() if not s.is_found]
            if hidden:
                hidden[0].is_found = True

    def _start_what_is_due(self) -> None:
        if self.engine is None and self.now_ms >= self.engine_at_ms:
            self.start_engine()
        if self.restarts:
            due = [item for item in self.restarts if item[0] <= self.now_ms]
            for item in due:
                self.restarts.remove(item)
                self.start_process(item[1])

    def start_engine(self) -> None:
        """Start an engine on what the disk holds."""
        self._engines += 1
        if self._engines > 1:
            self.note("an engine starts from the disk")
        self.engine = SimEngine(
            self.options,
            self.disk,
            self,
            incarnation=self._engines,
            now_ms=self.now_ms,
        )

    def start_process(self, kind: str) -> Process:
        """Start a plugin process."""
        self._numbers += 1
        number, options = self._numbers, self.options
        drivers: list[Driver] = []
        if kind in ("sources", "all"):
            for name in source_names(options):
                drivers.append(self.plugins.source(name, self.outside, number))
        if kind.startswith("compute") or kind == "all":
            drivers.append(self.plugins.compute())
        if kind in ("sinks", "all"):
            for name in sink_names(options):
                drivers.append(self.plugins.sink(name, self.outside))
        process = Process(number, kind, [Role(driver) for driver in drivers])
        self.processes.append(process)
        return process

    def lose_session(self, role: Role) -> None:
        """Let a role learn that its data stream is over; it will dial again.

        A process with connections ends with its session: that a connection's end is
        committed may never have reached it, and no other session may name it again.
        """
        if self.options.is_local and not self.options.local_sessions_survive:
            for process in self.processes:
                drivers = [r.driver for r in process.roles]
                if role.driver in drivers and any(d.role == "source" for d in drivers):
                    self.nemesis.kill(process)
                    return
        role.wire = None
        role.is_quiet = False
        role.driver.on_session_lost()
        role.attach_at_ms = self.now_ms + self.rng.choice((0, 1, 20))

    # What the engine and the outside show.

    def note(self, situation: str) -> None:
        """Count an interesting situation."""
        self.situations[situation] += 1

    def on_written(
        self, sink: str, partition: int, outputs: list[tuple[int, bytes]]
    ) -> None:
        """Check what becomes visible.

        A plugin may take an exception for trouble of its target: it is kept here.
        """
        try:
            self.targets.on_written(sink, partition, outputs)
        except Violation as violation:
            self._broken = self._broken or violation

    def _on_commit(self, manifest: Manifest, deltas: Sequence[StoredDelta]) -> None:
        self.epochs.on_commit(manifest, deltas)
        if manifest.epoch:
            self.commits += 1
            self.truth.epoch = manifest.epoch
            self.cut.on_commit(decoded(deltas))

    def on_stage_input(self, engine: SimEngine, effect: ToStage) -> None:
        """Check credit."""
        batch = effect.batch
        self.credit.on_sent(
            effect.instance,
            batch.channel,
            batch.count,
            len(batch.records),
            is_from_source=batch.sender == BOUNDARY,
        )

    def on_compute_reset(self, engine: SimEngine, effect: ResetCompute) -> None:
        """Count credit anew."""
        self.credit.on_reset(effect.instance)
        self._unreset[effect.instance] = effect.generation

    def on_fence(self, engine: SimEngine) -> None:
        """Check the fence of a worker."""
        self.fences.check(engine.number, engine.worker)

    def on_state(self, engine: SimEngine, change: StateChanged) -> None:
        """Note generations, and refuse pauses that nobody asked for."""
        if self.tells:
            print(f"{self.steps:6} {self.now_ms} {change}")
        pause = engine.coordinator.pause
        if pause is not None and pause.message != OPERATOR:
            raise Violation("NothingPausesByItself", f"{pause}")
        if change.state is CoordinatorState.WAITING:
            self.note("a stage has no plugin")

    def on_drop(self, engine: SimEngine, instance: InstanceId, cause: Cause) -> None:
        """End a session for which the engine has no more use."""
        if cause.code != "FENCED":
            raise Violation("NobodyBreaksTheProtocol", f"{instance}: {cause.message}")
        self.note("an older plugin is fenced")
        wire = engine.wires.get(instance)
        if wire is not None:
            wire.plugin_is_gone = True
        for process in self.processes:
            for role in process.roles:
                if role.wire is wire and wire is not None:
                    process.is_zombie = True

    def on_end(self, engine: SimEngine, how: str) -> None:
        """Finish, or start the next engine."""
        if engine is not self.engine:
            self.zombies.remove(engine)
            self.note(f"a zombie engine is {how}")
            if how == "finished":
                raise Violation("AtMostOneEngineLeads", "a zombie has finished")
            return
        if how == "deposed":
            raise Violation("OnlyAnotherLeaderDeposes", "nobody else has campaigned")
        if how == "finished":
            self.is_finished = True
        self.engine = None
        self.engine_at_ms = self.now_ms + self.rng.choice((0, 10))

    def describe(self) -> str:
        """Say where the world stands, for a schedule that does not end."""
        engine = self.engine
        if engine is None:
            return "no engine"
        coordinator = engine.coordinator
        missing = {
            name: f"{self.truth.positions.get(name, 0)} of {len(stream.records)}"
            for name, stream in self.outside.streams.items()
        }
        return (
            f"{coordinator.state}, generation {coordinator.generation}, epoch"
            f" {coordinator.committed_epoch}, open {coordinator.open_epochs}, streams"
            f" {missing}"
        )


def run(options: SimOptions, plugins: Plugins, *, tells: bool = False) -> Result:
    """Run one schedule. Raises `Violation`: a claim does not hold."""
    try:
        return World(options, plugins, tells).run()
    except BettongError as error:
        raise Violation("NobodyBreaksTheProtocol", str(error)) from error
