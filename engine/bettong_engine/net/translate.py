"""Plugin protocol messages to events of the core, and its effects to messages.

Pure functions: the servers call them, and so does the simulator.
"""

from collections.abc import Iterable

from bettong_engine.core import delivery
from bettong_engine.core.boundary import Frame, SourceBatch
from bettong_engine.core.dataflow import Grant, ToStage
from bettong_engine.core.delta import RowColumns, StreamState, TimerColumns
from bettong_engine.core.effects import (
    FoundRow,
    HoldSource,
    NotifyCommitted,
    OpenStream,
    ResetCompute,
    ResetSource,
    Route,
    SendBarrier,
    SendRows,
    SendTimers,
)
from bettong_engine.core.messages import Cause
from bettong_engine.core.topology import (
    PARTITIONS_DEFAULT,
    OutputSpec,
    SinkSpec,
    SourceSpec,
    StageSpec,
    StateSpec,
    Topology,
)
from bettong_engine.errors import ProtocolError, StateCorruptedError
from bettong_engine.net.delta_codec import (
    rows_from_wire,
    timers_from_wire,
    timers_message,
)
from bettong_proto.plugin.v1 import (
    application_pb2,
    batch_pb2,
    compute_pb2,
    error_pb2,
    sink_pb2,
    source_pb2,
)

# Of the values in one StateValues.
STATE_VALUES_BYTES_MAX = 1 << 20
# Told in Welcome.limits.
POSITION_BYTES_MAX = 4 << 10
BATCH_RECORDS_MAX = 8192


# Application.


def topology_of(application: application_pb2.Application) -> Topology:
    """Return the graph of an application. Raises `ProtocolError`: it is broken."""
    stages = {stage.name: i for i, stage in enumerate(application.stages)}
    sinks = {sink.name: i for i, sink in enumerate(application.sinks)}

    def output(owner: str, edge: application_pb2.Output) -> OutputSpec:
        kind = edge.WhichOneof("to")
        names = stages if kind == "stage" else sinks
        name = edge.stage if kind == "stage" else edge.sink
        if kind is None or name not in names:
            raise ProtocolError(
                "APPLICATION_INVALID",
                f"application {application.name!r}: an output of {owner!r} leads to"
                f" {name or 'nothing'!r}, which does not exist",
            )
        number = names[name]
        if kind == "stage":
            return OutputSpec(number, None, edge.input, edge.value_codec)
        return OutputSpec(None, number, edge.input, edge.value_codec)

    dead_letter = application.dead_letter_sink
    if dead_letter and dead_letter not in sinks:
        raise ProtocolError(
            "APPLICATION_INVALID", f"dead-letter sink {dead_letter!r} does not exist"
        )
    return Topology(
        application.name,
        tuple(
            SourceSpec(
                source.name,
                source.kind == application_pb2.STREAM_KIND_LOCAL,
                tuple(output(source.name, edge) for edge in source.outputs),
            )
            for source in application.sources
        ),
        tuple(
            StageSpec(
                stage.name,
                stage.keyed,
                tuple(output(stage.name, edge) for edge in stage.outputs),
                tuple(
                    StateSpec(
                        state.name,
                        state.codec,
                        state.schema_version,
                        state.kind == application_pb2.STATE_KIND_MAP,
                    )
                    for state in stage.states
                ),
                stage.key_codec,
            )
            for stage in application.stages
        ),
        tuple(SinkSpec(s.name, s.partitions or 1) for s in application.sinks),
        application.partitions or PARTITIONS_DEFAULT,
        sinks[dead_letter] if dead_letter else None,
    )


# Errors.


def cause_of(error: error_pb2.Error) -> Cause:
    """Return what a plugin reports, in words for people."""
    where = [f"step {error.step!r}"] if error.step else []
    if error.key:
        where.append(f"key {error.key!r}")
    if error.stream:
        where.append(f"stream {error.stream!r}")
    if error.sequence:
        where.append(f"sequence {error.sequence}")
    message = error.message
    if where:
        message = f"{', '.join(where)}: {message}"
    try:
        code = error_pb2.ErrorCode.Name(error.code).removeprefix("ERROR_CODE_")
    except ValueError:
        code = "UNSPECIFIED"
    detail = "\n".join(part for part in (error.detail, error.stack) if part)
    return Cause(code, message, detail)


def error_of(
    cause: Cause, error_class: error_pb2.ErrorClass.ValueType
) -> error_pb2.Error:
    """Return a cause as a message for a plugin."""
    name = f"ERROR_CODE_{cause.code}"
    known = error_pb2.ErrorCode.keys()
    code = error_pb2.ErrorCode.Value(name) if name in known else 0
    return error_pb2.Error(
        error_class=error_class,
        code=error_pb2.ErrorCode.ValueType(code),
        message=cause.message,
        detail=cause.detail,
    )


# Sources.


def frame_of(frame: source_pb2.Frame) -> Frame:
    """Return a frame as the core takes it."""
    batches = tuple(map(batch_of, frame.batches))
    _check_frame(frame)
    return Frame(
        frame.stream,
        frame.number,
        batches,
        frame.more,
        frame.position,
        frame.watermark_us if frame.HasField("watermark_us") else None,
        frame.idle,
        frame.end,
        frame.records_read,
        sum(len(b.records) for b in batches),
        frame.records_skipped,
    )


def batch_of(batch: batch_pb2.Batch) -> SourceBatch:
    """Return a batch as the core takes it."""
    return SourceBatch(
        batch.output, batch.target, batch.count, batch.records, batch.ungrouped
    )


def reset_source(
    effect: ResetSource, credit_records: int, credit_bytes: int
) -> source_pb2.SourceResponse:
    """Return the reset of a source."""
    return source_pb2.SourceResponse(
        reset=source_pb2.SourceReset(
            generation=effect.generation,
            committed_epoch=effect.epoch,
            routes=_routes(effect.routes),
            streams=[_stream(state) for state in effect.streams],
            credit_records=credit_records,
            credit_bytes=credit_bytes,
            stream_targets=[t for targets in effect.targets for t in targets],
        )
    )


def open_stream(effect: OpenStream) -> source_pb2.SourceResponse:
    """Return the opening of a stream."""
    return source_pb2.SourceResponse(
        open_stream=source_pb2.OpenStream(
            generation=effect.generation,
            stream=_stream(effect.stream),
            targets=effect.targets,
        )
    )


def committed(effect: NotifyCommitted) -> source_pb2.SourceResponse:
    """Return the notice that positions are committed."""
    return source_pb2.SourceResponse(
        committed=source_pb2.Committed(
            epoch=effect.epoch, streams=[_stream(s) for s in effect.streams]
        )
    )


def hold(effect: HoldSource) -> source_pb2.SourceResponse:
    """Return the hold of a source."""
    return source_pb2.SourceResponse(
        hold=source_pb2.Hold(held=effect.is_held, reason=effect.reason)
    )


def source_credits(grants: Iterable[Grant]) -> source_pb2.SourceResponse:
    """Return credits of a source."""
    return source_pb2.SourceResponse(credits=[_credit(grant) for grant in grants])


# Computations.


def reset_compute(
    effect: ResetCompute, credit_records: int, credit_bytes: int
) -> compute_pb2.ComputeResponse:
    """Return the reset of a computation."""
    reset = compute_pb2.ComputeReset(
        generation=effect.generation,
        committed_epoch=effect.epoch,
        credit_records=credit_records,
        credit_bytes=credit_bytes,
        processing_time_us=effect.processing_time_us,
    )
    for stage in effect.stages:
        reset.stages.append(
            compute_pb2.StageAssignment(
                stage=stage.stage,
                partitions=stage.partitions,
                fresh_partitions=stage.fresh_partitions,
                routes=_routes(stage.routes),
                watermark_us=stage.watermark_us,
            )
        )
    return compute_pb2.ComputeResponse(reset=reset)


def stage_input(effect: ToStage, generation: int) -> compute_pb2.ComputeResponse:
    """Return a batch for a stage."""
    batch = effect.batch
    return compute_pb2.ComputeResponse(
        input=compute_pb2.StageInput(
            generation=generation,
            stage=effect.stage,
            channel=batch.channel,
            input=batch.input,
            count=batch.count,
            records=batch.records,
        )
    )


def stage_credits(grants: Iterable[Grant]) -> compute_pb2.ComputeResponse:
    """Return credits of stages."""
    return compute_pb2.ComputeResponse(
        credits=[
            compute_pb2.StageCredit(stage=grant.stage, credit=_credit(grant))
            for grant in grants
        ]
    )


def timers_due(effect: SendTimers) -> list[compute_pb2.ComputeResponse]:
    """Return due timers, in messages of bounded size."""
    timers, found = effect.timers, []
    start = size = 0
    for end in range(1, len(timers.keys) + 1):
        size += len(timers.keys[end - 1]) + len(timers.names[end - 1]) + 16
        if size >= STATE_VALUES_BYTES_MAX or end == len(timers.keys):
            part = slice(start, end)
            columns = TimerColumns(
                timers.keys[part],
                timers.names[part],
                timers.kinds[part],
                timers.due_us[part],
            )
            found.append(
                compute_pb2.ComputeResponse(
                    timers_due=compute_pb2.TimersDue(
                        generation=effect.generation,
                        epoch=effect.epoch,
                        stage=effect.stage,
                        timers=timers_message(columns),
                    )
                )
            )
            start, size = end, 0
    return found


def barrier(effect: SendBarrier) -> compute_pb2.ComputeResponse:
    """Return the barrier of a stage."""
    return compute_pb2.ComputeResponse(
        barrier=compute_pb2.Barrier(
            generation=effect.generation,
            epoch=effect.epoch,
            stage=effect.stage,
            watermark_us=effect.watermark_us,
            idle=effect.is_idle,
            processing_time_us=effect.processing_time_us,
        )
    )


def state_values(effect: SendRows) -> list[compute_pb2.ComputeResponse]:
    """Return the answer to a StateGet, in messages of bounded size."""
    parts: list[list[FoundRow]] = [[]]
    size = 0
    for row in effect.rows:
        value = row.row[1] if isinstance(row.row, tuple) else row.row or b""
        size += len(row.key) + len(row.entry) + len(value) + 16
        if size > STATE_VALUES_BYTES_MAX and parts[-1]:
            parts.append([])
            size = len(value)
        parts[-1].append(row)
    return [
        compute_pb2.ComputeResponse(
            state_values=compute_pb2.StateValues(
                generation=effect.generation,
                request=effect.request,
                rows=_rows(part),
                more=number + 1 < len(parts),
            )
        )
        for number, part in enumerate(parts)
    ]


def delta_parts(
    delta: compute_pb2.Delta,
) -> list[tuple[int, RowColumns | None, TimerColumns | None]]:
    """Return a delta frame as columns. Raises `ProtocolError`: they do not fit."""
    parts: list[tuple[int, RowColumns | None, TimerColumns | None]] = []
    for part in delta.partitions:
        try:
            rows = rows_from_wire(part.rows) if part.rows else None
            timers = timers_from_wire(part.timers) if part.timers else None
        except StateCorruptedError as error:
            # The same columns come from disk; these come from a plugin.
            raise ProtocolError(
                "PROTOCOL",
                f"delta of epoch {delta.epoch}, partition {part.partition}: {error}",
            ) from error
        if rows is not None:
            _check_rows(rows)
        if timers is not None:
            _check_timers(timers)
        parts.append((part.partition, rows, timers))
    return parts


# Sinks.


def sink_response(
    message: delivery.Open | delivery.Close | delivery.Deliver | delivery.SkipOutput,
    history: bytes,
    epoch: int,
) -> sink_pb2.SinkResponse:
    """Return what a delivery asks of its plugin."""
    where = {"partition": message.sink_partition, "generation": message.generation}
    match message:
        case delivery.Open():
            opening = sink_pb2.OpenSink(
                **where, history=history, window_bytes=delivery.WINDOW_BYTES
            )
            return sink_pb2.SinkResponse(open=opening)
        case delivery.Close():
            return sink_pb2.SinkResponse(close=sink_pb2.CloseSink(**where))
        case delivery.SkipOutput():
            skip = sink_pb2.Skip(**where, sequence=message.sequence)
            return sink_pb2.SinkResponse(skip=skip)
        case delivery.Deliver():
            batch = message.batch
            return sink_pb2.SinkResponse(
                input=sink_pb2.SinkInput(
                    **where,
                    first_sequence=batch.first_sequence,
                    count=batch.batch.count,
                    records=batch.batch.records,
                    epoch=epoch,
                    input=batch.batch.input,
                )
            )


def position_of(opened: sink_pb2.SinkOpened) -> tuple[bytes, int] | None:
    """Return (history, sequence) of a target; None: it cannot say."""
    if opened.WhichOneof("position") == "durable":
        return opened.durable.history, opened.durable.sequence
    if opened.unknown:
        return None
    raise ProtocolError("PROTOCOL", "SinkOpened without a position")


# Parts.


def _routes(routes: Iterable[Route]) -> list[batch_pb2.Route]:
    return [
        batch_pb2.Route(
            output=route.output,
            targets=route.targets,
            sink_partitions=route.sink_partitions,
        )
        for route in routes
    ]


def _stream(state: StreamState) -> source_pb2.StreamPosition:
    return source_pb2.StreamPosition(
        stream=state.stream,
        position=state.position,
        ended=state.is_ended,
        watermark_us=state.watermark_us,
    )


def _credit(grant: Grant) -> batch_pb2.Credit:
    return batch_pb2.Credit(
        output=grant.output,
        target=grant.target,
        records=grant.records,
        bytes=grant.bytes,
    )


def _rows(found: list[FoundRow]) -> batch_pb2.StateRows:
    pairs = [r.row if isinstance(r.row, tuple) else (0, r.row) for r in found]
    versions = [version for version, _ in pairs]
    return batch_pb2.StateRows(
        states=[r.state for r in found] if any(r.state for r in found) else [],
        keys=[r.key for r in found],
        entries=[r.entry for r in found] if any(r.entry for r in found) else [],
        schema_versions=versions if any(versions) else [],
        values=[value or b"" for _, value in pairs],
        absent=[i for i, (_, value) in enumerate(pairs) if value is None],
    )


def _check_frame(frame: source_pb2.Frame) -> None:
    where = f"stream {frame.stream!r}, frame {frame.number}"
    if frame.more and frame.position:
        raise ProtocolError("PROTOCOL", f"{where}: both more and a position")
    if frame.batches and not (frame.more or frame.position):
        raise ProtocolError("PROTOCOL", f"{where}: records without a position")
    if len(frame.position) > POSITION_BYTES_MAX:
        raise ProtocolError(
            "TOO_LARGE",
            f"{where}: a position of {len(frame.position)} bytes; the limit is"
            f" {POSITION_BYTES_MAX}",
        )
    for batch in frame.batches:
        if batch.count > BATCH_RECORDS_MAX:
            raise ProtocolError(
                "TOO_LARGE",
                f"{where}: a batch of {batch.count} records; the limit is"
                f" {BATCH_RECORDS_MAX}",
            )


def _check_rows(rows: RowColumns) -> None:
    count = len(rows.keys)
    for name, column, allowed in (
        ("values", rows.values, (count,)),
        ("states", rows.states, (0, count)),
        ("entries", rows.entries, (0, count)),
        ("schema_versions", rows.versions, (0, 1, count)),
    ):
        if len(column) not in allowed:
            raise ProtocolError(
                "PROTOCOL", f"{count} rows with {len(column)} elements in {name}"
            )
    if rows.absent and rows.absent[-1] >= count:
        raise ProtocolError("PROTOCOL", f"absent row {rows.absent[-1]} of {count}")


def _check_timers(timers: TimerColumns) -> None:
    count = len(timers.keys)
    columns = (timers.names, timers.kinds, timers.due_us)
    if any(len(column) != count for column in columns):
        raise ProtocolError("PROTOCOL", f"columns of {count} timers do not fit")
    if timers.deleted and timers.deleted[-1] >= count:
        raise ProtocolError("PROTOCOL", f"deleted timer {timers.deleted[-1]}")
