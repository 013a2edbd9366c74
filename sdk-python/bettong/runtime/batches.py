"""Turns output columns into batches: grouped by target, cut to size, serialized.

With one target, the usual case on one worker, nothing is hashed.
"""

import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from bettong.errors import ProtocolError
from bettong.plan import Edge
from bettong.program.columns import Columns, SizeLimits, too_large
from bettong.program.failure import RecordFailedError
from bettong.runtime import limits
from bettong_proto.plugin.v1 import batch_pb2


@dataclass(slots=True)
class OutputRoute:
    """Where the records of one output go, for one generation.

    targets: of each partition, for a keyed output to a stage; of each sink
        partition, the partition itself; or the one target.
    only: the target, if there is one only.
    """

    edge: Edge
    targets: tuple[int, ...]
    only: int | None = field(init=False)

    def __post_init__(self) -> None:
        distinct = set(self.targets)
        self.only = self.targets[0] if len(distinct) == 1 else None
        if not distinct:
            raise ProtocolError(
                f"the engine sent no targets for output {self.edge.number}"
            )

    def split(self, columns: Columns) -> list[tuple[int, Columns]]:
        """Group records by target, keeping their order. Cost: 0 with one target."""
        if self.only is not None:
            return [(self.only, columns)]
        keys = columns.keys
        if keys is None:
            return [(self.targets[0], columns)]
        targets, count, crc32 = self.targets, len(self.targets), zlib.crc32
        groups: dict[int, list[int]] = {}
        for index, key in enumerate(keys):
            target = targets[crc32(key) % count]
            group = groups.get(target)
            if group is None:
                groups[target] = [index]
            else:
                group.append(index)
        return [(target, _pick(columns, groups[target])) for target in sorted(groups)]


class Router:
    """The routes of one sender, by output number."""

    def __init__(self, edges: Sequence[Edge], sink_partitions: dict[str, int]) -> None:
        self._edges = edges
        self._sink_partitions = sink_partitions
        self._routes: dict[int, batch_pb2.Route] = {}

    def on_reset(self, routes: Sequence[batch_pb2.Route]) -> None:
        """Take over the routes of a new generation."""
        self._routes = {route.output: route for route in routes}

    def resolve(self, stream_targets: Sequence[int] = ()) -> list[OutputRoute]:
        """Return the route of each output, in order.

        Args:
            stream_targets: for outputs to stages without key, in their order.

        Raises:
            ProtocolError: the engine left something out.
        """
        unkeyed = iter(stream_targets)
        return [OutputRoute(edge, self._targets(edge, unkeyed)) for edge in self._edges]

    def _targets(self, edge: Edge, unkeyed: Iterator[int]) -> tuple[int, ...]:
        if edge.to_sink is not None:
            count = self._sink_partitions.get(edge.to_sink, 1)
            route = self._routes.get(edge.number)
            if route is not None and route.sink_partitions not in (0, count):
                raise ProtocolError(
                    f"sink {edge.to_sink!r} has {count} partitions here and"
                    f" {route.sink_partitions} at the engine"
                )
            return tuple(range(max(1, count)))
        route = self._routes.get(edge.number)
        if route is not None and route.targets:
            return tuple(route.targets)
        target = next(unkeyed, None)
        return () if target is None else (target,)


def make_batches(
    columns: Columns, route: OutputRoute, sizes: SizeLimits, records_max: int
) -> list[batch_pb2.Batch]:
    """Cut and serialize the records of one output, in order for each target.

    Raises:
        RecordFailedError: a record is over a limit of the engine.
    """
    if columns.count == 0:
        return []
    batches: list[batch_pb2.Batch] = []
    for target, group in route.split(columns):
        count = group.count
        # Parts of equal size rather than full ones and a small rest.
        parts = -(-count // records_max)
        for part in range(parts):
            begin, end = count * part // parts, count * (part + 1) // parts
            chosen = group if parts == 1 else _slice(group, begin, end)
            _serialize(chosen, route.edge, target, sizes, batches)
    return batches


def parse_columns(records: bytes, *, key_column: bool = True) -> Columns:
    """Return the columns of a serialized `Records`; nulls and headers are dropped."""
    parsed = batch_pb2.Records.FromString(records)
    keys = list(parsed.keys) if parsed.keys and key_column else None
    values = None if parsed.value_is_key else list(parsed.values)
    count = len(values) if values is not None else len(parsed.keys)
    return Columns(keys, values, spread_times(parsed.event_time_us, count))


def spread_times(times: Sequence[int], count: int) -> list[int] | None:
    """Return one event time a record from a column of 0, 1 or `count`."""
    if not times:
        return None
    if len(times) == 1 and count != 1:
        return [times[0]] * count
    return list(times)


def _serialize(
    columns: Columns,
    edge: Edge,
    target: int,
    sizes: SizeLimits,
    batches: list[batch_pb2.Batch],
) -> None:
    count = columns.count
    records = batch_pb2.Records(
        keys=columns.keys,
        values=columns.values,
        event_time_us=columns.times,
        value_is_key=columns.values is None,
    ).SerializeToString()
    if len(records) > sizes.key:
        _check_sizes(columns, edge, sizes)
    if len(records) > limits.FRAME_BYTES_MAX and count > 1:
        middle = count // 2
        _serialize(_slice(columns, 0, middle), edge, target, sizes, batches)
        _serialize(_slice(columns, middle, count), edge, target, sizes, batches)
        return
    batches.append(
        batch_pb2.Batch(output=edge.number, target=target, count=count, records=records)
    )


def _check_sizes(columns: Columns, edge: Edge, sizes: SizeLimits) -> None:
    """Raise for a key or record that is too large.

    Called only if all of them together are larger than the limit of a key.
    """
    step = f"output to {edge.to_stage or edge.to_sink}"
    keys, values = columns.keys or [], columns.values or []
    if keys:
        longest = max(keys, key=len)
        if len(longest) > sizes.key:
            error = too_large("key", len(longest), sizes.key)
            raise RecordFailedError(error, step=step, key=longest[: sizes.key])
    if values:
        longest = max(values, key=len)
        longest_key = max(map(len, keys), default=0)
        if len(longest) + longest_key > sizes.record:
            _check_records(keys, values, step, sizes)


def _check_records(
    keys: list[bytes], values: list[bytes], step: str, sizes: SizeLimits
) -> None:
    for index, value in enumerate(values):
        key = keys[index] if keys else None
        size = len(value) + len(key or b"")
        if size > sizes.record:
            error = too_large("record", size, sizes.record)
            raise RecordFailedError(error, step=step, key=key, index=index)


def _slice(columns: Columns, begin: int, end: int) -> Columns:
    keys, values, times = columns.keys, columns.values, columns.times
    return Columns(
        None if keys is None else keys[begin:end],
        None if values is None else values[begin:end],
        None if times is None else times[begin:end],
    )


def _pick(columns: Columns, indices: list[int]) -> Columns:
    keys, values, times = columns.keys, columns.values, columns.times
    return Columns(
        None if keys is None else [keys[i] for i in indices],
        None if values is None else [values[i] for i in indices],
        None if times is None else [times[i] for i in indices],
    )
