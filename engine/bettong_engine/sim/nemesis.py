"""Brings about what goes wrong, at any point, and in the end lets it heal."""

from collections.abc import Callable
from random import Random
from typing import TYPE_CHECKING

from bettong_engine.core.messages import Cause
from bettong_engine.sim.engine import Wire

if TYPE_CHECKING:
    from bettong_engine.sim.world import Process, World

RESTART_MS = (0, 5, 50, 150)
# The cause of the pauses that the nemesis asks for.
OPERATOR = "the operator pauses"


class Nemesis:
    """Faults by name, each with the rate that the schedule gives it."""

    def __init__(self, world: "World", rng: Random) -> None:
        self._world = world
        self._rng = rng
        # Data streams whose process is gone; the engine has yet to read to their end.
        self.orphans: list[Wire] = []
        self._faults: list[tuple[float, str, Callable[[], bool]]] = [
            (rate, name, getattr(self, f"_{name}"))
            for name, rate in world.options.faults
        ]
        self._ends: list[tuple[int, Callable[[], None]]] = []

    def maybe_strike(self) -> None:
        """Do what the dice say, and end what has lasted long enough."""
        world = self._world
        while self._ends and self._ends[0][0] <= world.steps:
            self._ends.pop(0)[1]()
        for rate, name, fault in self._faults:
            if self._rng.random() < rate and fault():
                world.faults[name] += 1
                if world.tells:
                    print(f"{world.steps:6} {world.now_ms} FAULT {name}")

    def heal(self) -> None:
        """End all faults, so that the schedule must come to its end."""
        for _, end in self._ends:
            end()
        self._ends.clear()
        world = self._world
        world.outside.down.clear()
        world.outside.is_source_down = False
        world.disk.refusals = 0
        for process in world.processes:
            process.stalled_until_ms = 0
        kinds = [p.kind for p in world.processes] + [kind for _, kind in world.restarts]
        for kind in world.kinds():
            if kind not in kinds:
                world.restarts.append((world.now_ms, kind))

    def _until(self, steps: int, end: Callable[[], None]) -> None:
        self._ends.append((self._world.steps + steps, end))
        self._ends.sort(key=lambda item: item[0])

    # Plugins.

    def kill(self, process: "Process", *, restarts: bool = True) -> None:
        """End a process: part of what it has sent may still arrive."""
        world = self._world
        world.processes.remove(process)
        for role in process.roles:
            role.driver.on_crash()
            wire = role.wire
            if wire is None or wire.engine_is_gone:
                continue
            for _ in range(self._rng.randint(0, len(wire.inbox))):
                wire.inbox.pop()
            wire.plugin_is_gone = True
            self.orphans = [w for w in self.orphans if not w.engine_is_gone]
            self.orphans.append(wire)
        if restarts:
            at_ms = world.now_ms + self._rng.choice(RESTART_MS)
            world.restarts.append((at_ms, process.kind))

    def _plugin_crash(self) -> bool:
        if not self._world.processes:
            return False
        process = self._rng.choice(self._world.processes)
        self.kill(process, restarts=not process.is_zombie)
        return True

    def _session_break(self) -> bool:
        """Break all data streams of a process; it lives on and dials again."""
        if not self._world.processes:
            return False
        process = self._rng.choice(self._world.processes)
        for role in process.roles:
            wire = role.wire
            if wire is None or wire.engine_is_gone:
                continue
            wire.plugin_is_gone = True
            self.orphans.append(wire)
            self._world.lose_session(role)
            if process not in self._world.processes:
                break
        return True

    def _stall(self) -> bool:
        if not self._world.processes:
            return False
        process = self._rng.choice(self._world.processes)
        process.stalled_until_ms = self._world.now_ms + self._rng.choice((5, 50, 500))
        return True

    def _instance_churn(self) -> bool:
        """Let a further computation join, or one leave for good."""
        world = self._world
        if world.options.is_one_process:
            return False
        computes = [p for p in world.processes if p.kind.startswith("compute")]
        if len(computes) > 1 and self._rng.random() < 0.5:
            self.kill(self._rng.choice(computes), restarts=False)
        elif len(computes) < 3:
            world.start_process("compute9")
        return True

    def _zombie_sink(self) -> bool:
        """Start a second process for the sinks while the first lives on."""
        world = self._world
        sinks = [p for p in world.processes if p.kind == "sinks"]
        if len(sinks) != 1 or any(kind == "sinks" for _, kind in world.restarts):
            return False
        old = sinks[0]
        old.is_zombie = True
        world.start_process("sinks")
        self._until(self._rng.choice((20, 100)), lambda: self._bury(old))
        return True

    def _bury(self, process: "Process") -> None:
        if process in self._world.processes:
            self.kill(process, restarts=False)

    def _source_trouble(self) -> bool:
        outside = self._world.outside
        outside.is_source_down = True
        self._until(40, lambda: setattr(outside, "is_source_down", False))
        return True

    # Targets.

    def _sink_trouble(self) -> bool:
        outside = self._world.outside
        if self._rng.random() < 0.5:
            outside.unanswered += 1
            return True
        sink = self._rng.choice(sorted({name for name, _ in outside.targets}))
        outside.down.add(sink)
        self._until(self._rng.choice((20, 200)), lambda: outside.down.discard(sink))
        return True

    # Store and engine.

    def _store_trouble(self) -> bool:
        self._world.disk.refusals = self._rng.randint(1, 5)
        return True

    def _store_unknown(self) -> bool:
        self._world.disk.unknown = self._rng.random() < 0.5
        return True

    def _engine_crash(self) -> bool:
        world = self._world
        engine = world.engine
        if engine is None:
            return False
        if engine.told:
            world.note("an engine crashes between transaction and announcement")
        elif engine.jobs:
            world.note("an engine crashes before its transaction")
        engine.crash()
        world.engine = None
        world.engine_at_ms = world.now_ms + self._rng.choice(RESTART_MS)
        return True

    def _zombie_engine(self) -> bool:
        """Start an engine while another one, cut off, still works at its store."""
        world = self._world
        engine = world.engine
        if engine is None or world.zombies or not (engine.jobs or engine.told):
            return False
        for wire in engine.wires.values():
            wire.engine_is_gone = True
        engine.wires.clear()
        world.zombies.append(engine)
        world.start_engine()
        self._until(200, lambda: self._bury_engine())
        return True

    def _bury_engine(self) -> None:
        self._world.zombies.clear()

    def _late_message(self) -> bool:
        """Repeat what the coordinator said in an older generation."""
        engine = self._world.engine
        return engine is not None and engine.hear_again(self._rng.randrange(40))

    def _drain(self) -> bool:
        engine = self._world.engine
        if engine is None or engine.is_draining:
            return False
        engine.now_ms = self._world.now_ms
        engine.drain()
        return True

    def _pause(self) -> bool:
        """Let the operator stop the application, and resume it later."""
        world = self._world
        engine = world.engine
        if engine is None or engine.coordinator.pause is not None:
            return False
        engine.now_ms = world.now_ms
        engine.pause(Cause("UNSPECIFIED", OPERATOR))

        def resume() -> None:
            if world.engine is engine:
                engine.now_ms = world.now_ms
                engine.resume()

        self._until(self._rng.choice((5, 60)), resume)
        return True
