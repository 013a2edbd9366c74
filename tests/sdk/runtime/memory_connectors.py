"""A source and a sink in memory, with the faults that a test asks for."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import bettong as bt
from bettong.codec import Codec


class ListSource:
    """Streams of fixed records. A position is the number of records read, as text."""

    def __init__(
        self,
        streams: dict[str, Sequence[Any]],
        *,
        records_a_read: int = 3,
        kind: bt.StreamKind = bt.StreamKind.SHARED,
        codec: Codec = bt.text,
        is_complete: bool = True,
    ) -> None:
        self.contents = {name: list(records) for name, records in streams.items()}
        self.records_a_read = records_a_read
        self.kind = kind
        self.codec = codec
        self.is_complete = is_complete
        self.committed: dict[str, list[int]] = {}
        self.opened: list[tuple[str, bytes | None]] = []
        self.closed: list[str] = []
        # Raised by the next read of any stream, once.
        self.fault: Exception | None = None

    def start(self) -> None:
        pass

    def streams(self) -> tuple[Sequence[str], bool]:
        return list(self.contents), self.is_complete

    def open(self, stream: str, position: bytes | None) -> "ListReader":
        self.opened.append((stream, position))
        return ListReader(self, stream, int(position or b"0"))

    def wait(self, timeout_s: float) -> None:
        pass

    def stop(self) -> None:
        pass


class ListReader:
    def __init__(self, source: ListSource, stream: str, offset: int) -> None:
        self._source = source
        self._stream = stream
        self._offset = offset
        self._was_closed = False

    def read(self) -> bt.Read | None:
        assert not self._was_closed, "read after close"
        source = self._source
        if source.fault is not None:
            fault, source.fault = source.fault, None
            raise fault
        content = source.contents[self._stream]
        records = content[self._offset : self._offset + source.records_a_read]
        self._offset += len(records)
        is_end = source.is_complete and self._offset == len(content)
        if not records and not is_end:
            return None
        return bt.Read(records, str(self._offset).encode(), end=is_end)

    def committed(self, position: bytes) -> None:
        assert not self._was_closed, "committed after close"
        self._source.committed.setdefault(self._stream, []).append(int(position))

    def close(self) -> None:
        assert not self._was_closed, "closed twice"
        self._was_closed = True
        self._source.closed.append(self._stream)


@dataclass
class ListTarget:
    """What the world behind a sink partition holds: it outlives sink processes."""

    records: list[Any] = field(default_factory=list)
    history: bytes = b""
    sequence: int = 0
    generation: int = 0


class ListSink:
    """A sink whose data and position change in one step, at flush."""

    takes_bytes = False

    def __init__(
        self,
        *,
        codec: Codec = bt.text,
        partitions: int = 1,
        guarantee: bt.Guarantee = bt.Guarantee.EXACTLY_ONCE,
    ) -> None:
        self.codec = codec
        self.partitions = partitions
        self.guarantee = guarantee
        self.targets = [ListTarget() for _ in range(partitions)]
        self.opened: list[tuple[int, bt.Fence]] = []
        # Raised by the next call of that name, once.
        self.faults: dict[str, Exception] = {}
        # Values that the target never takes.
        self.refuses: set[Any] = set()
        self.says_unknown = False

    def open(
        self, partition: int, fence: bt.Fence
    ) -> tuple["ListWriter", bt.SinkPosition | bt.Unknown]:
        self.raise_fault("open")
        self.opened.append((partition, fence))
        target = self.targets[partition]
        target.generation = fence.generation
        writer = ListWriter(self, target, fence)
        if self.says_unknown:
            return writer, bt.UNKNOWN
        return writer, bt.SinkPosition(target.history, target.sequence)

    def raise_fault(self, call: str) -> None:
        fault = self.faults.pop(call, None)
        if fault is not None:
            raise fault

    @property
    def records(self) -> list[Any]:
        """What all partitions hold."""
        return [record for target in self.targets for record in target.records]


class ListWriter:
    def __init__(self, sink: ListSink, target: ListTarget, fence: bt.Fence) -> None:
        self._sink = sink
        self._target = target
        self._fence = fence
        self._pending: list[Any] = []
        self._next = 0
        self._was_closed = False

    def write(self, first_sequence: int, records: Sequence[Any]) -> None:
        assert not self._was_closed, "write after close"
        self._sink.raise_fault("write")
        if self._next:
            assert first_sequence == self._next, "a gap or an overlap"
        for index, record in enumerate(records):
            if record in self._sink.refuses:
                self._next = first_sequence + index
                raise bt.RecordRefusedError(first_sequence + index, "not this one")
            self._pending.append(record)
            self._next = first_sequence + index + 1

    def flush(self) -> int:
        assert not self._was_closed, "flush after close"
        self._sink.raise_fault("flush")
        target = self._target
        if target.generation > self._fence.generation:
            raise bt.SinkError("fenced", is_retryable=False, code=bt.ErrorCode.FENCED)
        target.records += self._pending
        self._pending = []
        if self._next:
            target.sequence = self._next - 1
            target.history = self._fence.history
        return target.sequence

    def skip(self, sequence: int) -> None:
        assert not self._was_closed, "skip after close"
        self._next = sequence + 1

    def close(self) -> None:
        assert not self._was_closed, "closed twice"
        self._was_closed = True
