"""Standard input as a source, standard output as a sink.

A plugin process has no terminal of its own: whoever starts it hands it the user's
streams as inherited file descriptors and names them in BETTONG_STDIN_FD and
BETTONG_STDOUT_FD. Without these the connectors use the process's own.

Neither can be replayed: what was read of stdin and not yet committed when the
process dies is gone, and outputs on stdout may repeat. Use files where that matters.
"""

import os
import secrets
import select
import sys
from collections.abc import Sequence
from typing import TextIO

from bettong.codec import Codec
from bettong.codecs import text
from bettong.connector import (
    UNKNOWN,
    Fence,
    Guarantee,
    Read,
    Reader,
    Sink,
    SinkPosition,
    Source,
    StreamKind,
    Unknown,
    Writer,
)
from bettong.errors import SinkError, SourceError
from bettong_connectors.framing import (
    RECORD_BYTES_MAX,
    FramingError,
    LineDecoder,
    join,
)
from bettong_connectors.text_or_bytes import TextOrBytesCodec

_READ_BYTES = 256 * 1024
_POSITION_BYTES = 8
_STALL_S = 30.0


class StdinSource(Source):
    """The lines of standard input: one stream, which ends where the input ends.

    Args:
        codec: what the bytes of a line become: `text`, `raw_bytes`, `json` …
        record_bytes_max: a longer line is an error.
    """

    kind = StreamKind.LOCAL

    def __init__(
        self, *, codec: Codec = text, record_bytes_max: int = RECORD_BYTES_MAX
    ) -> None:
        self.codec = codec
        self._record_bytes_max = record_bytes_max
        self._reader: _StdinReader | None = None
        self._stream = ""

    def start(self) -> None:
        """Find the file descriptor."""
        try:
            fd = _inherited_fd("BETTONG_STDIN_FD", sys.stdin)
            os.fstat(fd)
        except (OSError, ValueError) as error:
            raise SourceError(
                "this process has no standard input; give it one"
                " (`bettong run app.py < input.txt`), or read a file with FileSource",
                is_retryable=False,
            ) from error
        # Each start has its own: what an earlier process read cannot come again.
        self._stream = f"stdin#{secrets.token_hex(4)}"
        self._poll = select.poll()
        self._poll.register(fd, select.POLLIN)
        decoder = LineDecoder(self.codec, record_bytes_max=self._record_bytes_max)
        self._reader = _StdinReader(self, fd, decoder)

    def streams(self) -> tuple[Sequence[str], bool]:
        """Return the one stream, until it is closed."""
        return [self._stream] if self._reader else [], True

    def open(self, stream: str, position: bytes | None) -> Reader:
        """Return the reader of this process's input."""
        if self._reader is None or stream != self._stream:
            raise SourceError(
                f"the stream {stream} was the input of an earlier process",
                is_retryable=False,
            )
        if (position or bytes(_POSITION_BYTES)) != self._reader.position():
            raise SourceError(
                "standard input cannot go back: what was read since then is gone",
                is_retryable=False,
            )
        return self._reader

    def wait(self, timeout_s: float) -> None:
        """Return when there is input."""
        self._poll.poll(timeout_s * 1000)

    def stop(self) -> None:
        """Do nothing: the descriptor is the process's."""

    def has_input(self) -> bool:
        """Return whether a read would not block: there is input, or its end."""
        return bool(self._poll.poll(0))

    def forget(self) -> None:
        """Name the stream no longer."""
        self._reader = None


class _StdinReader(Reader):
    """The position is the count of bytes taken, 8 bytes big-endian."""

    def __init__(self, source: StdinSource, fd: int, decoder: LineDecoder) -> None:
        self._source = source
        self._fd = fd
        self._decoder = decoder
        self._has_ended = False

    def position(self) -> bytes:
        return self._decoder.offset.to_bytes(_POSITION_BYTES, "big")

    def read(self) -> Read | None:
        """Return the lines that are there."""
        try:
            return self._read()
        except FramingError as error:
            raise SourceError(
                f"standard input, byte {error.offset}: {error}",
                is_retryable=False,
                code=error.code,
            ) from error
        except OSError as error:
            raise SourceError(
                f"cannot read standard input: {error.strerror or error}"
            ) from error

    def committed(self, position: bytes) -> None:
        """Do nothing: who writes to stdin is not told."""

    def close(self) -> None:
        """Forget the stream."""
        self._source.forget()

    def _read(self) -> Read | None:
        records = self._decoder.take()
        while not records and not self._has_ended:
            if not self._source.has_input():
                return None
            data = os.read(self._fd, _READ_BYTES)
            self._decoder.feed(data)
            self._has_ended = not data
            records = self._decoder.take() if data else self._decoder.take_last()
        return Read(records, self.position(), end=self._has_ended)


class StdoutSink(Sink):
    """Outputs, str or bytes, to standard output, one a line, at least once.

    Durable means here: the terminal, file or pipe behind stdout has taken it.
    """

    partitions = 1
    guarantee = Guarantee.AT_LEAST_ONCE
    takes_bytes = True

    def __init__(self) -> None:
        self.codec = TextOrBytesCodec("lines")

    def open(
        self, partition: int, fence: Fence
    ) -> tuple[Writer, SinkPosition | Unknown]:
        """Find the file descriptor. What was printed before, nobody knows."""
        try:
            fd = _inherited_fd("BETTONG_STDOUT_FD", sys.stdout)
            os.fstat(fd)
        except (OSError, ValueError) as error:
            raise SinkError(
                "this process has no standard output", is_retryable=False
            ) from error
        return _StdoutWriter(fd), UNKNOWN


class _StdoutWriter(Writer):
    """Writes through at once, past Python's buffer, so that `flush` has no work."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._sequence = 0

    def write(self, first_sequence: int, records: Sequence[bytes]) -> None:
        """Print the outputs; waits while a pipe is full."""
        rest = memoryview(join("lines", records))
        try:
            while rest:
                try:
                    rest = rest[os.write(self._fd, rest) :]
                except BlockingIOError:
                    _wait_writable(self._fd)
        except OSError as error:
            raise SinkError(
                f"cannot write to standard output: {error.strerror or error}; whoever"
                " read it may have gone",
                is_retryable=False,
            ) from error
        self._sequence = first_sequence + len(records) - 1

    def flush(self) -> int:
        """Return the last sequence written."""
        return self._sequence

    def skip(self, sequence: int) -> None:
        """Move on."""
        self._sequence = sequence

    def close(self) -> None:
        """Do nothing: the descriptor is the process's."""


def _inherited_fd(variable: str, own: TextIO | None) -> int:
    """Return the descriptor that the environment names, else the process's own."""
    named = os.environ.get(variable)
    if named is not None:
        return int(named)
    if own is None:
        raise ValueError("closed")
    return own.fileno()


def _wait_writable(fd: int) -> None:
    """Wait for a reader of a pipe that somebody made non-blocking."""
    poll = select.poll()
    poll.register(fd, select.POLLOUT)
    if not poll.poll(_STALL_S * 1000):
        raise TimeoutError(f"its reader has not read for {_STALL_S:g} s")
