"""Packs what one epoch changed in one stage into frames of at most 1 MiB."""

from collections.abc import Iterable, Iterator, Sequence

from bettong.runtime import limits
from bettong.runtime.cache import DirtyRows
from bettong.runtime.timers import TimerName
from bettong_proto.plugin.v1 import batch_pb2, compute_pb2

# Of the fields around the serialized columns.
_OVERHEAD_BYTES = 32


def delta_frames(
    rows: Iterable[DirtyRows],
    timers: Iterable[tuple[int, dict[TimerName, int | None]]],
    *,
    schema_version: int,
    rows_max: int = limits.BATCH_RECORDS_MAX,
    frame_bytes_max: int = limits.FRAME_BYTES_MAX,
) -> Iterator[list[compute_pb2.PartitionRows]]:
    """Yield the content of each frame, in order; nothing if nothing changed.

    Args:
        rows: dirty rows by partition.
        timers: outcome of timers, by partition.
        schema_version: of the rows.
        rows_max: elements of a column.
        frame_bytes_max: of a frame, unless a single row is larger.
    """
    frame: list[compute_pb2.PartitionRows] = []
    size = 0
    for part in _parts(rows, timers, schema_version, rows_max, frame_bytes_max):
        part_size = len(part.rows) + len(part.timers) + _OVERHEAD_BYTES
        if frame and size + part_size > frame_bytes_max:
            yield frame
            frame, size = [], 0
        frame.append(part)
        size += part_size
    if frame:
        yield frame


def _parts(
    rows: Iterable[DirtyRows],
    timers: Iterable[tuple[int, dict[TimerName, int | None]]],
    schema_version: int,
    rows_max: int,
    bytes_max: int,
) -> Iterator[compute_pb2.PartitionRows]:
    for dirty in rows:
        yield from _row_parts(dirty, schema_version, rows_max, bytes_max)
    for partition, outcome in timers:
        yield from _timer_parts(partition, list(outcome.items()), rows_max, bytes_max)


def _row_parts(
    dirty: DirtyRows, schema_version: int, rows_max: int, bytes_max: int
) -> Iterator[compute_pb2.PartitionRows]:
    count = len(dirty.keys)
    if count <= rows_max:
        encoded = batch_pb2.StateRows(
            keys=dirty.keys,
            values=dirty.values,
            absent=dirty.absent,
            schema_versions=[schema_version] if schema_version else None,
        ).SerializeToString()
        if len(encoded) + _OVERHEAD_BYTES <= bytes_max or count == 1:
            yield compute_pb2.PartitionRows(partition=dirty.partition, rows=encoded)
            return
    middle = count // 2
    for begin, end in ((0, middle), (middle, count)):
        half = DirtyRows(
            dirty.partition,
            dirty.keys[begin:end],
            dirty.values[begin:end],
            [index - begin for index in dirty.absent if begin <= index < end],
        )
        yield from _row_parts(half, schema_version, rows_max, bytes_max)


def _timer_parts(
    partition: int,
    outcome: Sequence[tuple[TimerName, int | None]],
    rows_max: int,
    bytes_max: int,
) -> Iterator[compute_pb2.PartitionRows]:
    count = len(outcome)
    if count <= rows_max:
        encoded = batch_pb2.Timers(
            keys=[timer[0] for timer, _ in outcome],
            names=[timer[2] for timer, _ in outcome],
            kinds=[timer[1] for timer, _ in outcome],  # type: ignore[misc]
            due_us=[due_us or 0 for _, due_us in outcome],
            deleted=[i for i, (_, due_us) in enumerate(outcome) if due_us is None],
        ).SerializeToString()
        if len(encoded) + _OVERHEAD_BYTES <= bytes_max or count == 1:
            yield compute_pb2.PartitionRows(partition=partition, timers=encoded)
            return
    middle = count // 2
    yield from _timer_parts(partition, outcome[:middle], rows_max, bytes_max)
    yield from _timer_parts(partition, outcome[middle:], rows_max, bytes_max)
