"""The control stream: handshake, heartbeats, logs, drain and shutdown.

A thread of its own answers the engine, so that a ping is answered while user code
blocks; another sends logs and watches deadlines.
"""

import os
import platform
import queue
import sys
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version

import grpc

from bettong.errors import ErrorCode, RejectedError
from bettong.graph import to_application
from bettong.plan import Plan
from bettong.program.columns import SizeLimits
from bettong.runtime import limits
from bettong.runtime.link import Link, Signal
from bettong.runtime.logs import LogRing
from bettong_proto.plugin.v1 import control_pb2, error_pb2

REVISION = 1
CAPABILITIES = ("routing.v1", "cache.survive.v1", "timers.v1")
# The protocol says 30 s for a Hello; the answer may wait for a recovery.
HANDSHAKE_TIMEOUT_S = 60.0
STACKS_CHARS_MAX = 1024 * 1024
DISTRIBUTION = "bettong"


class SessionLostError(Exception):
    """The control stream ended without Shutdown or Reject."""


@dataclass(slots=True)
class Busy:
    """The call of user code that a role is in; read by the thread of the pings.

    since_s: monotonic; 0: none is running.
    step: the role, as far as it can be told without a cost per record.
    """

    since_s: float = 0.0
    step: str = ""


@dataclass(frozen=True, slots=True)
class EngineLimits:
    """`Welcome.limits` with its defaults."""

    sizes: SizeLimits
    batch_records_max: int
    position_bytes_max: int
    uncommitted_bytes_max: int

    @classmethod
    def of(cls, message: control_pb2.Limits) -> "EngineLimits":
        """Fill in the defaults of the protocol for zero fields."""
        return cls(
            sizes=SizeLimits(
                record=message.record_bytes_max or limits.RECORD_BYTES_MAX,
                key=message.key_bytes_max or limits.KEY_BYTES_MAX,
                state=message.state_value_bytes_max or limits.STATE_VALUE_BYTES_MAX,
            ),
            batch_records_max=message.batch_records_max or limits.BATCH_RECORDS_MAX,
            position_bytes_max=message.position_bytes_max or limits.POSITION_BYTES_MAX,
            uncommitted_bytes_max=(
                message.uncommitted_bytes_max or limits.UNCOMMITTED_BYTES_MAX
            ),
        )


ControlLink = Link[control_pb2.ControlRequest, control_pb2.ControlResponse]


def open_control(channel: grpc.Channel) -> ControlLink:
    """Begin the control stream on a channel."""
    return Link(
        channel,
        "Control",
        control_pb2.ControlRequest.SerializeToString,
        control_pb2.ControlResponse.FromString,
    )


@dataclass(slots=True)
class Session:
    """A session from its handshake to its end.

    on_drain and on_stop are called in the control thread, on_stop once: by
    Shutdown, with None, or with what ended the session.
    """

    link: ControlLink
    plan: Plan
    ring: LogRing
    incarnation: bytes
    on_drain: Callable[[], None]
    on_stop: Callable[[BaseException | None], None]
    welcome: control_pb2.Welcome = field(default_factory=control_pb2.Welcome)
    busy: list[Busy] = field(default_factory=list)
    # Set by Shutdown: the time by which the process has to be gone.
    deadline_s: float | None = None
    _last_ping_s: float = 0.0
    _was_stopped: bool = False

    @property
    def engine_limits(self) -> EngineLimits:
        """What the engine accepts."""
        return EngineLimits.of(self.welcome.limits)

    def greet(self, token: bytes) -> None:
        """Say hello and register the application.

        Raises:
            RejectedError: the engine refused, and says what to do.
            SessionLostError: the stream ended before an answer.
        """
        self.link.send(control_pb2.ControlRequest(hello=self._hello(token)))
        answer = self._await("welcome")
        self.welcome = answer.welcome
        self.ring.on_level(answer.welcome.log_level)
        self.link.send(
            control_pb2.ControlRequest(
                register_application=control_pb2.RegisterApplication(
                    application=to_application(self.plan)
                )
            )
        )
        self._await("registered")
        self._last_ping_s = time.monotonic()
        threading.Thread(
            target=self._serve, name="bettong-control", daemon=True
        ).start()
        threading.Thread(target=self._tick, name="bettong-tick", daemon=True).start()

    def drained(self) -> None:
        """Say that everything read is sent."""
        self.link.send(control_pb2.ControlRequest(drained=control_pb2.Drained()))

    def report(self, error: error_pb2.Error) -> None:
        """Tell the engine about trouble of the whole process."""
        self.link.send(control_pb2.ControlRequest(error=error))

    def abandon(self) -> None:
        """Tell nobody any more how the stream ends."""
        self._was_stopped = True

    def end(self) -> None:
        """Send what logs there are, and end the stream."""
        self._send_logs()
        self._was_stopped = True
        self.link.close(timeout_s=1.0)

    def _hello(self, token: bytes) -> control_pb2.Hello:
        try:
            sdk_version = version(DISTRIBUTION)
        except PackageNotFoundError:
            sdk_version = "unknown"
        return control_pb2.Hello(
            token=token,
            plugin_name=self.plan.name,
            sdk_name="bettong-python",
            sdk_version=sdk_version,
            language="python",
            runtime=f"{platform.python_implementation()} {platform.python_version()}",
            revision_min=REVISION,
            revision_max=REVISION,
            capabilities=CAPABILITIES,
            pid=os.getpid(),
            incarnation=self.incarnation,
            limits=control_pb2.Limits(message_bytes_max=limits.MESSAGE_BYTES_MAX),
        )

    def _await(self, wanted: str) -> control_pb2.ControlResponse:
        """Return the answer of that kind; pings before it are answered."""
        deadline_s = time.monotonic() + HANDSHAKE_TIMEOUT_S
        while True:
            try:
                message = self.link.inbox.get(
                    timeout=max(0.0, deadline_s - time.monotonic())
                )
            except queue.Empty:
                raise SessionLostError(
                    f"the engine did not answer within {HANDSHAKE_TIMEOUT_S:.0f} s"
                ) from None
            if isinstance(message, Signal):
                raise SessionLostError(self.link.details or "the stream ended")
            kind = message.WhichOneof("message")
            if kind == wanted:
                return message
            if kind == "reject":
                raise rejected(message.reject)
            self._answer(message, kind)

    def _serve(self) -> None:
        while True:
            message = self.link.inbox.get()
            if isinstance(message, Signal):
                self._stop(SessionLostError(self.link.details or "the stream ended"))
                return
            self._answer(message, message.WhichOneof("message"))

    def _answer(self, message: control_pb2.ControlResponse, kind: str | None) -> None:
        match kind:
            case "ping":
                self._last_ping_s = time.monotonic()
                self.link.send(self._pong(message.ping.nonce))
            case "drain":
                self.on_drain()
            case "shutdown":
                seconds = (message.shutdown.deadline_ms or 10_000) / 1000
                self.deadline_s = time.monotonic() + seconds
                self._stop(None)
            case "set_log_level":
                self.ring.on_level(message.set_log_level.level)
            case "stacks":
                report = control_pb2.StacksReport(text=all_stacks())
                self.link.send(control_pb2.ControlRequest(stacks=report))
            case "reject":
                self._stop(rejected(message.reject))
            case "error":
                self._on_error(message.error)

    def _on_error(self, error: error_pb2.Error) -> None:
        """Show what the engine holds against this session."""
        print(f"bettong: the engine says: {error.message}", file=sys.stderr)  # noqa: T201
        if error.error_class in (
            error_pb2.ERROR_CLASS_FENCED,
            error_pb2.ERROR_CLASS_PROTOCOL,
        ):
            self._stop(RejectedError(error.message, code=_known_code(error.code)))

    def _pong(self, nonce: int) -> control_pb2.ControlRequest:
        now_s = time.monotonic()
        longest = max(
            (busy for busy in self.busy if busy.since_s),
            key=lambda busy: now_s - busy.since_s,
            default=Busy(),
        )
        busy_ms = int((now_s - longest.since_s) * 1000) if longest.since_s else 0
        return control_pb2.ControlRequest(
            pong=control_pb2.Pong(
                nonce=nonce, busy_ms=max(0, busy_ms), busy_step=longest.step
            )
        )

    def _tick(self) -> None:
        """Send logs, and notice that the engine has gone silent."""
        timeout_s = (self.welcome.ping_timeout_ms or 30_000) / 1000
        while not self._was_stopped:
            time.sleep(limits.LOG_INTERVAL_MS / 1000)
            self._send_logs()
            if time.monotonic() - self._last_ping_s > timeout_s:
                self._stop(SessionLostError(f"no ping for {timeout_s:.0f} s"))

    def _send_logs(self) -> None:
        while (batch := self.ring.take()) is not None:
            self.link.send(control_pb2.ControlRequest(logs=batch))

    def _stop(self, cause: BaseException | None) -> None:
        if not self._was_stopped:
            self._was_stopped = True
            self.on_stop(cause)


def rejected(message: control_pb2.Reject) -> RejectedError:
    """Return the refusal of the engine as an error."""
    return RejectedError(
        message.message, code=_known_code(message.code), remedy=message.remedy
    )


def _known_code(number: int) -> ErrorCode:
    try:
        return ErrorCode(number)
    except ValueError:
        return ErrorCode.UNSPECIFIED


def all_stacks() -> str:
    """Return the stacks of all threads, as text."""
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    parts = []
    for ident, frame in sys._current_frames().items():
        stack = "".join(traceback.format_stack(frame))
        parts.append(f"Thread {names.get(ident, ident)}:\n{stack}")
    return "\n".join(parts)[:STACKS_CHARS_MAX]
