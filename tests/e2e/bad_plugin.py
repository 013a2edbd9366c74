"""A peer of the engine that sends what it is told to, right or wrong.

It speaks protobuf over gRPC and nothing above it: no SDK. Tests drive it message by
message, or let the roles of `raw_roles` speak through it.
"""

import itertools
import os
import queue
import threading
from collections.abc import Callable, Iterable
from types import TracebackType
from typing import Any

import grpc

from bettong_proto.plugin.v1 import (
    application_pb2,
    compute_pb2,
    control_pb2,
    error_pb2,
    sink_pb2,
    source_pb2,
)

DEADLINE_S = 30.0
_SERVICE = "/bettong.plugin.v1.PluginHost/"
_MESSAGES: dict[str, tuple[Any, Any]] = {
    "Control": (control_pb2.ControlRequest, control_pb2.ControlResponse),
    "Source": (source_pb2.SourceRequest, source_pb2.SourceResponse),
    "Compute": (compute_pb2.ComputeRequest, compute_pb2.ComputeResponse),
    "Sink": (sink_pb2.SinkRequest, sink_pb2.SinkResponse),
}
_numbers = itertools.count()

Tamper = Callable[[Any], Iterable[Any]]


class EndOfStreamError(Exception):
    """The engine has ended the stream."""


class Stream:
    """One gRPC stream, read by a thread of its own.

    tamper: what is sent in place of each message; None: the message. Bytes are sent
    as they are.
    """

    def __init__(
        self, channel: grpc.Channel, method: str, tamper: Tamper | None = None
    ) -> None:
        _, response = _MESSAGES[method]
        self._tamper = tamper
        self._outgoing: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._incoming: queue.SimpleQueue[Any] = queue.SimpleQueue()
        call = channel.stream_stream(
            _SERVICE + method,
            request_serializer=_serialized,
            response_deserializer=response.FromString,
        )
        self._call = call(iter(self._outgoing.get, None))
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def send(self, message: Any) -> None:
        """Send a message, or what stands in its place."""
        for item in (message,) if self._tamper is None else self._tamper(message):
            self._outgoing.put(item)

    def receive(self, deadline_s: float = DEADLINE_S) -> Any:
        """Return the next message. Raises `EndOfStreamError`."""
        try:
            message = self._incoming.get(timeout=deadline_s)
        except queue.Empty:
            raise AssertionError(f"nothing came for {deadline_s:.0f} s") from None
        if message is None:
            self._incoming.put(None)
            raise EndOfStreamError
        return message

    def expect(self, kind: str, deadline_s: float = DEADLINE_S) -> Any:
        """Return the next message of a kind; others before it are passed over."""
        while True:
            message = self.receive(deadline_s)
            if message.WhichOneof("message") == kind:
                return getattr(message, kind)

    def ends(self, deadline_s: float = DEADLINE_S) -> grpc.StatusCode:
        """Wait until the engine has ended the stream; return the status."""
        try:
            while True:
                self.receive(deadline_s)
        except EndOfStreamError:
            status = self._call.code()
            assert isinstance(status, grpc.StatusCode)
            return status

    def close(self) -> None:
        """End this side, and forget the other."""
        self._outgoing.put(None)
        self._call.cancel()

    def _read(self) -> None:
        try:
            for message in self._call:
                self._incoming.put(message)
        except grpc.RpcError:
            pass
        self._incoming.put(None)


class Peer:
    """A plugin process as the engine sees it: one session, any number of roles.

    answers_pings: False plays dead.
    """

    def __init__(self, address: str, *, answers_pings: bool = True) -> None:
        self.address = address
        self.session_id = b""
        self.welcome = control_pb2.Welcome()
        self._answers_pings = answers_pings
        self._channels: list[grpc.Channel] = []
        self._streams: list[Stream] = []
        self._messages: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self.control = self.open("Control")

    def __enter__(self) -> "Peer":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def open(self, method: str, tamper: Tamper | None = None) -> Stream:
        """Open a stream on a connection of its own."""
        options = [
            ("grpc.max_receive_message_length", 64 << 20),
            ("grpc.max_send_message_length", 64 << 20),
            ("bettong.channel", next(_numbers)),
        ]
        channel = grpc.insecure_channel(self.address, options)
        self._channels.append(channel)
        stream = Stream(channel, method, tamper)
        self._streams.append(stream)
        return stream

    def hello(self, token: str, **changes: Any) -> Any:
        """Say hello; return the engine's first answer, Welcome or Reject."""
        fields: dict[str, Any] = {
            "token": token.encode(),
            "plugin_name": "bad plugin",
            "revision_min": 1,
            "revision_max": 1,
            "capabilities": ["routing.v1", "timers.v1"],
            "incarnation": os.urandom(16),
            "pid": os.getpid(),
            **changes,
        }
        hello = control_pb2.Hello(**fields)
        self.control.send(control_pb2.ControlRequest(hello=hello))
        answer = self.control.receive()
        if answer.WhichOneof("message") == "welcome":
            self.welcome = answer.welcome
            self.session_id = answer.welcome.session_id
        return answer

    def register(self, application: application_pb2.Application, **more: Any) -> Any:
        """Register an application; return Registered or Reject, as ControlResponse."""
        request = control_pb2.RegisterApplication(application=application, **more)
        self.control.send(control_pb2.ControlRequest(register_application=request))
        while True:
            answer = self.next_control()
            if answer.WhichOneof("message") in ("registered", "reject"):
                return answer

    def join(self, token: str, application: application_pb2.Application) -> "Peer":
        """Begin a session and register, as a good plugin does."""
        assert self.hello(token).HasField("welcome")
        assert self.register(application).HasField("registered")
        self.serve_control()
        return self

    def next_control(self, deadline_s: float = DEADLINE_S) -> Any:
        """Return the next message on Control that is not a ping."""
        while True:
            message = self.control.receive(deadline_s)
            if message.WhichOneof("message") != "ping":
                return message
            if self._answers_pings:
                pong = control_pb2.Pong(nonce=message.ping.nonce)
                self.control.send(control_pb2.ControlRequest(pong=pong))

    def serve_control(self) -> None:
        """Answer pings from now on, in a thread; the rest waits for `is_told`."""
        threading.Thread(target=self._serve_control, daemon=True).start()

    def is_told(self, deadline_s: float = DEADLINE_S) -> error_pb2.Error:
        """Return the error that the engine holds against this session, and its end.

        Raises:
            AssertionError: it says nothing, or does not end the session after it.
        """
        error: error_pb2.Error | None = None
        while True:
            try:
                message = self._messages.get(timeout=deadline_s)
            except queue.Empty:
                raise AssertionError(f"no end of the session; {error}") from None
            if message is None:
                assert error is not None, "the session ended without a word"
                return error
            if message.WhichOneof("message") == "error":
                error = message.error

    def is_blamed(self) -> bool:
        """Tell whether the engine has said by now that this plugin was at fault."""
        while not self._messages.empty():
            message = self._messages.get()
            if message is not None and message.WhichOneof("message") == "error":
                return True
        return False

    def attach(self, role: str, tamper: Tamper | None = None, **fields: Any) -> Stream:
        """Open the data stream of a role and send its Attach."""
        attach = {"session_id": self.session_id, **fields}
        request, _ = _MESSAGES[role]
        stream = self.open(role, tamper)
        stream.send(request(attach=attach))
        return stream

    def close(self) -> None:
        """Vanish."""
        for stream in self._streams:
            stream.close()
        for channel in self._channels:
            channel.close()

    def _serve_control(self) -> None:
        try:
            while True:
                self._messages.put(self.next_control(24 * 3600.0))
        except EndOfStreamError:
            self._messages.put(None)


def _serialized(message: Any) -> bytes:
    if isinstance(message, bytes):
        return message
    data = message.SerializeToString()
    assert isinstance(data, bytes)
    return data
