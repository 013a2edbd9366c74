"""Deltas, snapshots and commit records as bytes: what disks and peers keep."""

from google.protobuf.message import DecodeError, Message

from bettong_engine.core.coordinator import GenerationRecord, Manifest
from bettong_engine.core.delta import (
    OutputBatch,
    PartitionDelta,
    RowColumns,
    SinkDelta,
    StageDelta,
    StreamState,
    TimerColumns,
)
from bettong_engine.core.ids import (
    Epoch,
    Generation,
    PartitionId,
    Term,
    WorkerId,
)
from bettong_engine.core.messages import Assignment
from bettong_engine.errors import StateCorruptedError
from bettong_proto.peer.v1 import delta_pb2 as wire
from bettong_proto.plugin.v1 import batch_pb2


def encode_delta(delta: PartitionDelta) -> bytes:
    """Return the bytes of a delta, or of a snapshot. Rows are not parsed again."""
    message = wire.PartitionDelta(
        partition=delta.partition,
        epoch=delta.epoch,
        generation=delta.generation,
        base_epoch=delta.base_epoch,
    )
    for stage in delta.stages:
        part = message.stages.add(
            stage=stage.stage,
            rows=[rows.raw or rows_to_wire(rows) for rows in stage.rows],
            timers=[timers.raw or timers_to_wire(timers) for timers in stage.timers],
        )
        if stage.watermark_us is not None:
            part.watermark_us = stage.watermark_us
    for state in delta.streams:
        message.streams.append(
            wire.StreamState(
                source=state.source,
                stream=state.stream,
                position=state.position,
                ended=state.is_ended,
                watermark_us=state.watermark_us,
                idle=state.is_idle,
                forgotten=state.is_forgotten,
            )
        )
    for sink in delta.sinks:
        # Added in place: appending would copy the records once more.
        part_of_sink = message.sinks.add(
            sink=sink.sink,
            sink_partition=sink.sink_partition,
            first_sequence=sink.first_sequence,
            durable_sequence=sink.durable_sequence,
            skipped=sink.skipped,
        )
        for batch in sink.batches:
            part_of_sink.batches.add(
                count=batch.count, records=batch.records, input=batch.input
            )
    return message.SerializeToString(deterministic=True)


def decode_delta(body: bytes) -> PartitionDelta:
    """Return the delta of these bytes. Raises `StateCorruptedError`."""
    message = wire.PartitionDelta()
    _parse(message, body)
    stages = [
        StageDelta(
            part.stage,
            [rows_from_wire(rows) for rows in part.rows],
            [timers_from_wire(timers) for timers in part.timers],
            part.watermark_us if part.HasField("watermark_us") else None,
        )
        for part in message.stages
    ]
    streams = [
        StreamState(
            state.source,
            state.stream,
            state.position if state.HasField("position") else None,
            state.ended,
            state.watermark_us if state.HasField("watermark_us") else None,
            state.idle,
            state.forgotten,
        )
        for state in message.streams
    ]
    sinks = [
        SinkDelta(
            sink.sink,
            sink.sink_partition,
            sink.first_sequence,
            [OutputBatch(b.count, b.records, b.input) for b in sink.batches],
            sink.durable_sequence,
            tuple(sink.skipped),
        )
        for sink in message.sinks
    ]
    return PartitionDelta(
        PartitionId(message.partition),
        Epoch(message.epoch),
        Generation(message.generation),
        Epoch(message.base_epoch),
        stages,
        streams,
        sinks,
    )


def rows_from_wire(raw: bytes) -> RowColumns:
    """Return state rows as columns, with their bytes."""
    message = batch_pb2.StateRows()
    _parse(message, raw)
    return RowColumns(
        message.keys,
        message.values,
        message.states,
        message.entries,
        message.schema_versions,
        message.absent,
        raw,
    )


def rows_to_wire(rows: RowColumns) -> bytes:
    """Return the bytes of state rows."""
    return batch_pb2.StateRows(
        keys=rows.keys,
        values=rows.values,
        states=rows.states,
        entries=rows.entries,
        schema_versions=rows.versions,
        absent=rows.absent,
    ).SerializeToString(deterministic=True)


def timers_from_wire(raw: bytes) -> TimerColumns:
    """Return timers as columns, with their bytes."""
    message = batch_pb2.Timers()
    _parse(message, raw)
    return TimerColumns(
        list(message.keys),
        list(message.names),
        list(message.kinds),
        list(message.due_us),
        list(message.deleted),
        raw,
    )


def timers_to_wire(timers: TimerColumns) -> bytes:
    """Return the bytes of timers."""
    return timers_message(timers).SerializeToString(deterministic=True)


def timers_message(timers: TimerColumns) -> batch_pb2.Timers:
    """Return timers as a message."""
    return batch_pb2.Timers(
        keys=timers.keys,
        names=timers.names,
        kinds=[batch_pb2.TimerKind.ValueType(kind) for kind in timers.kinds],
        due_us=timers.due_us,
        deleted=timers.deleted,
    )


def encode_manifest(manifest: Manifest) -> bytes:
    """Return the bytes of a commit record."""
    return wire.Manifest(
        epoch=manifest.epoch,
        generation=manifest.generation,
        term=manifest.term,
        processing_time_us=manifest.processing_time_us,
        digests=manifest.digests,
    ).SerializeToString(deterministic=True)


def decode_manifest(body: bytes) -> Manifest:
    """Return the commit record of these bytes. Raises `StateCorruptedError`."""
    message = wire.Manifest()
    _parse(message, body)
    return Manifest(
        Epoch(message.epoch),
        Generation(message.generation),
        Term(message.term),
        message.processing_time_us,
        tuple(message.digests),
    )


def encode_generation(record: GenerationRecord) -> bytes:
    """Return the bytes of a generation record."""
    primaries = record.assignment.primaries if record.assignment else ()
    return wire.GenerationRecord(
        generation=record.generation,
        term=record.term,
        is_assigned=record.assignment is not None,
        primaries=primaries,
    ).SerializeToString(deterministic=True)


def decode_generation(body: bytes) -> GenerationRecord:
    """Return the generation record of these bytes. Raises `StateCorruptedError`."""
    message = wire.GenerationRecord()
    _parse(message, body)
    assignment = None
    if message.is_assigned:
        assignment = Assignment(tuple(WorkerId(w) for w in message.primaries))
    return GenerationRecord(
        Generation(message.generation), Term(message.term), assignment
    )


def _parse(message: Message, body: bytes) -> None:
    try:
        message.ParseFromString(body)
    except DecodeError as error:
        raise StateCorruptedError(
            f"{type(message).__name__} of {len(body)} bytes cannot be read: {error}"
        ) from error
