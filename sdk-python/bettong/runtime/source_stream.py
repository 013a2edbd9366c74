"""One stream of a source: its reader, and its reads that are not committed.

A read is remembered from the moment it is taken until its position is committed, as
the batches that were made of it, so that it can be sent again with the same bytes.
"""

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from enum import Enum

from bettong.connector import Read, Reader
from bettong.program.columns import SizeLimits
from bettong.runtime import limits
from bettong.runtime.batches import OutputRoute, make_batches, parse_columns
from bettong_proto.plugin.v1 import batch_pb2


class StreamState(Enum):
    """What a stream is doing."""

    # To be opened, for the first time or again, when its time has come.
    OPENING = "opening"
    OPEN = "open"
    # Its end was read and is not committed.
    ENDING = "ending"
    # Stopped by an error until a reset or OpenStream names it.
    STOPPED = "stopped"


@dataclass(slots=True)
class RememberedRead:
    """A read, or with an empty position and no batches a mark.

    was_counted: its bytes count as sent and not committed.
    """

    position: bytes
    batches: list[batch_pb2.Batch]
    watermark_us: int | None = None
    is_idle: bool = False
    is_end: bool = False
    records_read: int = 0
    records_skipped: int = 0
    was_counted: bool = False

    @property
    def size(self) -> int:
        """Bytes of its batches."""
        return sum(len(batch.records) for batch in self.batches)


@dataclass(slots=True)
class SourceStream:
    """A stream from its opening to its committed end.

    Invariants: `unsent` is a tail of `memory`; `parts_sent` batches of its first read
    are sent in this generation. `position` is that of the last read taken.

    base: the position before the first read of `memory`; None: the start.
    """

    name: str
    routes: list[OutputRoute]
    base: bytes | None
    watermark_us: int | None
    state: StreamState = StreamState.OPENING
    reader: Reader | None = None
    position: bytes | None = field(init=False)
    memory: deque[RememberedRead] = field(default_factory=deque)
    unsent: deque[RememberedRead] = field(default_factory=deque)
    parts_sent: int = 0
    frames_sent: int = 0
    # A read on which user code failed; it is worked on again after a reset.
    failed_read: Read | None = None
    is_idle: bool = False
    last_record_ms: int = 0
    retry_at_ms: int = 0
    # Until then a new read waits for more records.
    lingers_until_ms: int = 0
    retry_delay_ms: int = 0
    # StreamOpened is owed once in each generation, when the reader is open.
    owes_opened: bool = True

    def __post_init__(self) -> None:
        self.position = self.base

    @property
    def may_read(self) -> bool:
        """Return whether a new read may begin as far as this stream goes."""
        return self.state is StreamState.OPEN and not self.unsent

    def remember(self, read: RememberedRead) -> None:
        """Take a read that is to be sent."""
        self.memory.append(read)
        self.unsent.append(read)
        if read.position:
            self.position = read.position
        if read.is_end:
            self.state = StreamState.ENDING

    def holds(self, position: bytes | None) -> bool:
        """Return whether the stream can go on from `position` by memory alone."""
        if position == self.base:
            return True
        return position is not None and any(
            read.position == position for read in self.memory
        )

    def forget_up_to(self, position: bytes) -> list[RememberedRead]:
        """Forget the reads up to the last one with this position; return them."""
        last = -1
        for index, read in enumerate(self.memory):
            if read.position == position:
                last = index
        forgotten = [self.memory.popleft() for _ in range(last + 1)]
        if forgotten:
            self.base = position
        while self.unsent and (not self.memory or len(self.unsent) > len(self.memory)):
            self.unsent.popleft()
            self.parts_sent = 0
        return forgotten

    def replay(self, routes: list[OutputRoute], sizes: SizeLimits, most: int) -> None:
        """Make all remembered reads unsent, grouped for the routes given."""
        is_regrouped = [route.targets for route in routes] != [
            route.targets for route in self.routes
        ]
        self.routes = routes
        if is_regrouped:
            for read in self.memory:
                read.batches = list(_regroup(read.batches, routes, sizes, most))
        self.unsent = deque(self.memory)
        self.parts_sent = 0
        self.frames_sent = 0


def _regroup(
    batches: Sequence[batch_pb2.Batch],
    routes: Sequence[OutputRoute],
    sizes: SizeLimits,
    records_max: int,
) -> Iterator[batch_pb2.Batch]:
    for batch in batches:
        columns = parse_columns(batch.records)
        yield from make_batches(columns, routes[batch.output], sizes, records_max)


def end_by_size(batches: Sequence[batch_pb2.Batch], begin: int) -> int:
    """Return where a frame that begins at `begin` is full; at least one batch."""
    size = 0
    for index in range(begin, len(batches)):
        size += len(batches[index].records)
        if size > limits.FRAME_BYTES_MAX and index > begin:
            return index
    return len(batches)
