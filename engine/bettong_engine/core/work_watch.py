"""Watches what a worker has: something to commit, a full log, the end of all input.

Tells the coordinator that the open epoch is worth a cut, and that all is finished;
holds the sources while outputs cannot leave.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from bettong_engine.core.effects import Effect, HoldSource, Tell
from bettong_engine.core.ids import Epoch, WorkerId
from bettong_engine.core.limits import WorkerLimits
from bettong_engine.core.messages import Finished, WorkAvailable
from bettong_engine.core.partition import Partition
from bettong_engine.core.run import Run
from bettong_engine.core.sink_desk import SinkDesk
from bettong_engine.core.timers import PROCESSING_TIME
from bettong_engine.core.topology import Topology


@dataclass(slots=True)
class _Told:
    """What the coordinator was told of the current generation."""

    work: Epoch | None = None
    is_work_urgent: bool = False
    is_finished: bool = False


class WorkWatch:
    """Invariant: of each epoch work is told at most twice, the end at most once."""

    def __init__(
        self,
        worker: WorkerId,
        topology: Topology,
        partitions: Sequence[Partition],
        sinks: SinkDesk,
        *,
        limits: WorkerLimits,
    ) -> None:
        self._worker = worker
        self._stages = [stage.name for stage in topology.stages if stage.keyed]
        self._partitions = partitions
        self._sinks = sinks
        self._limits = limits
        self._told = _Told()
        self._is_held_by_log = False
        self._is_stopping = False
        self._progress_since_ms: int | None = None
        self._settled_ms = 0
        # When the first processing-time timer is due; not known after a change.
        self._timer_due_us: int | None = None
        self._is_timer_known = False

    @property
    def is_held(self) -> bool:
        """Tell whether sources may begin no new read."""
        return self._is_held_by_log or self._is_stopping

    def wake_at_ms(self) -> int | None:
        """Return when `settle` is wanted at the latest, or None.

        What was due at the last one has been told, and waits for the coordinator.
        """
        times = []
        if self._progress_since_ms is not None:
            times.append(self._progress_since_ms + self._limits.progress_delay_ms_max)
        if (due_us := self._next_timer_due_us()) is not None:
            times.append(due_us // 1000 + 1)
        return min((t for t in times if t > self._settled_ms), default=None)

    def on_generation(self) -> None:
        """Begin anew: timers are those committed, and nothing was told."""
        self._told = _Told()
        self._is_stopping = False
        self._progress_since_ms = None
        self._is_timer_known = False

    def on_timers_changed(self) -> None:
        """Look again when the next timer is due."""
        self._is_timer_known = False

    def stop(self, run: Run | None, reason: str, now_ms: int) -> list[Effect]:
        """Let no new read in, until the next generation."""
        self._is_stopping = True
        return [] if run is None else self._set_hold(run, reason, now_ms)

    def settle(self, run: Run, committed: Epoch, now_ms: int) -> list[Effect]:
        """Hold or release sources, tell of work, and notice the end."""
        self._settled_ms = now_ms
        return [
            *self._hold_by_log(run, now_ms),
            *self._tell_work(run, now_ms),
            *self._tell_end(run, committed, now_ms),
        ]

    def _log_bytes(self, run: Run) -> int:
        return self._sinks.log_bytes + run.ledger.output_bytes

    def _hold_by_log(self, run: Run, now_ms: int) -> list[Effect]:
        is_full = self._log_bytes(run) >= self._limits.output_log_bytes_max
        if is_full == self._is_held_by_log:
            return []
        self._is_held_by_log = is_full
        return self._set_hold(run, "a sink is behind: its output log is full", now_ms)

    def _set_hold(self, run: Run, reason: str, now_ms: int) -> list[Effect]:
        effects: list[Effect] = [
            HoldSource(instance, self.is_held, reason)
            for instance in run.source_plugins.values()
        ]
        return effects + run.on_boundary(run.boundary.hold(self.is_held), now_ms)

    def _tell_work(self, run: Run, now_ms: int) -> list[Effect]:
        epoch, told = run.boundary.open_epoch, self._told
        is_urgent = run.boundary.open_bytes * 2 >= self._limits.uncommitted_bytes_max
        if told.work == epoch and (told.is_work_urgent or not is_urgent):
            return []
        has_progress = self._has_progress_due(run, now_ms)
        if not (
            run.boundary.has_work()
            or run.ledger.of(epoch).skipped
            or has_progress
            # One barrier at a time fires timers: those of it may be these.
            or (self._has_timer_due(now_ms) and not run.ledger.has_incomplete)
        ):
            return []
        told.work, told.is_work_urgent = epoch, is_urgent
        return [Tell(WorkAvailable(self._worker, run.generation, epoch, is_urgent))]

    def _tell_end(self, run: Run, committed: Epoch, now_ms: int) -> list[Effect]:
        if (
            self._told.is_finished
            or not run.boundary.is_exhausted()
            or run.boundary.has_work()
            or run.boundary.open_epoch != committed + 1
            or run.ledger.of(run.boundary.open_epoch).skipped
            or self._has_timer_due(now_ms)
            or not self._sinks.has_delivered_all()
        ):
            return []
        self._told.is_finished = True
        return [Tell(Finished(self._worker, run.generation))]

    def _has_progress_due(self, run: Run, now_ms: int) -> bool:
        """Tell whether targets' progress has waited long enough to be recorded."""
        if not self._sinks.has_unrecorded_progress():
            self._progress_since_ms = None
            return False
        if self._progress_since_ms is None:
            self._progress_since_ms = now_ms
        if self._log_bytes(run) * 2 >= self._limits.output_log_bytes_max:
            return True
        return now_ms - self._progress_since_ms >= self._limits.progress_delay_ms_max

    def _has_timer_due(self, now_ms: int) -> bool:
        due_us = self._next_timer_due_us()
        return due_us is not None and due_us <= now_ms * 1000

    def _next_timer_due_us(self) -> int | None:
        if not self._is_timer_known:
            self._is_timer_known = True
            found = (
                partition.timers_of(stage).next_due_us(PROCESSING_TIME)
                for partition in self._partitions
                for stage in self._stages
            )
            due = [due_us for due_us in found if due_us is not None]
            self._timer_due_us = min(due, default=None)
        return self._timer_due_us
