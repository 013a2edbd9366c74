"""Puts together how an engine stands, for the operator."""

from typing import TYPE_CHECKING

from bettong_engine.core.coordinator import CoordinatorState
from bettong_engine.core.worker import Worker
from bettong_proto.admin.v1 import admin_pb2

if TYPE_CHECKING:
    from bettong_engine.runtime.engine import Engine

STREAMS_SHOWN_MAX = 100

_STATES = {
    CoordinatorState.WAITING: "waiting",
    CoordinatorState.RUNNING: "running",
    CoordinatorState.FINISHED: "finished",
}


def status_of(engine: "Engine") -> admin_pb2.StatusResponse:
    """Return everything that `bettong status` shows."""
    now_ms = engine.clock.now_ms()
    meter = engine.meter
    rate_in, rate_out, rate_epochs = meter.rates(now_ms)
    status = admin_pb2.StatusResponse(
        state="starting",
        store_trouble=engine.store_trouble or "",
        uptime_ms=now_ms - engine.started_ms,
        records_in=meter.records_in,
        records_out=meter.records_out,
        records_skipped=meter.records_skipped,
        records_in_per_second=rate_in,
        records_out_per_second=rate_out,
        epochs_per_second=rate_epochs,
        commit_latency_p50_ms=meter.latency_ms(0.5),
        commit_latency_p99_ms=meter.latency_ms(0.99),
    )
    _add_plugins(status, engine)
    worker, coordinator = engine.worker, engine.coordinator
    if worker is None or coordinator is None:
        return status
    status.application = worker.topology.name
    status.state = _STATES.get(coordinator.state, "starting")
    status.generation = coordinator.generation
    status.committed_epoch = coordinator.committed_epoch
    status.open_epochs = coordinator.open_epochs
    if coordinator.state is CoordinatorState.WAITING:
        stages = ", ".join(coordinator.missing_stages)
        status.cause = f"no plugin offers stage {stages}"
    if coordinator.pause is not None:
        status.state = "paused"
        status.cause = f"{coordinator.pause.code}: {coordinator.pause.message}"
        status.cause_detail = coordinator.pause.detail
    status.keys = sum(p.key_count() for p in worker.partitions)
    _add_sources(status, worker)
    _add_sinks(status, worker)
    return status


def _add_plugins(status: admin_pb2.StatusResponse, engine: "Engine") -> None:
    managed = engine.supervisor.plugins
    for session in engine.host.sessions.values():
        plugin = managed.get(session.ticket.plugin)
        status.plugins.add(
            name=session.name,
            pid=session.hello.pid,
            roles=[f"{link.role} {link.name}" for link in session.links.values()],
            restarts=plugin.restarts if plugin else 0,
            busy_ms=session.busy_ms,
            busy_step=session.busy_step,
            sdk=session.hello.sdk,
        )


def _add_sources(status: admin_pb2.StatusResponse, worker: Worker) -> None:
    for source in worker.topology.sources:
        streams = [
            state
            for partition in worker.partitions
            for state in partition.streams.values()
            if state.source == source.name
        ]
        shown = sorted(streams, key=lambda s: s.stream)[:STREAMS_SHOWN_MAX]
        status.sources.add(
            name=source.name,
            connected=source.name in worker.sessions.sources,
            streams_open=sum(not s.is_ended for s in streams),
            streams_ended=sum(s.is_ended for s in streams),
            streams=[
                admin_pb2.StreamStatus(
                    stream=s.stream, position=s.position or b"", ended=s.is_ended
                )
                for s in shown
            ],
        )


def _add_sinks(status: admin_pb2.StatusResponse, worker: Worker) -> None:
    for (sink, place), delivery in worker.deliveries.items():
        error = delivery.last_error
        status.sinks.add(
            name=worker.topology.sinks[sink].name,
            partition=place,
            state=delivery.state.value,
            committed_sequence=delivery.log.committed_to,
            durable_sequence=delivery.log.durable,
            backlog_bytes=delivery.log.bytes,
            last_error=f"{error.code}: {error.message}" if error else "",
        )
