"""Serves the plugin protocol: sessions, and the data streams that belong to them.

Knows the wire and nothing else: what a message means is the runtime's business,
which it tells through `PluginEvents`. A peer that breaks the contract gets a typed
error and loses its session; the engine goes on.
"""

import asyncio
import secrets
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

import grpc
import structlog

from bettong_engine.core.handshake import (
    CAPABILITIES,
    REVISION_MAX,
    REVISION_MIN,
    Admission,
    Doorkeeper,
    Hello,
    Refusal,
    Ticket,
)
from bettong_engine.core.ids import InstanceId
from bettong_engine.core.messages import Cause
from bettong_engine.errors import BettongError, ProtocolError
from bettong_engine.net import translate
from bettong_engine.net.link import Link
from bettong_proto.plugin.v1 import (
    compute_pb2,
    control_pb2,
    error_pb2,
    sink_pb2,
    source_pb2,
)

log = structlog.get_logger()

SERVICE = "bettong.plugin.v1.PluginHost"
# Told in Welcome.limits; that of gRPC is above, so that the answer can be typed.
MESSAGE_BYTES_MAX = 4 << 20


@dataclass(frozen=True, slots=True)
class HostLimits:
    """How patient the engine is with plugins.

    hello_timeout_ms: from the connection to Hello. ping_timeout_ms: without a Pong;
    extensions may hold an interpreter's lock for long, slow is not dead.
    batch_timeout_ms: one call of user code.
    """

    hello_timeout_ms: int = 30_000
    ping_interval_ms: int = 1_000
    ping_timeout_ms: int = 30_000
    batch_timeout_ms: int = 60_000


@dataclass(slots=True)
class Session:
    """One plugin process, from Hello until its Control stream ends."""

    session_id: bytes
    ticket: Ticket
    hello: Hello
    capabilities: tuple[str, ...]
    peer: str
    outgoing: asyncio.Queue[control_pb2.ControlResponse]
    links: dict[InstanceId, Link] = field(default_factory=dict)
    last_pong: float = 0.0
    busy_ms: int = 0
    busy_step: str = ""
    metrics: dict[str, float] = field(default_factory=dict)
    metric_names: dict[int, str] = field(default_factory=dict)
    # The engine has said Reject, after which it says nothing.
    is_rejected: bool = False
    # What the engine ends it for; None: the plugin ends it.
    fault: Cause | None = None
    # Set when the session is to end.
    ended: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def name(self) -> str:
        """For people: what the supervisor or the plugin calls itself."""
        return self.ticket.plugin or self.hello.plugin or "plugin"


class PluginEvents(Protocol):
    """What the runtime learns from plugins. Methods raise `ProtocolError`."""

    async def on_session(self, session: Session) -> None:
        """A plugin was admitted."""

    async def on_registered(
        self, session: Session, request: control_pb2.RegisterApplication
    ) -> None:
        """A plugin registers the application."""

    def on_session_ended(self, session: Session, cause: Cause) -> None:
        """A plugin's Control stream is gone."""

    def on_plugin_error(self, session: Session, error: error_pb2.Error) -> None:
        """A plugin reports that it cannot go on."""

    def on_plugin_logs(self, session: Session, logs: control_pb2.LogBatch) -> None:
        """A plugin forwards log lines."""

    def on_drained(self, session: Session) -> None:
        """A plugin has sent all that it has read."""

    def new_instance(self) -> InstanceId:
        """Return a number for a data stream."""

    def on_attached(self, session: Session, link: Link, attach: Any) -> None:
        """A data stream has named its role."""

    def on_detached(self, session: Session, link: Link, cause: Cause) -> None:
        """A data stream is gone."""

    def on_source(self, link: Link, request: source_pb2.SourceRequest) -> None:
        """A source says something."""

    def on_compute(self, link: Link, request: compute_pb2.ComputeRequest) -> None:
        """A computation says something."""

    def on_sink(self, link: Link, request: sink_pb2.SinkRequest) -> None:
        """A sink says something."""


class PluginHost(grpc.GenericRpcHandler):
    """The service. Invariant: a data stream lives no longer than its session."""

    def __init__(
        self,
        doorkeeper: Doorkeeper,
        events: PluginEvents,
        cluster_id: bytes,
        limits: HostLimits,
    ) -> None:
        self.sessions: dict[bytes, Session] = {}
        self._limits = limits
        self._doorkeeper = doorkeeper
        self._events = events
        self._cluster_id = cluster_id
        self._methods = {
            f"/{SERVICE}/Control": _stream(
                self._control, control_pb2.ControlRequest, control_pb2.ControlResponse
            ),
            f"/{SERVICE}/Source": _stream(
                self._source, source_pb2.SourceRequest, source_pb2.SourceResponse
            ),
            f"/{SERVICE}/Compute": _stream(
                self._compute, compute_pb2.ComputeRequest, compute_pb2.ComputeResponse
            ),
            f"/{SERVICE}/Sink": _stream(
                self._sink, sink_pb2.SinkRequest, sink_pb2.SinkResponse
            ),
        }

    def service(self, handler_call_details: Any) -> Any:
        """Return the handler of a method, or None for an unknown one."""
        return self._methods.get(handler_call_details.method)

    def drop(self, session: Session, cause: Cause) -> None:
        """End a session, saying why."""
        session.fault = session.fault or cause
        error = translate.error_of(cause, _class_of(cause))
        session.outgoing.put_nowait(control_pb2.ControlResponse(error=error))
        session.ended.set()

    # Control.

    async def _control(self, _: Any, context: Any) -> None:
        session = await self._admit(context)
        if session is None:
            return
        for older in list(self.sessions.values()):
            if older.hello.incarnation == session.hello.incarnation:
                self.drop(older, Cause("FENCED", "the same process has dialed again"))
        self.sessions[session.session_id] = session
        cause = Cause("PLUGIN_CRASHED", f"{session.name}: its control stream ended")
        tasks = [
            asyncio.create_task(step)
            for step in (
                self._write_control(session, context),
                self._read_control(session, context),
                self._ping(session),
                session.ended.wait(),
            )
        ]
        try:
            await self._events.on_session(session)
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in tasks:
                if task.done() and (error := task.exception()) is not None:
                    cause = _cause_of_exception(session, error)
                    if isinstance(error, BettongError) and not session.is_rejected:
                        self.drop(session, cause)
                    break
            if not session.outgoing.empty() and not tasks[0].done():
                async with asyncio.timeout(1):
                    while not session.outgoing.empty():
                        await asyncio.sleep(0.01)
        except (BettongError, TimeoutError) as error:
            cause = _cause_of_exception(session, error)
        finally:
            for task in tasks:
                task.cancel()
            self.sessions.pop(session.session_id, None)
            for link in list(session.links.values()):
                link.close()
            self._events.on_session_ended(session, session.fault or cause)

    async def _admit(self, context: Any) -> Session | None:
        peer = context.peer()
        try:
            async with asyncio.timeout(self._limits.hello_timeout_ms / 1000):
                first = await context.read()
        except TimeoutError:
            await _reject(
                context,
                Refusal(
                    "HANDSHAKE_TIMEOUT",
                    f"no Hello within {self._limits.hello_timeout_ms} ms",
                    "send Hello first on the Control stream",
                ),
            )
            return None
        if first is grpc.aio.EOF or first.WhichOneof("message") != "hello":
            if first is not grpc.aio.EOF:
                refusal = Refusal(
                    "PROTOCOL",
                    "the first message of a session is not Hello",
                    "send Hello first on the Control stream",
                )
                await _reject(context, refusal)
            return None
        decision = self._doorkeeper.on_hello(_hello_of(first.hello))
        if isinstance(decision, Admission):
            decision = _refusal_of_limits(first.hello.limits) or decision
        if isinstance(decision, Refusal):
            log.warning(
                "plugin_refused", peer=peer, code=decision.code, why=decision.message
            )
            await _reject(context, decision)
            return None
        session = Session(
            secrets.token_bytes(16),
            decision.ticket,
            _hello_of(first.hello),
            decision.capabilities,
            peer,
            asyncio.Queue(),
            last_pong=time.monotonic(),
        )
        await context.write(self._welcome(session, decision))
        return session

    def _welcome(
        self, session: Session, admission: Admission
    ) -> control_pb2.ControlResponse:
        return control_pb2.ControlResponse(
            welcome=control_pb2.Welcome(
                session_id=session.session_id,
                engine_name="bettong",
                engine_version=_version(),
                revision=admission.revision,
                capabilities=CAPABILITIES,
                limits=limits_message(),
                ping_interval_ms=self._limits.ping_interval_ms,
                ping_timeout_ms=self._limits.ping_timeout_ms,
                log_level=control_pb2.LOG_LEVEL_INFO,
                cluster_id=self._cluster_id,
                roles=[
                    control_pb2.RoleKind.ValueType(r) for r in admission.ticket.roles
                ],
                engine_time_us=time.time_ns() // 1000,
            )
        )

    async def _write_control(self, session: Session, context: Any) -> None:
        while True:
            message = await session.outgoing.get()
            await context.write(message)

    async def _read_control(self, session: Session, context: Any) -> None:
        while True:
            request = await context.read()
            if request is grpc.aio.EOF:
                return
            if isinstance(request, _Oversize):
                raise request.error()
            match request.WhichOneof("message"):
                case "pong":
                    session.last_pong = time.monotonic()
                    session.busy_ms = request.pong.busy_ms
                    session.busy_step = request.pong.busy_step
                case "register_application":
                    await self._register(session, request.register_application)
                case "logs":
                    self._events.on_plugin_logs(session, request.logs)
                case "metrics":
                    _keep_metrics(session, request.metrics)
                case "error":
                    self._events.on_plugin_error(session, request.error)
                case "drained":
                    self._events.on_drained(session)
                case "stacks":
                    log.info(
                        "plugin_stacks", plugin=session.name, text=request.stacks.text
                    )
                case "hello":
                    raise ProtocolError("PROTOCOL", "a second Hello in one session")
                case other:
                    raise ProtocolError("UNSUPPORTED", f"control message {other!r}")

    async def _register(
        self, session: Session, request: control_pb2.RegisterApplication
    ) -> None:
        try:
            await self._events.on_registered(session, request)
        except BettongError as error:
            refusal = Refusal(error.code, str(error), "")
            session.is_rejected = True
            session.outgoing.put_nowait(_reject_message(refusal))
            raise
        registered = control_pb2.Registered(application=request.application.name)
        session.outgoing.put_nowait(control_pb2.ControlResponse(registered=registered))

    async def _ping(self, session: Session) -> None:
        limits, nonce = self._limits, 0
        while True:
            await asyncio.sleep(limits.ping_interval_ms / 1000)
            nonce += 1
            ping = control_pb2.ControlResponse(ping=control_pb2.Ping(nonce=nonce))
            session.outgoing.put_nowait(ping)
            silent_ms = (time.monotonic() - session.last_pong) * 1000
            if silent_ms > limits.ping_timeout_ms:
                raise ProtocolError(
                    "PLUGIN_SILENT",
                    f"no answer to a ping for {silent_ms:.0f} ms; the limit is"
                    f" {limits.ping_timeout_ms} ms",
                )
            if session.busy_ms > limits.batch_timeout_ms:
                raise ProtocolError(
                    "BATCH_TIMEOUT",
                    f"step {session.busy_step!r} has been busy for"
                    f" {session.busy_ms} ms; the limit is"
                    f" {limits.batch_timeout_ms} ms",
                )

    # Data streams.

    async def _source(self, _: Any, context: Any) -> None:
        await self._serve(context, "source", self._events.on_source)

    async def _compute(self, _: Any, context: Any) -> None:
        await self._serve(context, "compute", self._events.on_compute)

    async def _sink(self, _: Any, context: Any) -> None:
        await self._serve(context, "sink", self._events.on_sink)

    async def _serve(
        self, context: Any, role: str, on_request: Callable[[Link, Any], None]
    ) -> None:
        """Run one data stream: attach, then read and write until either ends."""
        session, attach = await self._attach(context, role)
        if role == "source":
            link = self._link(session, role, attach.source, translate.source_credits)
        elif role == "compute":
            name = ",".join(attach.stages)
            link = self._link(session, role, name, translate.stage_credits)
        else:
            link = self._link(session, role, attach.sink, None)
        session.links[link.instance] = link
        writer = asyncio.create_task(link.write_to(context))
        reader = asyncio.create_task(_read_all(context, link, on_request))
        cause = Cause("PLUGIN_CRASHED", f"{session.name}: its {role} stream ended")
        try:
            self._events.on_attached(session, link, attach)
            done, _ = await asyncio.wait(
                (writer, reader), return_when=asyncio.FIRST_COMPLETED
            )
            for task in done:
                if (error := task.exception()) is not None:
                    raise error
        except asyncio.CancelledError:
            raise
        except BettongError as error:
            cause = Cause(error.code, f"{session.name}: {error}")
            log.warning(
                "plugin_dropped", plugin=session.name, role=role, why=str(error)
            )
            self.drop(session, cause)
        except grpc.aio.BaseError:
            pass
        except Exception as error:
            if not _is_stream_over(error):
                raise
        finally:
            writer.cancel()
            reader.cancel()
            link.is_open = False
            session.links.pop(link.instance, None)
            self._events.on_detached(session, link, cause)

    def _link(self, session: Session, role: str, name: str, pack_credits: Any) -> Link:
        instance = self._events.new_instance()
        return Link(instance, session.session_id, role, name, pack_credits)

    async def _attach(self, context: Any, role: str) -> tuple[Session, Any]:
        try:
            async with asyncio.timeout(self._limits.hello_timeout_ms / 1000):
                first = await context.read()
        except TimeoutError:
            first = grpc.aio.EOF
        if first is grpc.aio.EOF or first.WhichOneof("message") != "attach":
            await context.abort(
                grpc.StatusCode.FAILED_PRECONDITION,
                f"the first message of a {role} stream is not its Attach",
            )
        session = self.sessions.get(first.attach.session_id)
        if session is None:
            await context.abort(
                grpc.StatusCode.UNAUTHENTICATED,
                "the session id of Attach is not that of a live session",
            )
            raise AssertionError("abort raises")
        return session, first.attach


def limits_message() -> control_pb2.Limits:
    """Return the engine's limits, as PROTOCOL.md lists them."""
    return control_pb2.Limits(
        message_bytes_max=MESSAGE_BYTES_MAX,
        record_bytes_max=1 << 20,
        key_bytes_max=64 << 10,
        batch_records_max=8192,
        state_value_bytes_max=1 << 20,
        position_bytes_max=4 << 10,
        uncommitted_bytes_max=64 << 20,
    )


def _refusal_of_limits(offered: control_pb2.Limits) -> Refusal | None:
    """Refuse a plugin that takes less than others send: batches pass unopened."""
    ours = limits_message()
    for field_of in ours.DESCRIPTOR.fields:
        name = field_of.name
        least, most = getattr(ours, name), getattr(offered, name)
        if name != "uncommitted_bytes_max" and 0 < most < least:
            return Refusal(
                "UNSUPPORTED",
                f"the plugin accepts {name} {most}, below the engine's {least}",
                f"accept {name} {least} or more",
            )
    return None


def _class_of(cause: Cause) -> error_pb2.ErrorClass.ValueType:
    return {
        "FENCED": error_pb2.ERROR_CLASS_FENCED,
        "TOO_LARGE": error_pb2.ERROR_CLASS_TOO_LARGE,
        "UNSUPPORTED": error_pb2.ERROR_CLASS_UNSUPPORTED,
        "UNKNOWN_NAME": error_pb2.ERROR_CLASS_CONFIG,
        "PLUGIN_SILENT": error_pb2.ERROR_CLASS_FATAL,
        "BATCH_TIMEOUT": error_pb2.ERROR_CLASS_FATAL,
    }.get(cause.code, error_pb2.ERROR_CLASS_PROTOCOL)


async def _read_all(
    context: Any, link: Link, on_request: Callable[[Link, Any], None]
) -> None:
    while True:
        request = await context.read()
        if request is grpc.aio.EOF:
            return
        if isinstance(request, _Oversize):
            raise request.error()
        on_request(link, request)


async def _reject(context: Any, refusal: Refusal) -> None:
    await context.write(_reject_message(refusal))


def _reject_message(refusal: Refusal) -> control_pb2.ControlResponse:
    code = error_pb2.ErrorCode.Value(f"ERROR_CODE_{refusal.code}")
    return control_pb2.ControlResponse(
        reject=control_pb2.Reject(
            code=error_pb2.ErrorCode.ValueType(code),
            message=refusal.message,
            remedy=refusal.remedy,
            revision_min=REVISION_MIN,
            revision_max=REVISION_MAX,
            missing_capabilities=refusal.missing,
        )
    )


def _hello_of(hello: control_pb2.Hello) -> Hello:
    return Hello(
        hello.token,
        hello.plugin_name,
        f"{hello.sdk_name} {hello.sdk_version}",
        hello.revision_min,
        hello.revision_max,
        tuple(hello.capabilities),
        tuple(hello.required_capabilities),
        hello.incarnation,
        hello.pid,
    )


def _keep_metrics(session: Session, batch: control_pb2.MetricBatch) -> None:
    for description in batch.descriptions:
        session.metric_names[description.id] = description.name
    for number, value in zip(batch.ids, batch.values, strict=False):
        name = session.metric_names.get(number)
        if name is not None:
            session.metrics[name] = value


def _cause_of_exception(session: Session, error: BaseException) -> Cause:
    if isinstance(error, BettongError):
        return Cause(error.code, f"{session.name}: {error}")
    return Cause("PLUGIN_CRASHED", f"{session.name}: {error or type(error).__name__}")


def _is_stream_over(error: Exception) -> bool:
    """Tell whether grpc.aio says by this exception that the peer is gone."""
    return isinstance(error, asyncio.InvalidStateError | grpc.RpcError) or (
        type(error).__module__.startswith("grpc")
    )


@dataclass(frozen=True, slots=True)
class _Oversize:
    """Stands for a message over the limit that Welcome tells."""

    size: int

    def error(self) -> ProtocolError:
        return ProtocolError(
            "TOO_LARGE",
            f"a message of {self.size} bytes; message_bytes_max is {MESSAGE_BYTES_MAX}",
        )

    def WhichOneof(self, _: str) -> str:  # noqa: N802 - in place of a message
        return "oversize"


def _stream(
    behaviour: Callable[[Any, Any], Awaitable[None]], request: Any, response: Any
) -> Any:
    return grpc.stream_stream_rpc_method_handler(
        behaviour,
        request_deserializer=lambda data: (
            _Oversize(len(data))
            if len(data) > MESSAGE_BYTES_MAX
            else request.FromString(data)
        ),
        response_serializer=response.SerializeToString,
    )


def _version() -> str:
    from bettong_engine import __version__

    return __version__
