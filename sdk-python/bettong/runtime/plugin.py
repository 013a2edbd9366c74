"""Serves a plan as a plugin process: dials the engine and runs the roles asked for.

A process lives as long as its session: it leaves when the engine says Shutdown, when
it is refused, or when the engine has been gone for too long.
"""

import gc
import os
import signal
import sys
import threading
import time
from types import FrameType

import grpc

from bettong.errors import BettongError, ErrorCode, ProtocolError, RejectedError
from bettong.plan import Plan
from bettong.runtime import limits
from bettong.runtime.compute import ComputeMachine
from bettong.runtime.link import Signal, open_channel
from bettong.runtime.logs import LogRing
from bettong.runtime.roles import ComputeRole, Role, SinkRole, SourceRole
from bettong.runtime.session import (
    EngineLimits,
    Session,
    SessionLostError,
    open_control,
)
from bettong.runtime.sink import SinkMachine
from bettong.runtime.source import SourceMachine
from bettong.runtime.wire_errors import fatal_error
from bettong_proto.plugin.v1 import control_pb2

EXIT_OK = 0
EXIT_LOST = 1
EXIT_REFUSED = 2
EXIT_OVERDUE = 3
EXIT_BUG = 70

# User code that is asked for the GIL by the threads of gRPC gives it up after this
# long. At CPython's default of 5 ms a message waits 5 to 10 ms beside a busy loop
# (measured); at this value 0.65 ms.
SWITCH_INTERVAL_S = 0.0005
# A collection of the oldest generation looks at every key in the cache. States are
# seldom cyclic, so it may wait until some millions of objects have come.
GC_THRESHOLDS = (50_000, 20, 5)

# Set to 1 for plugins started by hand: they dial again for ever.
RECONNECT_VARIABLE = "BETTONG_RECONNECT"


def serve(plan: Plan) -> int:
    """Serve `plan` to the engine at BETTONG_ADDRESS; return the exit code.

    0: the engine has ended the session. Else one line on standard error says why.
    Must be called from the main thread, as it takes SIGTERM and SIGINT: the first
    lets the process leave when all it has read is committed, the second ends it.
    """
    address = os.environ.get("BETTONG_ADDRESS", "")
    token = os.environ.pop("BETTONG_TOKEN", "")
    if not address:
        _say("BETTONG_ADDRESS is not set: it names the engine to dial")
        return EXIT_REFUSED
    _tune_interpreter()
    is_patient = os.environ.get(RECONNECT_VARIABLE) == "1"
    return _Plugin(plan, address, token.encode(), is_patient=is_patient).run()


class _Plugin:
    """One process. Invariant: at most one session lives."""

    def __init__(
        self, plan: Plan, address: str, token: bytes, *, is_patient: bool
    ) -> None:
        self._plan = plan
        self._address = address
        self._token = token
        self._is_patient = is_patient
        self._incarnation = os.urandom(16)
        self._ring = LogRing()
        self._session: Session | None = None
        self._cluster_id = b""
        self._roles: list[Role] = []
        self._undrained = 0
        self._stopped = threading.Event()
        self._cause: BaseException | None = None
        self._is_leaving = False
        self._overdue: threading.Timer | None = None
        self._channels: list[grpc.Channel] = []
        self._guard = threading.Lock()

    def run(self) -> int:
        """Run sessions until one ends for good; return the exit code."""
        self._ring.install()
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._on_signal)
        lost_at_s = time.monotonic()
        delay_s = limits.RETRY_DELAY_MS_MIN / 1000
        while True:
            try:
                session = self._connect()
            except RejectedError as error:
                return self._refused(error)
            except SessionLostError as error:
                gone_s = time.monotonic() - lost_at_s
                if self._is_leaving or self._has_given_up(gone_s):
                    _say(f"cannot reach the engine at {self._address}: {error}")
                    self._close_roles(is_session_lost=False)
                    return EXIT_LOST
                time.sleep(delay_s)
                delay_s = min(2 * delay_s, 1.0)
                continue
            self._cancel_overdue()
            self._run_roles()
            if (
                not isinstance(self._cause, SessionLostError)
                or self._is_leaving
                or self._is_managed
            ):
                return self._end(session)
            # Nothing may be written for a session that is gone.
            session.abandon()
            self._close_roles(is_session_lost=True)
            self._close_channels()
            if self._is_patient:
                self._cancel_overdue()
            lost_at_s = time.monotonic()
            delay_s = limits.RETRY_DELAY_MS_MIN / 1000

    @property
    def _is_managed(self) -> bool:
        """Tell whether the engine started this process, for roles that it named.

        Its token is used up, and without its engine it has nothing to wait for.
        """
        session = self._session
        return session is not None and bool(session.welcome.roles)

    def _has_given_up(self, gone_s: float) -> bool:
        return not self._is_patient and gone_s * 1000 > limits.CONTROL_GONE_MS_MAX

    def _connect(self) -> Session:
        """Begin a session and offer the roles that the engine asks for."""
        self._stopped.clear()
        self._cause = None
        session = Session(
            link=open_control(self._open_channel()),
            plan=self._plan,
            ring=self._ring,
            incarnation=self._incarnation,
            on_drain=self._on_drain,
            on_stop=self._on_stop,
        )
        try:
            session.greet(self._token)
        except (SessionLostError, RejectedError):
            self._close_channels()
            raise
        if session.welcome.cluster_id != self._cluster_id:
            self._cluster_id = session.welcome.cluster_id
            self._close_roles(is_session_lost=False)
            self._roles = self._make_roles(session)
        session.busy = [role.busy for role in self._roles]
        self._session = session
        return session

    def _make_roles(self, session: Session) -> list[Role]:
        engine = session.engine_limits
        batch_records = min(limits.BATCH_RECORDS_TARGET, engine.batch_records_max)
        asked = set(session.welcome.roles)
        plan, roles = self._plan, []
        if not asked or control_pb2.ROLE_KIND_SOURCE in asked:
            roles += self._source_roles(engine, batch_records)
        if plan.stages and (not asked or control_pb2.ROLE_KIND_COMPUTE in asked):

            def make_machine() -> ComputeMachine:
                return ComputeMachine(
                    plan,
                    sizes=engine.sizes,
                    cpu_clock=time.thread_time,
                    batch_records=batch_records,
                )

            roles.append(ComputeRole(make_machine))
        if not asked or control_pb2.ROLE_KIND_SINK in asked:
            roles += [SinkRole(SinkMachine(sink)) for sink in plan.sinks]
        return roles

    def _source_roles(self, engine: EngineLimits, batch_records: int) -> list[Role]:
        self._undrained = len(self._plan.sources)
        return [
            SourceRole(
                SourceMachine(
                    self._plan,
                    source,
                    sizes=engine.sizes,
                    uncommitted_bytes_max=engine.uncommitted_bytes_max,
                    position_bytes_max=engine.position_bytes_max,
                    batch_records=batch_records,
                ),
                source.connector,
                self._on_source_drained,
            )
            for source in self._plan.sources
        ]

    def _run_roles(self) -> None:
        """Run each role in a thread, a single one in this; return at the end."""
        assert self._session is not None, "connect comes first"
        channel = self._open_channel()
        for role in self._roles:
            role.attach(channel, self._session.welcome.session_id)
        threads = [
            threading.Thread(
                target=self._run_role, args=(role, channel), name=f"bettong-{role.name}"
            )
            for role in self._roles[1 if len(self._roles) == 1 else 0 :]
        ]
        for thread in threads:
            thread.daemon = True
            thread.start()
        if self._stopped.is_set():
            # It came while the roles were being attached.
            self._tell(Signal.STOP)
        if len(self._roles) == 1:
            self._run_role(self._roles[0], channel)
        self._stopped.wait()
        self._tell(Signal.STOP)
        for thread in threads:
            thread.join()

    def _run_role(self, role: Role, channel: grpc.Channel) -> None:
        """Run a role until the session ends, attaching again where that helps."""
        assert self._session is not None, "connect comes first"
        delay_s = limits.RETRY_DELAY_MS_MIN / 1000
        while True:
            try:
                ended = role.run()
            except ProtocolError as error:
                self._session.report(fatal_error(error, where=role.name))
                return self._on_stop(error)
            except BaseException as error:  # a bug, or sys.exit() in user code
                self._session.report(fatal_error(error, where=role.name))
                return self._on_stop(error)
            if ended is Signal.STOP or self._stopped.is_set():
                return None
            status, details = role.end_status()
            if status not in _MAY_ATTACH_AGAIN:
                error_text = f"the engine ended {role.name}: {details or status}"
                return self._on_stop(SessionLostError(error_text))
            if status is not grpc.StatusCode.OK:
                if self._stopped.wait(delay_s):
                    return None
                delay_s = min(2 * delay_s, 1.0)
            role.attach(channel, self._session.welcome.session_id)

    def _end(self, session: Session) -> int:
        """Close what is open, say why if it is no good end, and return the code."""
        self._close_roles(is_session_lost=self._cause is not None)
        session.end()
        self._close_channels()
        cause = self._cause
        if cause is None:
            return EXIT_OK
        if isinstance(cause, RejectedError):
            return self._refused(cause)
        if isinstance(cause, BettongError | SessionLostError):
            _say(str(cause))
            return EXIT_LOST
        _say(f"{type(cause).__name__}: {cause} (a bug of the SDK or of a connector)")
        return EXIT_BUG

    def _refused(self, error: RejectedError) -> int:
        if error.code is ErrorCode.FENCED:
            return EXIT_OK
        _say(f"the engine refused this program: {error}")
        return EXIT_REFUSED

    def _close_roles(self, *, is_session_lost: bool) -> None:
        for role in self._roles:
            role.close(is_session_lost=is_session_lost)

    def _tell(self, what: Signal) -> None:
        for role in self._roles:
            role.signal(what)

    def _on_stop(self, cause: BaseException | None) -> None:
        with self._guard:
            if self._stopped.is_set():
                return
            self._cause = cause
            self._stopped.set()
            # User code that does not return must not keep the process behind.
            self._overdue = _exit_after(self._seconds_left())
        self._tell(Signal.STOP)

    def _seconds_left(self) -> float:
        """Return how long the roles may take to stop."""
        deadline_s = self._session.deadline_s if self._session is not None else None
        if deadline_s is not None:
            return max(0.1, deadline_s - time.monotonic())
        if self._is_leaving or self._is_managed:
            return 2.0
        return limits.CONTROL_GONE_MS_MAX / 1000 + 2.0

    def _cancel_overdue(self) -> None:
        if self._overdue is not None:
            self._overdue.cancel()
            self._overdue = None

    def _open_channel(self) -> grpc.Channel:
        channel = open_channel(self._address)
        self._channels.append(channel)
        return channel

    def _close_channels(self) -> None:
        for channel in self._channels:
            channel.close()
        self._channels.clear()

    def _on_drain(self) -> None:
        if self._undrained == 0 and self._session is not None:
            self._session.drained()
        self._tell(Signal.DRAIN)

    def _on_source_drained(self) -> None:
        with self._guard:
            self._undrained -= 1
            is_last = self._undrained == 0
        if is_last and self._session is not None:
            self._session.drained()

    def _on_signal(self, number: int, _: FrameType | None) -> None:
        """Leave when all is committed; at the second signal, at once."""
        if self._is_leaving:
            os._exit(128 + number)
        self._is_leaving = True
        if self._session is None or self._stopped.is_set():
            return
        # Not from the handler itself: it may have interrupted a holder of a lock.
        threading.Thread(target=self._leave, name="bettong-leave", daemon=True).start()

    def _leave(self) -> None:
        self._on_drain()
        if not self._stopped.wait(limits.DRAIN_DEADLINE_MS / 1000):
            self._on_stop(
                SessionLostError(
                    "asked to leave, but the engine has not let this process go"
                    f" within {limits.DRAIN_DEADLINE_MS // 1000} s"
                )
            )


_MAY_ATTACH_AGAIN = frozenset(
    (
        grpc.StatusCode.OK,
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.FAILED_PRECONDITION,
    )
)


def _tune_interpreter() -> None:
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    gc.collect()
    gc.freeze()
    gc.set_threshold(*GC_THRESHOLDS)


def _exit_after(seconds: float) -> threading.Timer:
    """End the process the hard way unless the timer is cancelled before."""

    def end() -> None:
        _say("user code or a connector has not returned in time; ending the process")
        os._exit(EXIT_OVERDUE)

    timer = threading.Timer(seconds, end)
    timer.daemon = True
    timer.start()
    return timer


def _say(line: str) -> None:
    print(f"bettong: {line}", file=sys.stderr, flush=True)  # noqa: T201
