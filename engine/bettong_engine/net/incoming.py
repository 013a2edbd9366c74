"""What plugins say on their data streams, as events of the worker.

Pure: requests in, effects out. The servers call it, and so does the simulator.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from bettong_engine.core.effects import Effect
from bettong_engine.core.ids import Epoch, Generation, InstanceId
from bettong_engine.core.messages import Cause
from bettong_engine.core.worker import Worker
from bettong_engine.errors import ProtocolError
from bettong_engine.net import translate
from bettong_proto.plugin.v1 import (
    application_pb2,
    compute_pb2,
    error_pb2,
    sink_pb2,
    source_pb2,
)


@dataclass(frozen=True, slots=True)
class Trouble:
    """A plugin reports an error. is_fatal: only a person can mend it."""

    cause: Cause
    is_fatal: bool


Answer = tuple[Sequence[Effect], Trouble | None]


def attach_source(
    worker: Worker, instance: InstanceId, attach: source_pb2.SourceAttach
) -> Sequence[Effect]:
    """Take the offer of a source."""
    is_local = attach.kind == application_pb2.STREAM_KIND_LOCAL
    return worker.on_source_attached(instance, attach.source, is_local=is_local)


def source_request(
    worker: Worker, instance: InstanceId, request: source_pb2.SourceRequest
) -> Answer:
    """Give the worker what a source says. Raises `ProtocolError`."""
    match request.WhichOneof("message"):
        case "frame":
            frame = request.frame
            generation = Generation(frame.generation)
            return worker.on_frame(
                instance, generation, translate.frame_of(frame)
            ), None
        case "streams_found":
            found = request.streams_found
            return worker.on_streams_found(
                instance, found.streams, is_complete=found.complete
            ), None
        case "error":
            return [], trouble_of(request.error)
        case "reset_done" | "stream_opened":
            return [], None
        case "attach":
            raise ProtocolError("PROTOCOL", "a second attach on one data stream")
        case other:
            raise ProtocolError("UNSUPPORTED", f"source message {other!r}")


def compute_request(
    worker: Worker, instance: InstanceId, request: compute_pb2.ComputeRequest
) -> Answer:
    """Give the worker what a computation says. Raises `ProtocolError`."""
    effects: list[Effect] = []
    for consumed in request.consumed:
        effects += worker.on_consumed(
            instance, consumed.channel, consumed.records, consumed.bytes
        )
    trouble = None
    match request.WhichOneof("message"):
        case "output":
            output = request.output
            effects += worker.on_stage_output(
                instance,
                Generation(output.generation),
                output.stage,
                translate.batch_of(output.batch),
            )
        case "delta":
            delta = request.delta
            effects += worker.on_delta(
                instance,
                Generation(delta.generation),
                Epoch(delta.epoch),
                delta.stage,
                translate.delta_parts(delta),
            )
        case "barrier_ack":
            ack = request.barrier_ack
            effects += worker.on_barrier_ack(
                instance,
                Generation(ack.generation),
                Epoch(ack.epoch),
                ack.stage,
                ack.flush_cpu_us,
                records_skipped=ack.records_skipped,
            )
        case "state_get":
            effects += _state_get(worker, instance, request.state_get)
        case "reset_done":
            generation = Generation(request.reset_done.generation)
            effects += worker.on_compute_reset(instance, generation)
        case "error":
            if request.error.generation == worker.generation:
                trouble = trouble_of(request.error.error)
        case None if request.consumed:
            pass
        case "attach":
            raise ProtocolError("PROTOCOL", "a second attach on one data stream")
        case other:
            raise ProtocolError("UNSUPPORTED", f"compute message {other!r}")
    return effects, trouble


def sink_request(
    worker: Worker, instance: InstanceId, request: sink_pb2.SinkRequest
) -> Answer:
    """Give the worker what a sink says. Raises `ProtocolError`."""
    match request.WhichOneof("message"):
        case "opened":
            opened = request.opened
            position = translate.position_of(opened)
            generation = Generation(opened.generation)
            return worker.on_sink_opened(
                instance, opened.partition, generation, position
            ), None
        case "progress":
            progress = request.progress
            generation = Generation(progress.generation)
            return worker.on_progress(
                instance, progress.partition, generation, progress.sequence
            ), None
        case "refused":
            refused = request.refused
            return worker.on_refused(
                instance,
                refused.partition,
                Generation(refused.generation),
                refused.sequence,
                translate.cause_of(refused.error),
            ), None
        case "error":
            error = request.error
            trouble = trouble_of(error.error)
            effects = worker.on_sink_error(
                instance,
                error.partition,
                Generation(error.generation),
                trouble.cause,
                is_retryable=not trouble.is_fatal,
            )
            # What blocks a sink is the worker's to say.
            return effects, Trouble(trouble.cause, is_fatal=False)
        case "closed":
            return [], None
        case "attach":
            raise ProtocolError("PROTOCOL", "a second attach on one data stream")
        case other:
            raise ProtocolError("UNSUPPORTED", f"sink message {other!r}")


def trouble_of(error: error_pb2.Error) -> Trouble:
    """Return an error with what its class says."""
    is_retryable = error.error_class in (
        error_pb2.ERROR_CLASS_UNSPECIFIED,
        error_pb2.ERROR_CLASS_RETRYABLE,
    )
    return Trouble(translate.cause_of(error), is_fatal=not is_retryable)


def _state_get(
    worker: Worker, instance: InstanceId, get: compute_pb2.StateGet
) -> Sequence[Effect]:
    states = get.states or [0] * len(get.keys)
    entries = get.entries or [b""] * len(get.keys)
    if not len(states) == len(entries) == len(get.keys):
        raise ProtocolError("PROTOCOL", "columns of a StateGet do not fit")
    return worker.on_state_get(
        instance,
        Generation(get.generation),
        get.request,
        get.stage,
        list(zip(states, get.keys, entries, strict=True)),
        all_entries=get.all_entries,
    )
