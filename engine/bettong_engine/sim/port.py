"""What the world asks of plugins: it brings none, so that any may be brought.

A driver is one role of a plugin process. It speaks serialized messages of its data
stream. Drivers of one process live and die together.
"""

from collections.abc import Sequence
from typing import Protocol

from bettong_engine.sim.outside import Outside


class Driver(Protocol):
    """One role. `role` is "source", "compute" or "sink"."""

    role: str

    def attach(self) -> list[bytes]:
        """Begin a session; return its first messages, Attach ahead."""

    def on_message(self, data: bytes, now_ms: int) -> list[bytes]:
        """Take a message of the engine; return what is to be sent at once."""

    def step(self, now_ms: int, *, is_more_waiting: bool) -> list[bytes] | None:
        """Do one unit of work; None: there was nothing to do."""

    def wake_at_ms(self) -> int | None:
        """Return when `step` may have something to do again by the clock alone."""

    def on_session_lost(self) -> None:
        """Learn that the engine is gone; the process lives on."""

    def on_crash(self) -> None:
        """Leave behind what a process leaves when it dies: nothing is flushed."""


class Plugins(Protocol):
    """Makes the drivers of a plugin process that starts."""

    def source(self, name: str, outside: Outside, process: int) -> Driver:
        """Return a source of that process."""

    def compute(self) -> Driver:
        """Return a computation that offers all stages."""

    def sink(self, name: str, outside: Outside) -> Driver:
        """Return a sink."""


def serialized(messages: Sequence[object]) -> list[bytes]:
    """Return messages as they go over the wire."""
    return [message.SerializeToString() for message in messages]  # type: ignore[attr-defined]
