"""One gRPC stream of a plugin, as two queues.

gRPC's own threads send and receive; user code runs in another. What waits in the
queues is bounded by the credits and windows of the protocol, not by the queues.
"""

import queue
import threading
from collections.abc import Callable, Iterable
from enum import Enum
from typing import Any, Generic, TypeVar

import grpc

from bettong.runtime import limits

RequestT = TypeVar("RequestT")
ResponseT = TypeVar("ResponseT")

_SERVICE = "/bettong.plugin.v1.PluginHost/"


class Signal(Enum):
    """What another thread tells the role that reads a link."""

    DRAIN = "drain"
    STOP = "stop"
    # The stream has ended; `Link.status` says how.
    ENDED = "ended"


def open_channel(address: str) -> grpc.Channel:
    """Return a channel with a connection of its own."""
    options: list[tuple[str, Any]] = [
        ("grpc.max_receive_message_length", limits.MESSAGE_BYTES_MAX),
        ("grpc.max_send_message_length", limits.MESSAGE_BYTES_MAX),
        # Channels with equal arguments would share one connection, and heartbeats
        # wait behind data.
        ("grpc.use_local_subchannel_pool", 1),
        ("grpc.enable_http_proxy", 0),
        ("grpc.initial_reconnect_backoff_ms", limits.RETRY_DELAY_MS_MIN),
        ("grpc.max_reconnect_backoff_ms", 1_000),
    ]
    return grpc.insecure_channel(address, options)


class Link(Generic[RequestT, ResponseT]):
    """A bidirectional stream. `inbox` ends with `Signal.ENDED`."""

    def __init__(
        self,
        channel: grpc.Channel,
        method: str,
        serialize: Callable[[RequestT], bytes],
        deserialize: Callable[[bytes], ResponseT],
    ) -> None:
        self.inbox: queue.SimpleQueue[ResponseT | Signal] = queue.SimpleQueue()
        self.status: grpc.StatusCode | None = None
        self.details = ""
        self._outbox: queue.SimpleQueue[RequestT | None] = queue.SimpleQueue()
        stub = channel.stream_stream(
            _SERVICE + method,
            request_serializer=serialize,
            response_deserializer=deserialize,
        )
        self._call: Any = stub(iter(self._outbox.get, None))
        self._receiver = threading.Thread(
            target=self._receive, name=f"bettong-{method.lower()}-in", daemon=True
        )
        self._receiver.start()

    def send(self, message: RequestT) -> None:
        """Send a message, in order. After the end of the stream: nothing happens."""
        self._outbox.put(message)

    def send_all(self, messages: Iterable[RequestT]) -> None:
        """Send messages in order."""
        for message in messages:
            self._outbox.put(message)

    def close(self, timeout_s: float = 0.0) -> None:
        """End the stream, at once or when the engine has ended its side in time."""
        self._outbox.put(None)
        if timeout_s:
            self._receiver.join(timeout_s)
        self._call.cancel()

    def _receive(self) -> None:
        put = self.inbox.put
        try:
            for message in self._call:
                put(message)
            self.status = grpc.StatusCode.OK
        except grpc.RpcError as error:
            # What a stream raises is its own call object.
            if isinstance(error, grpc.Call):
                self.status = error.code()
                self.details = error.details() or ""
        finally:
            # The request iterator blocks in the outbox until it gets its end.
            self._outbox.put(None)
            put(Signal.ENDED)
