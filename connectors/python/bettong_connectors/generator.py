"""Makes records by a function of their index: for tests, demos and load.

Since the same index gives the same record, it resumes exactly.
"""

import itertools
import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from bettong.codec import Codec
from bettong.codecs import msgpack
from bettong.connector import Read, Reader, Source, StreamKind
from bettong.errors import ErrorCode, GraphError, SourceError

_READ_RECORDS_MAX = 1024
_POSITION_BYTES = 8
# A reader that was kept waiting makes up for this much of the lost time, no more.
_BURST_S = 0.05
# At high rates a read gives what fell due in this time.
_TICK_S = 0.001
_IDLE_S = 0.1


class GeneratorSource(Source):
    """The values `function(0)`, `function(1)` and so on.

    Args:
        function: from index to value; the same value for the same index, always, or
            a restart gives other records than before.
        rate_per_second: records a second, all streams together; None: as fast as
            the pipeline takes them.
        count: how many, all streams together; None: without end.
        streams: over how many streams they are dealt, in turn. Not to be changed
            while an application is to resume.
        codec: for values that no step takes before they leave this process.
        clock: seconds, monotonic.
        sleep: waits so many seconds.
    """

    kind = StreamKind.SHARED

    def __init__(
        self,
        function: Callable[[int], Any],
        *,
        rate_per_second: float | None = None,
        count: int | None = None,
        streams: int = 1,
        codec: Codec = msgpack,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        if rate_per_second is not None and not 0 < rate_per_second < math.inf:
            raise GraphError(f"rate_per_second is above 0, not {rate_per_second}")
        if streams < 1:
            raise GraphError(f"streams is at least 1, not {streams}")
        if count is not None and count < 0:
            raise GraphError(f"count is at least 0, not {count}")
        self.codec = codec
        # From an index to the values of its stream from there on.
        self._values_from: Callable[[int], Iterator[Any]] = lambda index: map(
            function, itertools.count(index, streams)
        )
        self._rate = rate_per_second
        self._count = count
        self._stream_count = streams
        self._clock = clock
        self._sleep = sleep
        self._paces: dict[str, _Pace] = {}

    @classmethod
    def from_iterable(
        cls,
        factory: Callable[[], Iterable[Any]],
        *,
        rate_per_second: float | None = None,
        codec: Codec = msgpack,
    ) -> "GeneratorSource":
        """Return a source of what `factory()` iterates over, in one stream.

        To resume it iterates anew and skips; so each call must give the same.
        """
        source = cls(lambda index: index, rate_per_second=rate_per_second, codec=codec)
        source._values_from = lambda index: itertools.islice(factory(), index, None)
        return source

    def start(self) -> None:
        """Do nothing: there is nothing to acquire."""

    def streams(self) -> tuple[Sequence[str], bool]:
        """Return the names of all streams."""
        return [self._stream_id(number) for number in range(self._stream_count)], True

    def open(self, stream: str, position: bytes | None) -> Reader:
        """Begin at the index that the position names."""
        number = self._number_of(stream)
        index = number
        if position is not None:
            index = int.from_bytes(position, "big")
            is_ours = index % self._stream_count == number
            if len(position) != _POSITION_BYTES or not is_ours:
                raise SourceError(
                    f"{len(position)} bytes are no position of stream {stream} of a"
                    " generator",
                    is_retryable=False,
                )
        values = self._values_from(index)
        if self._count is not None:
            left = len(range(index, self._count, self._stream_count))
            values = itertools.islice(values, left)
        rate = self._rate / self._stream_count if self._rate else math.inf
        pace = self._paces[stream] = _Pace(rate, self._clock())
        return _GeneratorReader(self, stream, values, index=index, pace=pace)

    def wait(self, timeout_s: float) -> None:
        """Sleep until the next record is due."""
        now = self._clock()
        due = [pace.due_in(now) for pace in self._paces.values()]
        self._sleep(min(timeout_s, max(_TICK_S, min(due, default=_IDLE_S))))

    def stop(self) -> None:
        """Do nothing: there is nothing to release."""

    def now(self) -> float:
        """Return the time of the clock, seconds."""
        return self._clock()

    def index_step(self) -> int:
        """Return the difference of the indices of a stream's neighbouring records."""
        return self._stream_count

    def forget(self, stream: str) -> None:
        """Wait for that stream no longer."""
        self._paces.pop(stream, None)

    def _stream_id(self, number: int) -> str:
        return f"{number}-of-{self._stream_count}"

    def _number_of(self, stream: str) -> int:
        for number in range(self._stream_count):
            if stream == self._stream_id(number):
                return number
        raise SourceError(
            f"there is no stream {stream}; the number of streams was"
            f" changed to {self._stream_count} since it began",
            is_retryable=False,
        )


class _GeneratorReader(Reader):
    """One stream. The position is the index of the next record, 8 bytes big-endian."""

    def __init__(
        self,
        source: GeneratorSource,
        stream: str,
        values: Iterator[Any],
        *,
        index: int,
        pace: "_Pace",
    ) -> None:
        self._source = source
        self._stream = stream
        self._values = values
        self._index = index
        self._pace = pace
        self._failure: Exception | None = None

    def read(self) -> Read | None:
        """Return the values that are due."""
        if self._failure is not None:
            raise SourceError(
                f"the function of the generator failed at index {self._index}:"
                f" {self._failure!r}",
                is_retryable=False,
                code=ErrorCode.USER_CODE,
            ) from self._failure
        due = self._pace.take(self._source.now(), _READ_RECORDS_MAX)
        if due == 0:
            return None
        records: list[Any] = []
        try:
            # Keeps what came before an exception.
            records.extend(itertools.islice(self._values, due))
        except Exception as error:  # the user's function may raise anything
            self._failure = error
            if not records:
                return self.read()
        self._index += len(records) * self._source.index_step()
        is_end = self._failure is None and len(records) < due
        return Read(records, self._index.to_bytes(_POSITION_BYTES, "big"), is_end)

    def committed(self, position: bytes) -> None:
        """Do nothing: there is nobody to tell."""

    def close(self) -> None:
        """Stop."""
        self._source.forget(self._stream)


class _Pace:
    """When records are due: at a rate, catching up on short pauses only."""

    def __init__(self, rate: float, now: float) -> None:
        self._rate = rate
        self._next_at = now

    def take(self, now: float, most: int) -> int:
        """Return how many records are due, at most `most`, and count them as made."""
        if self._rate == math.inf:
            return most
        if now < self._next_at:
            return 0
        self._next_at = max(self._next_at, now - _BURST_S)
        due = min(most, math.floor((now - self._next_at) * self._rate) + 1)
        self._next_at += due / self._rate
        return due

    def due_in(self, now: float) -> float:
        """Return the seconds until a record is due."""
        return 0.0 if self._rate == math.inf else max(0.0, self._next_at - now)
