"""One data stream of a plugin, as the runtime sees it: a place to send to.

Sending never waits: what is on its way is bounded by credits and windows, which the
core keeps. Credits that pile up behind a busy stream are merged into one message.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any

from bettong_engine.core.dataflow import Grant
from bettong_engine.core.ids import InstanceId


class Link:
    """The engine's side of one data stream."""

    def __init__(
        self,
        instance: InstanceId,
        session_id: bytes,
        role: str,
        name: str,
        pack_credits: Callable[[Iterable[Grant]], Any] | None,
    ) -> None:
        self.instance = instance
        self.session_id = session_id
        # "source", "compute" or "sink", and what it is called.
        self.role = role
        self.name = name
        self.is_open = True
        self._pack_credits = pack_credits
        self._queue: deque[Any] = deque()
        self._grants: dict[tuple[int, int, int], Grant] = {}
        self._wake = asyncio.Event()

    def send(self, message: Any) -> None:
        """Put a message at the end of the stream."""
        self._queue.append(message)
        self._wake.set()

    def grant(self, grant: Grant) -> None:
        """Raise a credit; sent with the next message, or alone."""
        self._grants[grant.stage, grant.output, grant.target] = grant
        self._wake.set()

    def close(self) -> None:
        """End the stream once everything before is sent."""
        self.is_open = False
        self._wake.set()

    async def write_to(self, context: Any) -> None:
        """Write what is sent here to the stream, until `close`."""
        while True:
            while self._queue or self._grants:
                message = self._queue.popleft() if self._queue else None
                await context.write(self._with_credits(message))
            if not self.is_open:
                return
            self._wake.clear()
            await self._wake.wait()

    def _with_credits(self, message: Any) -> Any:
        if not self._grants or self._pack_credits is None:
            return message
        packed = self._pack_credits(self._grants.values())
        self._grants.clear()
        if message is None:
            return packed
        message.credits.extend(packed.credits)
        return message
