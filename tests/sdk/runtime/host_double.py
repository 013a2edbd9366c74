"""The engine double behind a real gRPC server: plugins dial it as they dial an engine.

Each data stream is a pair of queues; the double's loop, in the thread of the test, sees
machines whose messages travel to another process.
"""

import queue
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
from tests.sdk.runtime.engine_double import EngineDouble
from tests.sdk.runtime.engine_records import Options

from bettong.plan import Plan
from bettong_proto.plugin.v1 import (
    compute_pb2,
    control_pb2,
    sink_pb2,
    source_pb2,
)

TOKEN = b"secret"
SESSION = b"session-1"


class RemoteMachine:
    """A role in another process, in the shape of its machine."""

    def __init__(self) -> None:
        self.outgoing: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self.incoming: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self.attached = threading.Event()
        self.stages: list[Any] = []

    def on_message(self, message: Any, now_ms: int = 0) -> list[Any]:
        self.outgoing.put(message)
        return []

    def step(self, now_ms: int = 0, *, is_more_waiting: bool = False) -> list[Any]:
        try:
            return [self.incoming.get(timeout=0.001)]
        except queue.Empty:
            return []

    def has_work(self) -> bool:
        return True

    def close(self) -> None:
        self.outgoing.put(None)


class RemoteEngine(EngineDouble):
    """The double, with all machines in other processes."""

    def _new_source(self, source: Any) -> Any:
        return RemoteMachine()

    def _new_compute(self) -> Any:
        return RemoteMachine()


class HostDouble:
    """Serves `PluginHost` on a unix socket in a directory of the test."""

    def __init__(
        self, plan: Plan, directory: Path, options: Options | None = None
    ) -> None:
        self.engine = RemoteEngine(plan, seed=1, options=options)
        self.sinks = self.engine.sinks.machines
        for name in self.sinks:
            self.sinks[name] = RemoteMachine()  # type: ignore[assignment]
        self.address = f"unix:{directory}/engine.sock"
        self.hellos: list[control_pb2.Hello] = []
        self.received: queue.SimpleQueue[control_pb2.ControlRequest] = (
            queue.SimpleQueue()
        )
        self.to_control: queue.SimpleQueue[control_pb2.ControlResponse | None] = (
            queue.SimpleQueue()
        )
        self.roles: list[control_pb2.RoleKind] = []
        self._server = grpc.server(ThreadPoolExecutor(16))
        self._server.add_generic_rpc_handlers(
            (
                grpc.method_handlers_generic_handler(
                    "bettong.plugin.v1.PluginHost",
                    {
                        "Control": _handler(self._control, control_pb2.ControlRequest),
                        "Source": _handler(self._source, source_pb2.SourceRequest),
                        "Compute": _handler(self._compute, compute_pb2.ComputeRequest),
                        "Sink": _handler(self._sink, sink_pb2.SinkRequest),
                    },
                ),
            )
        )
        self._server.add_insecure_port(self.address)
        self._server.start()

    def stop(self) -> None:
        """Cut all connections, as if the engine had died."""
        self.to_control.put(None)
        self._server.stop(0).wait()

    def tell(self, **message: Any) -> None:
        """Send a message on the control stream."""
        self.to_control.put(control_pb2.ControlResponse(**message))

    def await_control(self, kind: str, timeout_s: float = 10.0) -> Any:
        """Return the next control message of a kind; others are dropped."""
        while True:
            message = self.received.get(timeout=timeout_s)
            if message.WhichOneof("message") == kind:
                return getattr(message, kind)

    def _control(self, requests: Iterator[Any], context: Any) -> Iterator[Any]:
        hello = next(requests).hello
        self.hellos.append(hello)
        if hello.token != TOKEN:
            yield control_pb2.ControlResponse(
                reject=control_pb2.Reject(
                    code=1,  # BAD_TOKEN
                    message="the token is not known",
                    remedy="start the plugin with `bettong run`",
                )
            )
            return
        yield control_pb2.ControlResponse(
            welcome=control_pb2.Welcome(
                session_id=SESSION,
                revision=1,
                capabilities=["routing.v1", "cache.survive.v1", "timers.v1"],
                cluster_id=b"c" * 16,
                roles=self.roles,
                log_level=control_pb2.LOG_LEVEL_INFO,
            )
        )
        assert next(requests).HasField("register_application")
        yield control_pb2.ControlResponse(
            registered=control_pb2.Registered(application="x")
        )

        def receive() -> None:
            try:
                for request in requests:
                    self.received.put(request)
            except grpc.RpcError:
                pass
            finally:
                self.to_control.put(None)

        threading.Thread(target=receive, daemon=True).start()
        yield from iter(self.to_control.get, None)

    def _source(self, requests: Iterator[Any], context: Any) -> Iterator[Any]:
        attach = next(requests).attach
        return self._serve(self.engine.sources[attach.source], attach, requests)

    def _compute(self, requests: Iterator[Any], context: Any) -> Iterator[Any]:
        return self._serve(self.engine.compute, next(requests).attach, requests)

    def _sink(self, requests: Iterator[Any], context: Any) -> Iterator[Any]:
        attach = next(requests).attach
        return self._serve(self.sinks[attach.sink], attach, requests)

    def _serve(
        self, machine: Any, attach: Any, requests: Iterator[Any]
    ) -> Iterator[Any]:
        assert attach.session_id == SESSION

        def receive() -> None:
            try:
                for request in requests:
                    machine.incoming.put(request)
            except grpc.RpcError:
                pass
            finally:
                machine.outgoing.put(None)

        threading.Thread(target=receive, daemon=True).start()
        machine.attached.set()
        return iter(machine.outgoing.get, None)


def _handler(behave: Callable[..., Iterator[Any]], request: Any) -> Any:
    return grpc.stream_stream_rpc_method_handler(
        behave,
        request_deserializer=request.FromString,
        response_serializer=lambda message: message.SerializeToString(),
    )
