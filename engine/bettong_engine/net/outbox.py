"""What waits to be written to one data stream, and the credits that go along.

Pure: the links of the server use it, and so does the simulator. Credits carry no
generation, they belong to that of the stream at their place. So they never overtake
a reset, in neither direction: those from before it are void, and those from after it
must not go out with a message that is ahead of it.
"""

from collections import deque
from collections.abc import Callable, Iterable
from typing import Any

from bettong_engine.core.dataflow import Grant


class Outbox:
    """Messages in order. Invariant: waiting credits are of the last reset sent here."""

    def __init__(self, pack_credits: Callable[[Iterable[Grant]], Any] | None) -> None:
        self._pack_credits = pack_credits
        self._queue: deque[Any] = deque()
        self._grants: dict[tuple[int, int, int], Grant] = {}
        self._resets = 0

    def __len__(self) -> int:
        return len(self._queue) + (1 if self._grants and not self._resets else 0)

    def send(self, message: Any) -> None:
        """Put a message at the end."""
        if _is_reset(message):
            self._grants.clear()
            self._resets += 1
        self._queue.append(message)

    def grant(self, grant: Grant) -> None:
        """Raise a credit; it goes out with some later message, or alone."""
        self._grants[grant.stage, grant.output, grant.target] = grant

    def take(self) -> Any:
        """Return what is to be written next. Only if there is something."""
        message = self._queue.popleft() if self._queue else None
        if message is not None and _is_reset(message):
            self._resets -= 1
            return message
        if self._resets or not self._grants or self._pack_credits is None:
            return message
        packed = self._pack_credits(self._grants.values())
        self._grants.clear()
        if message is None:
            return packed
        message.credits.extend(packed.credits)
        return message


def _is_reset(message: Any) -> bool:
    return bool(message.WhichOneof("message") == "reset")
