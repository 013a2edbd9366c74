"""What one epoch changes in one partition, as values; and the digest that chains it.

The bytes of a delta are made once, by the worker that prepares it, and never again:
they are what is stored, sent and digested.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from hashlib import sha256

from bettong_engine.core.ids import Epoch, Generation, PartitionId

DIGEST_BYTES = 16


@dataclass(frozen=True, slots=True)
class RowColumns:
    """Rows of keyed state as columns; `raw` is the message that held them.

    states, entries, versions: empty (all 0 or b""), or one element a key; versions
    may also be a single one for all. absent: ascending indices of rows deleted.
    """

    keys: Sequence[bytes]
    values: Sequence[bytes]
    states: Sequence[int] = ()
    entries: Sequence[bytes] = ()
    versions: Sequence[int] = ()
    absent: Sequence[int] = ()
    raw: bytes = b""


@dataclass(frozen=True, slots=True)
class TimerColumns:
    """Timers as columns; `deleted`: indices of those deleted or fired."""

    keys: Sequence[bytes]
    names: Sequence[str]
    kinds: Sequence[int]
    due_us: Sequence[int]
    deleted: Sequence[int] = ()
    raw: bytes = b""


@dataclass(slots=True)
class StageDelta:
    """What one stage wrote in one partition."""

    stage: str
    rows: list[RowColumns] = field(default_factory=list)
    timers: list[TimerColumns] = field(default_factory=list)
    watermark_us: int | None = None


@dataclass(frozen=True, slots=True)
class StreamState:
    """Position, watermark and end of a source stream at an epoch.

    position None: nothing of it was ever committed. is_forgotten: a local stream
    whose end is committed.
    """

    source: str
    stream: str
    position: bytes | None = None
    is_ended: bool = False
    watermark_us: int | None = None
    is_idle: bool = False
    is_forgotten: bool = False


@dataclass(frozen=True, slots=True)
class OutputBatch:
    """Outputs to a sink partition, in order; their numbers follow from the log."""

    count: int
    records: bytes
    input: int = 0


@dataclass(slots=True)
class SinkDelta:
    """What an epoch adds to the log of one sink partition, and what may go."""

    sink: str
    sink_partition: int
    first_sequence: int
    batches: list[OutputBatch] = field(default_factory=list)
    durable_sequence: int = 0
    skipped: tuple[int, ...] = ()


@dataclass(slots=True)
class PartitionDelta:
    """What one epoch changes in one partition. base_epoch: of the delta before."""

    partition: PartitionId
    epoch: Epoch
    generation: Generation
    base_epoch: Epoch
    stages: list[StageDelta] = field(default_factory=list)
    streams: list[StreamState] = field(default_factory=list)
    sinks: list[SinkDelta] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class StoredDelta:
    """A delta as it is kept: its bytes, and the digest of the chain up to it."""

    partition: PartitionId
    epoch: Epoch
    generation: Generation
    digest: bytes
    body: bytes


EncodeDelta = Callable[[PartitionDelta], bytes]


def chain(digest: bytes, body: bytes) -> bytes:
    """Return the digest of a partition after `body`; b"" is the empty chain.

    SHA-256, cut to DIGEST_BYTES: it guards against mistakes, not against forgers,
    and most machines compute it in hardware.
    """
    chained = sha256(digest)
    chained.update(body)
    return chained.digest()[:DIGEST_BYTES]
