"""One data stream of a plugin, as the runtime sees it: a place to send to.

Sending never waits: what is on its way is bounded by credits and windows, which the
core keeps. Credits that pile up behind a busy stream are merged into one message.
"""

import asyncio
from collections.abc import Callable, Iterable
from typing import Any

from bettong_engine.core.dataflow import Grant
from bettong_engine.core.ids import InstanceId
from bettong_engine.net.outbox import Outbox


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
        self._outbox = Outbox(pack_credits)
        self._wake = asyncio.Event()

    def send(self, message: Any) -> None:
        """Put a message at the end of the stream."""
        self._outbox.send(message)
        self._wake.set()

    def grant(self, grant: Grant) -> None:
        """Raise a credit; sent with the next message, or alone."""
        self._outbox.grant(grant)
        self._wake.set()

    def close(self) -> None:
        """End the stream once everything before is sent."""
        self.is_open = False
        self._wake.set()

    async def write_to(self, context: Any) -> None:
        """Write what is sent here to the stream, until `close`."""
        while True:
            while self._outbox:
                await context.write(self._outbox.take())
            if not self.is_open:
                return
            self._wake.clear()
            await self._wake.wait()
