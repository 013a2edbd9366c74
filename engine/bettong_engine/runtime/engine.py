"""The loop of one worker: events in, the core decides, effects out in order.

Everything that the core asks for is done here, and everything that happens is told
to it from here, in one asyncio thread; the store has a thread of its own.
"""

import asyncio
import os
import secrets
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import grpc
import structlog

from bettong_engine.core import effects as core_effects
from bettong_engine.core.coordinator import (
    ApplicationFinished,
    Coordinator,
    CoordinatorState,
    Drained,
    ReadRecord,
    Record,
    Send,
    StateChanged,
    StepDown,
    Transact,
)
from bettong_engine.core.coordinator import Effect as CoordinatorEffect
from bettong_engine.core.dataflow import Grant
from bettong_engine.core.effects import Effect, EpochReport
from bettong_engine.core.handshake import Doorkeeper, Ticket
from bettong_engine.core.ids import Incarnation, InstanceId, WorkerId
from bettong_engine.core.messages import Cause
from bettong_engine.core.registration import Consent
from bettong_engine.core.topology import Topology
from bettong_engine.core.worker import Worker, WorkerPorts
from bettong_engine.errors import BettongError, ProtocolError
from bettong_engine.net import incoming, outgoing, translate
from bettong_engine.net.delta_codec import encode_delta
from bettong_engine.net.link import Link
from bettong_engine.net.plugin_host import PluginHost, Session
from bettong_engine.net.records import check_records, make_dead_letter, split_records
from bettong_engine.net.settings import SERVER_OPTIONS
from bettong_engine.runtime.clock import Clock
from bettong_engine.runtime.compaction import Compaction
from bettong_engine.runtime.ending import Ending, EngineEnd
from bettong_engine.runtime.hang_watch import HANGS_MAX, HangWatch
from bettong_engine.runtime.meter import Meter
from bettong_engine.runtime.options import EngineOptions
from bettong_engine.runtime.plugin_logs import write_plugin_logs
from bettong_engine.runtime.startup import Application, create_or_load
from bettong_engine.runtime.store_task import EngineStore, Outcome, StoreTask
from bettong_engine.runtime.supervisor import ManagedPlugin, Supervisor
from bettong_proto.plugin.v1 import (
    compute_pb2,
    control_pb2,
    error_pb2,
    sink_pb2,
    source_pb2,
)

log = structlog.get_logger()

WORKER = WorkerId("worker-1")
SHUTDOWN_TIMEOUT_S = 10.0
DRAIN_TIMEOUT_S = 10.0


# Of a generation's states, those that last.
_TOLD_STATES = (
    CoordinatorState.RUNNING,
    CoordinatorState.FINISHED,
    CoordinatorState.DEPOSED,
)


class Engine:
    """One worker with its coordinator, serving plugins."""

    def __init__(
        self,
        options: EngineOptions,
        open_store: Callable[[str], EngineStore],
        *,
        on_line: Callable[[str, str, str], None],
        on_loaded: Callable[[Application], None],
    ) -> None:
        self.options = options
        # Where it listens; with port 0, known once it serves.
        self.address = options.listen
        self.clock = Clock()
        self.meter = Meter()
        self.worker: Worker | None = None
        self.coordinator: Coordinator | None = None
        self.store_trouble: str | None = None
        self.doorkeeper = Doorkeeper()
        for token in options.tokens:
            self.doorkeeper.issue(Ticket(token.encode(), "", (), False))
        self.cluster_id = secrets.token_bytes(16)
        self.host = PluginHost(self.doorkeeper, self, self.cluster_id, options.host)
        self.supervisor = Supervisor(
            options.listen,
            self.doorkeeper,
            on_crash_loop=self._on_crash_loop,
            on_line=on_line,
        )
        self.links: dict[InstanceId, Link] = {}
        self.application: Application | None = None
        self.started_ms = self.clock.now_ms()
        self._open_store = open_store
        self._on_loaded = on_loaded
        self._store_task: StoreTask | None = None
        self._compaction: Compaction | None = None
        self._creation = asyncio.Lock()
        self._instances = 0
        self._epoch_cpu_us = 0
        self._last_epoch_cpu_us = 0
        self._server: grpc.aio.Server | None = None
        self._ended: asyncio.Future[EngineEnd] = (
            asyncio.get_running_loop().create_future()
        )
        self._timer: asyncio.TimerHandle | None = None
        self._hangs = HangWatch(options.host.batch_timeout_ms)
        self._queue: deque[Effect | CoordinatorEffect] = deque()
        self._is_performing = False
        self._is_stopping = False
        self._is_closing = False

    # Life.

    async def serve(self, handlers: Sequence[grpc.GenericRpcHandler] = ()) -> None:
        """Listen for plugins, and start those that are managed."""
        server = grpc.aio.server(options=SERVER_OPTIONS)
        server.add_generic_rpc_handlers((self.host, *handlers))
        listen = self.options.listen
        path = listen.removeprefix("unix:")
        if path != listen:
            old_mask = os.umask(0o177)
            try:
                server.add_insecure_port(listen)
            finally:
                os.umask(old_mask)
        else:
            host, _, _ = listen.rpartition(":")
            listen = f"{host}:{server.add_insecure_port(listen)}"
            self.supervisor.address = listen
        self.address = listen
        await server.start()
        self._server = server
        log.info("engine_started", listen=listen)
        for spec in self.options.plugins:
            self.supervisor.start(spec)

    async def wait(self) -> EngineEnd:
        """Return when the application has finished, or was stopped."""
        return await asyncio.shield(self._ended)

    def request_drain(self) -> None:
        """Commit what there is, then stop."""
        if self._is_stopping:
            return
        self._is_stopping = True
        if self.coordinator is None:
            self._end(EngineEnd(Ending.DRAINED))
            return
        log.info("drain_started")
        asyncio.get_running_loop().call_later(
            DRAIN_TIMEOUT_S, self._end, EngineEnd(Ending.DRAINED)
        )
        self._perform(self.coordinator.on_drain(self.clock.now_ms()))

    def resume(self) -> None:
        """Go on after a pause."""
        self.supervisor.resume()
        if self.coordinator is not None:
            self._perform(self.coordinator.on_resume())

    async def stop(self) -> None:
        """End plugins, server and store, in this order."""
        if self.meter.records_skipped:
            log.warning("records_skipped", count=self.meter.records_skipped)
        self._is_closing = True
        for session in list(self.host.sessions.values()):
            self._shut_down(session, "the engine stops")
        await self.supervisor.wait_ended(SHUTDOWN_TIMEOUT_S)
        await self.supervisor.stop()
        if self._server is not None:
            await self._server.stop(1.0)
        if self._timer is not None:
            self._timer.cancel()
        if self._store_task is not None:
            await self._store_task.close()

    def _shut_down(self, session: Session, reason: str) -> None:
        shutdown = control_pb2.Shutdown(
            deadline_ms=int(SHUTDOWN_TIMEOUT_S * 1000), reason=reason
        )
        session.outgoing.put_nowait(control_pb2.ControlResponse(shutdown=shutdown))

    def _end(self, end: EngineEnd) -> None:
        if not self._ended.done():
            self._ended.set_result(end)

    # Sessions.

    async def on_session(self, session: Session) -> None:
        """Log that a plugin was admitted; send it away if the engine stops."""
        log.info(
            "plugin_admitted",
            plugin=session.name,
            pid=session.hello.pid,
            sdk=session.hello.sdk,
        )
        if self._is_closing:
            # It was late: those before it have been told.
            self._shut_down(session, "the engine stops")

    async def on_registered(
        self, session: Session, request: control_pb2.RegisterApplication
    ) -> None:
        """Create or load the application, or check that it is the same one."""
        topology = translate.topology_of(request.application)
        async with self._creation:
            if self.application is None:
                consent = Consent.of(
                    (*self.options.drop, *request.drop),
                    (*self.options.rename, *request.rename),
                )
                body = request.application.SerializeToString(deterministic=True)
                await self._create(topology, body, consent)
                return
        if topology != self.application.topology:
            raise ProtocolError(
                "APPLICATION_CHANGED",
                f"{session.name} registers application {topology.name!r} otherwise than"
                " the plugin before it: all plugins of an application run one version",
            )

    async def _create(self, topology: Topology, body: bytes, consent: Consent) -> None:
        loop = asyncio.get_running_loop()
        try:
            store = await loop.run_in_executor(None, self._open_store, topology.name)
            application = await loop.run_in_executor(
                None,
                create_or_load,
                store,
                topology,
                body,
                consent,
                self.options.durability,
            )
        except BettongError as error:
            cause = Cause(error.code, str(error))
            self._end(EngineEnd(Ending.FAILED, cause))
            raise
        self.application = application
        self._store_task = StoreTask(
            store,
            self._on_outcome,
            self._on_unknown,
            self._on_record,
            self._on_trouble,
            self._on_fatal,
        )
        self._compaction = Compaction(self._store_task, application.partitions)
        self.worker = Worker(
            WORKER,
            Incarnation(secrets.token_bytes(16)),
            topology,
            history=application.history,
            partitions=application.partitions,
            limits=self.options.worker,
            ports=WorkerPorts(
                encode_delta, split_records, check_records, make_dead_letter
            ),
        )
        self.coordinator = Coordinator(
            application.term,
            application.record,
            (WORKER,),
            limits=self.options.coordinator,
        )
        log.info(
            "application_loaded",
            application=topology.name,
            epoch=application.record.commit.epoch,
            keys=sum(p.key_count() for p in application.partitions),
        )
        self._on_loaded(application)
        self._perform(self.coordinator.on_start())
        if self._is_stopping:
            self._perform(self.coordinator.on_drain(self.clock.now_ms()))

    def on_session_ended(self, session: Session, cause: Cause) -> None:
        """Log the end of a session; its data streams end by themselves."""
        if self._ended.done():
            return
        log.warning(
            "plugin_gone", plugin=session.name, code=cause.code, why=cause.message
        )
        if cause.code in ("PLUGIN_SILENT", "BATCH_TIMEOUT"):
            self.supervisor.kill(session.ticket.plugin, cause)
        if cause.code == "BATCH_TIMEOUT" and self._hangs.on_timeout(
            session.name, self.clock.now_ms()
        ):
            self._pause(_hang(cause))

    def on_plugin_error(self, session: Session, error: error_pb2.Error) -> None:
        """Apply the class of what a plugin reports about itself."""
        cause = translate.cause_of(error)
        log.error(
            "plugin_error", plugin=session.name, code=cause.code, why=cause.message
        )
        if incoming.trouble_of(error).is_fatal:
            self._pause(cause)

    def on_drained(self, session: Session) -> None:
        """Let a plugin go that wants to leave; what it half did is undone."""
        self._shut_down(session, "it asked to leave")

    def on_plugin_logs(self, session: Session, logs: control_pb2.LogBatch) -> None:
        """Write a plugin's log lines into the engine's log."""
        write_plugin_logs(session.name, logs)

    # Data streams.

    def new_instance(self) -> InstanceId:
        """Return a number that no data stream had before."""
        self._instances += 1
        return InstanceId(self._instances)

    def on_attached(self, session: Session, link: Link, attach: Any) -> None:
        """Offer the role of a data stream to the core."""
        if self.worker is None:
            raise ProtocolError(
                "UNKNOWN_NAME", "a role is attached before an application is registered"
            )
        self.links[link.instance] = link
        log.info("role_attached", plugin=session.name, role=link.role, name=link.name)
        worker = self.worker
        effects: Sequence[Effect]
        if link.role == "compute":
            effects = worker.on_compute_attached(link.instance, list(attach.stages))
        elif link.role == "source":
            effects = incoming.attach_source(worker, link.instance, attach)
        else:
            effects = worker.on_sink_attached(link.instance, attach.sink)
        self._perform(effects)

    def on_detached(self, session: Session, link: Link, cause: Cause) -> None:
        """Tell the core that a role is gone."""
        if self.links.pop(link.instance, None) is None or self.worker is None:
            return
        if not self._ended.done():
            self._perform(self.worker.on_lost(link.instance, cause))

    def on_source(self, link: Link, request: source_pb2.SourceRequest) -> None:
        """Give the core what a source says."""
        self._tick()
        self._on_answer(
            link, incoming.source_request(self._worker(), link.instance, request)
        )

    def on_compute(self, link: Link, request: compute_pb2.ComputeRequest) -> None:
        """Give the core what a computation says."""
        begun = time.thread_time_ns()
        self._on_answer(
            link, incoming.compute_request(self._worker(), link.instance, request)
        )
        if request.WhichOneof("message") in ("delta", "barrier_ack"):
            self._epoch_cpu_us += (time.thread_time_ns() - begun) // 1000

    def on_sink(self, link: Link, request: sink_pb2.SinkRequest) -> None:
        """Give the core what a sink says."""
        self._tick()
        self._on_answer(
            link, incoming.sink_request(self._worker(), link.instance, request)
        )

    def _on_answer(self, link: Link, answer: incoming.Answer) -> None:
        effects, trouble = answer
        self._perform(effects)
        if trouble is None:
            return
        log.warning(
            "role_in_trouble",
            role=link.role,
            name=link.name,
            code=trouble.cause.code,
            why=trouble.cause.message,
        )
        if trouble.is_fatal:
            self._pause(trouble.cause)

    def _worker(self) -> Worker:
        assert self.worker is not None, "roles attach after the registration"
        return self.worker

    # The store.

    def _on_outcome(self, outcome: Outcome) -> None:
        assert self.coordinator is not None
        self._last_epoch_cpu_us = outcome.cpu_us + self._epoch_cpu_us
        self._epoch_cpu_us = 0
        if outcome.revisions is None:
            self._perform(self.coordinator.on_conflict(outcome.token))
            return
        now_ms = self.clock.now_ms()
        self._perform(
            self.coordinator.on_applied(outcome.token, outcome.revisions, now_ms)
        )

    def _on_unknown(self, token: int) -> None:
        assert self.coordinator is not None
        self._perform(self.coordinator.on_unknown(token))

    def _on_record(self, token: int, record: Record) -> None:
        assert self.coordinator is not None
        self._perform(self.coordinator.on_record(token, record, self.clock.now_ms()))

    def _on_trouble(self, why: str | None) -> None:
        self.store_trouble = why

    def _on_fatal(self, error: BaseException) -> None:
        code = error.code if isinstance(error, BettongError) else "STORE_CORRUPT"
        self._end(EngineEnd(Ending.FAILED, Cause(code, f"the store failed: {error}")))

    # Trouble.

    def _on_crash_loop(self, plugin: ManagedPlugin, cause: Cause) -> None:
        log.error("plugin_crash_loop", plugin=plugin.spec.name, why=cause.message)
        self._pause(cause)

    def _pause(self, cause: Cause) -> None:
        if self.coordinator is None:
            if not self.options.is_finite:
                return
            self._end(EngineEnd(Ending.PAUSED, cause))
            return
        self._perform(self.coordinator.on_pause(cause))

    # Effects.

    def _tick(self) -> None:
        """Let the worker know the time, before an event that depends on it."""
        if self.worker is not None:
            self._queue.extend(self.worker.on_tick(self.clock.now_ms()))

    def _perform(self, found: Sequence[Effect] | Sequence[CoordinatorEffect]) -> None:
        """Do what the core asks for, and what follows from that, in order."""
        self._queue.extend(found)
        if self._is_performing:
            return
        self._is_performing = True
        try:
            while self._queue:
                self._do(self._queue.popleft())
        finally:
            self._is_performing = False
        self._schedule()

    def _do(self, effect: Effect | CoordinatorEffect) -> None:
        worker, coordinator = self.worker, self.coordinator
        assert worker is not None and coordinator is not None
        match effect:
            case Grant():
                self._grant(effect)
            case core_effects.StoreDeltas():
                assert self._store_task is not None and self._compaction is not None
                self._store_task.append(effect.epoch, effect.deltas)
                self._compaction.on_stored(effect.deltas)
                self._queue.extend(
                    worker.on_stored(
                        effect.generation, effect.epoch, self._last_epoch_cpu_us
                    )
                )
            case core_effects.Tell():
                now_ms = self.clock.now_ms()
                self._queue.extend(coordinator.on_message(effect.message, now_ms))
            case Send():
                self._queue.extend(worker.on_coordinator(effect.message))
            case Transact():
                assert self._store_task is not None
                self._store_task.transact(effect)
            case ReadRecord():
                assert self._store_task is not None
                self._store_task.read(effect.token)
            case core_effects.TruncateStore():
                assert self._store_task is not None
                self._store_task.truncate_after(effect.epoch)
            case EpochReport():
                self._on_epoch(effect)
            case core_effects.DropInstance():
                self._drop(effect)
            case StateChanged():
                self._on_state(effect)
            case ApplicationFinished():
                self._end(EngineEnd(Ending.FINISHED))
            case Drained():
                if self._is_stopping:
                    self._end(EngineEnd(Ending.DRAINED))
            case StepDown():
                cause = Cause(
                    "FENCED", "another engine has taken over this application"
                )
                self._end(EngineEnd(Ending.FAILED, cause))
            case _:
                self._send(effect)

    def _send(self, effect: outgoing.ToPlugin) -> None:
        """Send to a plugin; if its stream has just ended, nobody listens."""
        link = self.links.get(outgoing.instance_of(effect))
        if link is None:
            return
        limits = self.options.worker.flow
        for message in outgoing.messages_of(effect, self._worker(), limits):
            link.send(message)

    def _grant(self, grant: Grant) -> None:
        instance = grant.instance
        if instance is None:
            assert self.worker is not None
            session = self.worker.sessions.sources.get(grant.source)
            if session is None:
                return
            instance = session.instance
        link = self.links.get(instance)
        if link is not None:
            link.grant(grant)

    def _drop(self, effect: core_effects.DropInstance) -> None:
        link = self.links.get(effect.instance)
        if link is None:
            return
        session = self.host.sessions.get(link.session_id)
        if session is not None:
            self.host.drop(session, effect.cause)

    def _on_state(self, change: StateChanged) -> None:
        write = log.info if change.state in _TOLD_STATES else log.debug
        write(
            "generation_state",
            state=change.state.value,
            generation=change.generation,
            epoch=change.epoch,
            why=change.cause.message if change.cause else None,
        )
        assert self.coordinator is not None
        pause = self.coordinator.pause
        if pause is not None and change.cause is pause:
            log.error("application_paused", code=pause.code, why=pause.message)
            if self.options.is_finite:
                self._end(EngineEnd(Ending.PAUSED, pause))
        if change.state is CoordinatorState.WAITING:
            log.info("stages_missing", stages=list(self.coordinator.missing_stages))

    def _on_epoch(self, report: EpochReport) -> None:
        self.meter.on_epoch(
            self.clock.now_ms(),
            opened_ms=report.opened_ms,
            records_in=report.records_read,
            records_out=report.outputs,
            output_bytes=report.output_bytes,
            records_skipped=report.records_skipped,
        )
        self.supervisor.on_progress()
        if self._compaction is not None:
            self._compaction.on_epoch()

    def _schedule(self) -> None:
        """Wake up when the core wants to be woken."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        assert self.worker is not None and self.coordinator is not None
        times = [self.worker.wake_at_ms(), self.coordinator.wake_at_ms()]
        wanted = [t for t in times if t is not None]
        if wanted and not self._ended.done():
            delay_s = max(min(wanted) - self.clock.now_ms(), 0) / 1000
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(delay_s, self._on_timer)

    def _on_timer(self) -> None:
        self._timer = None
        assert self.worker is not None and self.coordinator is not None
        now_ms = self.clock.now_ms()
        self._queue.extend(self.worker.on_tick(now_ms))
        self._perform(self.coordinator.on_tick(now_ms))


def _hang(cause: Cause) -> Cause:
    return Cause(
        cause.code,
        f"{cause.message}; it was the {HANGS_MAX}rd time in a row, so the same input"
        " is to blame: mend the step, or raise batch_timeout_ms, and resume",
    )
