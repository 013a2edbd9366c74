"""The contract between connectors and the SDK: what a source or a sink must do.

A connector reads or writes; everything else is the runner's: credits, batching,
replay after a reset, reconnects of the engine, logs, metrics. The runner calls all
methods of one connector from one thread.
"""

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any, Protocol

from bettong.codec import Codec


class StreamKind(Enum):
    """Whether a stream can be opened again from a position."""

    # Any worker may open it, at any position that it gave.
    SHARED = "shared"
    # It lives where it appeared and cannot be opened twice: an accepted connection.
    LOCAL = "local"


class Guarantee(Enum):
    """What a sink's target can promise."""

    AT_LEAST_ONCE = "at_least_once"
    IDEMPOTENT = "idempotent"
    EXACTLY_ONCE = "exactly_once"


@dataclass(slots=True)
class Read:
    """What one `Reader.read` gave.

    records: values in stream order, at most about 1 MiB or 8,192 of them.
    position: where to resume strictly after the last of them, at most 4 KiB,
        different from the position before if there are records.
    end: the stream has ended here; `records` may still hold its last ones.
    """

    records: Sequence[Any]
    position: bytes
    end: bool = False


class Reader(Protocol):
    """One open stream."""

    @abstractmethod
    def read(self) -> Read | None:
        """Return the next records, or None if there are none now.

        Does not wait (a reader that must, waits at most 100 ms: it delays the
        other streams of its source). Raises `SourceError` if the stream is in
        trouble: the runner closes it and opens it again, with backoff.
        """

    @abstractmethod
    def committed(self, position: bytes) -> None:
        """Learn that all records up to `position` are processed for good.

        Only now may the upstream be told (an ack, a stored offset). Cumulative,
        may repeat.
        """

    @abstractmethod
    def close(self) -> None:
        """Release what the reader holds. Called once."""


class Source(Protocol):
    """A place that records come from, as streams that resume independently."""

    # LOCAL streams are found where they are accepted.
    kind: StreamKind
    # Of the records, for sources whose head is not fused; text and bytes: as is.
    codec: Codec

    @abstractmethod
    def start(self) -> None:
        """Acquire what all streams share (a listening socket, a client)."""

    @abstractmethod
    def streams(self) -> tuple[Sequence[str], bool]:
        """Return the ids of all streams that exist now, and whether that is final.

        Asked again about every 100 ms and after each `wait`. A LOCAL stream is
        named from its first appearance until the runner closes its reader.
        """

    @abstractmethod
    def open(self, stream: str, position: bytes | None) -> Reader:
        """Open a stream strictly after `position`; None: where it starts.

        Raises `SourceError`: not reachable now (retried), or with
        `is_retryable=False`: the position is garbage or no longer there.
        """

    @abstractmethod
    def wait(self, timeout_s: float) -> None:
        """Return when a reader may have records or a stream appeared, or in time.

        Called only when all readers had nothing. Sleeping is a valid wait.
        """

    @abstractmethod
    def stop(self) -> None:
        """Release what `start` acquired. Called once, after all readers closed."""


@dataclass(frozen=True, slots=True)
class Fence:
    """Who may write: a target refuses a lower generation of the same history.

    history: 16 random bytes, the life of the application since its last restore.
    generation: rises with every recovery or change of membership.
    """

    history: bytes
    generation: int


@dataclass(frozen=True, slots=True)
class SinkPosition:
    """The last output that is durable in the target. (b"", 0): none ever."""

    history: bytes
    sequence: int


class Unknown(Enum):
    """The answer of a target that cannot say what it holds."""

    UNKNOWN = "unknown"


UNKNOWN = Unknown.UNKNOWN


class Writer(Protocol):
    """One open sink partition. Outputs come in sequence, without gap or overlap."""

    @abstractmethod
    def write(self, first_sequence: int, records: Sequence[Any]) -> None:
        """Take outputs first_sequence, first_sequence + 1, … They are committed.

        May buffer. Raises `RecordRefusedError(sequence, reason)` for a record that
        the target will never take (all before it count as written), or `SinkError`.
        """

    @abstractmethod
    def flush(self) -> int:
        """Make all that was written durable; return the last durable sequence.

        A writer of Guarantee.EXACTLY_ONCE stores (history, sequence) atomically
        with the data.
        """

    @abstractmethod
    def skip(self, sequence: int) -> None:
        """Move the position past a refused output; the next is sequence + 1."""

    @abstractmethod
    def close(self) -> None:
        """Release what the writer holds, without flushing. Called once."""


class Sink(Protocol):
    """A place that committed outputs go to."""

    partitions: int
    guarantee: Guarantee
    # Of the records. With `takes_bytes` the writer gets the encoded bytes.
    codec: Codec
    takes_bytes: bool

    @abstractmethod
    def open(
        self, partition: int, fence: Fence
    ) -> tuple[Writer, SinkPosition | Unknown]:
        """Shut out older writers, then read the position, then return both.

        Raises `SinkError` if the target is not reachable now (retried).
        """
