"""A source and a sink in memory, in the place of the real ones of a plan."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from bettong.codec import Codec
from bettong.codecs import msgpack
from bettong.connector import (
    Fence,
    Guarantee,
    Read,
    Sink,
    SinkPosition,
    Source,
    StreamKind,
    Unknown,
    Writer,
)
from bettong.plan import Chain, Edge, Plan, SinkPlan

STREAM = "memory"
# So that codec names tell where a value went; names are compared nowhere here.
_CODEC_PREFIX = "in-memory:"
_AS_TEXT = b"t"
_AS_CODEC = b"c"
_NOTHING = SinkPosition(b"", 0)


class MemorySource(Source):
    """One stream of the records fed so far; a position is how many were read."""

    kind = StreamKind.SHARED

    def __init__(self, codec: Codec = msgpack, *, records_a_read: int = 1) -> None:
        self.codec = codec
        self.records: list[Any] = []
        self.has_ended = False
        self.records_a_read = records_a_read

    def start(self) -> None:
        """Do nothing: there is nothing to acquire."""

    def streams(self) -> tuple[Sequence[str], bool]:
        """Return the one stream there is."""
        return (STREAM,), True

    def open(self, stream: str, position: bytes | None) -> "_MemoryReader":
        """Begin after as many records as the position says."""
        return _MemoryReader(self, int(position or b"0"))

    def wait(self, timeout_s: float) -> None:
        """Do nothing: whoever feeds records knows when to read on."""

    def stop(self) -> None:
        """Do nothing."""


class _MemoryReader:
    def __init__(self, source: MemorySource, offset: int) -> None:
        self._source = source
        self._offset = offset

    def read(self) -> Read | None:
        source, begin = self._source, self._offset
        records = source.records[begin : begin + source.records_a_read]
        self._offset += len(records)
        is_end = source.has_ended and self._offset == len(source.records)
        if not records and not is_end:
            return None
        return Read(records, b"%d" % self._offset, end=is_end)

    def committed(self, position: bytes) -> None:
        """Do nothing: nobody waits for it."""

    def close(self) -> None:
        """Do nothing."""


@dataclass(slots=True)
class _Target:
    """What is durable in one sink partition."""

    records: list[Any] = field(default_factory=list)
    position: SinkPosition = _NOTHING


class MemorySink(Sink):
    """Lists, one for each sink partition, that keep outputs exactly once."""

    guarantee = Guarantee.EXACTLY_ONCE
    takes_bytes = False

    def __init__(self, codec: Codec, partitions: int) -> None:
        self.codec = codec
        self.partitions = partitions
        self._targets = [_Target() for _ in range(max(1, partitions))]

    @property
    def records(self) -> list[Any]:
        """The outputs, partition by partition."""
        return [record for target in self._targets for record in target.records]

    def open(
        self, partition: int, fence: Fence
    ) -> tuple[Writer, SinkPosition | Unknown]:
        """Return a writer that goes on behind what is there."""
        target = self._targets[partition]
        return _MemoryWriter(target, fence), target.position


class _MemoryWriter(Writer):
    def __init__(self, target: _Target, fence: Fence) -> None:
        self._target = target
        self._fence = fence
        self._unflushed: list[Any] = []
        self._sequence = target.position.sequence

    def write(self, first_sequence: int, records: Sequence[Any]) -> None:
        self._unflushed += records
        self._sequence = first_sequence + len(records) - 1

    def flush(self) -> int:
        self._target.records += self._unflushed
        self._target.position = SinkPosition(self._fence.history, self._sequence)
        self._unflushed = []
        return self._sequence

    def skip(self, sequence: int) -> None:
        self._sequence = sequence

    def close(self) -> None:
        self._unflushed = []


class _ValueCodec:
    """The codec of an edge to a sink, and a note whether the value was a plain str.

    A sink that takes bytes has a codec that gives bytes back; a test wants to see
    what the pipeline put out.
    """

    def __init__(self, codec: Codec) -> None:
        self.name = _CODEC_PREFIX + codec.name
        self._codec = codec

    def encode(self, value: Any) -> bytes:
        """Return the bytes of one value. Raises `CodecError` where the codec does."""
        data = self._codec.encode(value)
        return _mark(value, data) + data

    def decode(self, data: bytes) -> Any:
        """Return the value of the bytes."""
        body = data[1:]
        if data[:1] == _AS_TEXT:
            return body.decode("utf-8", "surrogatepass")
        return self._codec.decode(body)

    def encode_many(self, values: Sequence[Any]) -> list[bytes]:
        """Encode a column."""
        column = self._codec.encode_many(values)
        pairs = zip(values, column, strict=True)
        return [_mark(value, data) + data for value, data in pairs]

    def decode_many(self, column: Sequence[bytes]) -> list[Any]:
        """Decode a column."""
        return [self.decode(data) for data in column]


def _mark(value: object, data: bytes) -> bytes:
    is_text = type(value) is str and value.encode("utf-8", "surrogatepass") == data
    return _AS_TEXT if is_text else _AS_CODEC


def _edges(edges: Sequence[Edge]) -> tuple[Edge, ...]:
    return tuple(
        edge
        if edge.to_sink is None
        else dataclasses.replace(edge, codec=_ValueCodec(edge.codec))
        for edge in edges
    )


def _chain(chain: Chain) -> Chain:
    return dataclasses.replace(
        chain,
        edges=_edges(chain.edges),
        branches=tuple(map(_chain, chain.branches)),
        choices={name: _chain(choice) for name, choice in chain.choices.items()},
    )


def in_memory(
    plan: Plan, *, records_a_read: int
) -> tuple[Plan, dict[str, MemorySource], dict[str, MemorySink]]:
    """Return the plan with sources and sinks in memory, and these by name."""
    sources = {
        source.name: MemorySource(source.connector.codec, records_a_read=records_a_read)
        for source in plan.sources
    }
    sinks = {
        sink.name: MemorySink(sink.connector.codec, sink.connector.partitions)
        for sink in plan.sinks
    }
    replaced = dataclasses.replace(
        plan,
        sources=tuple(
            dataclasses.replace(
                source,
                connector=sources[source.name],
                outputs=_edges(source.outputs),
                chain=_chain(source.chain),
            )
            for source in plan.sources
        ),
        stages=tuple(
            dataclasses.replace(
                stage, outputs=_edges(stage.outputs), chain=_chain(stage.chain)
            )
            for stage in plan.stages
        ),
        sinks=tuple(
            SinkPlan(
                sink.name, sinks[sink.name], tuple(_ValueCodec(c) for c in sink.inputs)
            )
            for sink in plan.sinks
        ),
    )
    return replaced, sources, sinks
