"""The timers of one stage: what this epoch did to them, and which fire at a barrier.

The engine holds the timers of earlier epochs and sends those that are due. They fire
in rounds: all that are due, by (due, key, kind, name); then those that these have set
and that are due, until none is.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from bettong.context import TIMER_KINDS, TimerChange
from bettong.runtime import limits
from bettong_proto.plugin.v1 import batch_pb2

# (key bytes, kind, name)
TimerName = tuple[bytes, int, str]

_EVENT = TIMER_KINDS["event"]


@dataclass(frozen=True, slots=True)
class Due:
    """A timer on its way to user code."""

    due_us: int
    timer: TimerName

    @property
    def order(self) -> tuple[int, bytes, int, bytes]:
        """The place among the timers of a round."""
        key, kind, name = self.timer
        return (self.due_us, key, kind, name.encode())


class StageTimers:
    """Outcome of the open epoch by timer: the due time, or None: deleted or fired."""

    def __init__(self) -> None:
        self._outcome: dict[TimerName, int | None] = {}
        self._from_engine: dict[TimerName, int] = {}
        self._watermark_us: int | None = None
        self._processing_time_us = 0
        self._set_since: list[TimerName] = []
        self._round: list[Due] = []
        self._rounds = 0

    def reset(self) -> None:
        """Forget the open epoch."""
        self._outcome.clear()
        self._from_engine.clear()
        self._set_since.clear()
        self._round = []

    def on_due(self, timers: batch_pb2.Timers) -> None:
        """Take timers of earlier epochs that are due at the next barrier."""
        columns = zip(
            timers.keys, timers.kinds, timers.names, timers.due_us, strict=True
        )
        for key, kind, name, due_us in columns:
            self._from_engine[key, int(kind), name] = due_us

    def on_changes(self, key: bytes, changes: Sequence[TimerChange]) -> None:
        """Take what one call of user code did to the timers of its key."""
        for kind, name, due_us in changes:
            timer = (key, kind, name)
            self._outcome[timer] = due_us
            if due_us is not None:
                self._set_since.append(timer)

    def begin_barrier(
        self, *, watermark_us: int | None, processing_time_us: int
    ) -> None:
        """Fix the times of the barrier and make the first round."""
        self._watermark_us = watermark_us
        self._processing_time_us = processing_time_us
        self._rounds = 0
        self._set_since = list(self._outcome)
        self._next_round(list(self._from_engine))

    def take(self) -> list[Due]:
        """Return the next timers to fire, at most `TIMERS_A_STEP_MAX`; none: done."""
        if not self._round and self._rounds < limits.TIMER_ROUNDS_MAX:
            self._next_round([])
        taken = self._round[: limits.TIMERS_A_STEP_MAX]
        self._round = self._round[limits.TIMERS_A_STEP_MAX :]
        return taken

    def fire(self, taken: Sequence[Due]) -> Iterator[tuple[bytes, str, int]]:
        """Give each taken timer that is still set, as fired: (key, name, due time).

        A timer that an earlier one has deleted or moved is left out.
        """
        for due in taken:
            if self._current(due.timer) == due.due_us:
                self._outcome[due.timer] = None
                key, _, name = due.timer
                yield key, name, due.due_us

    def drain(self) -> dict[TimerName, int | None]:
        """End the epoch; return its outcome in the order of first changes."""
        outcome, self._outcome = self._outcome, {}
        self._from_engine.clear()
        self._set_since.clear()
        self._round = []
        return outcome

    def _next_round(self, more: list[TimerName]) -> None:
        self._rounds += 1
        names = dict.fromkeys([*more, *self._set_since])
        self._set_since = []
        found = []
        for timer in names:
            due_us = self._current(timer)
            if due_us is not None and self._is_due(timer, due_us):
                found.append(Due(due_us, timer))
        self._round = sorted(found, key=lambda due: due.order)

    def _current(self, timer: TimerName) -> int | None:
        if timer in self._outcome:
            return self._outcome[timer]
        return self._from_engine.get(timer)

    def _is_due(self, timer: TimerName, due_us: int) -> bool:
        if timer[1] == _EVENT:
            return self._watermark_us is not None and due_us <= self._watermark_us
        return due_us <= self._processing_time_us
