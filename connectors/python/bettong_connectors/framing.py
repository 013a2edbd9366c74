"""Cuts bytes into records and joins records to bytes: lines, or 4-byte lengths.

    lines     each record ends with a newline; what follows the last newline when
              the input ends is a record too
    length4   each record follows its length, 4 bytes big-endian; an input that ends
              inside a record is faulty

Decoders are incremental and do no I/O, so that every source that reads bytes uses
the same ones. They hold at most one unfinished record and what was fed last.
"""

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, Literal, Protocol

from bettong.codec import Codec
from bettong.errors import BettongError, CodecError, ErrorCode, GraphError

Framing = Literal["lines", "length4"]

# Of one `take`; the contract of `Read` asks for about as much.
RECORDS_MAX = 8192
RECORD_BYTES_MAX = 1 << 20
_LENGTH_BYTES = 4


class FramingError(BettongError):
    """The next record cannot be taken: too large, cut off, or not of its codec.

    offset: of that record's first byte, counted from where the decoder began.
    """

    def __init__(self, message: str, *, offset: int, code: ErrorCode) -> None:
        super().__init__(message)
        self.offset = offset
        self.code = code


class Decoder(Protocol):
    """Bytes in, values out. `offset` counts the bytes of what was taken so far."""

    offset: int

    @abstractmethod
    def feed(self, data: bytes) -> None:
        """Append bytes. Call it only after `take` returned nothing."""

    @abstractmethod
    def take(self) -> list[Any]:
        """Return the next whole records, at most RECORDS_MAX; none: feed more.

        Raises `FramingError` if the very next record is faulty: those before a
        faulty one are returned first.
        """

    @abstractmethod
    def take_last(self) -> list[Any]:
        """Return what is left at the end of the input, after `take` gave nothing.

        Raises `FramingError` if that is faulty.
        """

    @abstractmethod
    def buffered_bytes(self) -> int:
        """Return how many bytes were fed and not taken."""


class LineDecoder:
    r"""Lines, cut at every `newline` and nowhere else.

    With `\n`, a `\r` before it stays part of the record; for input that ends all its
    lines with `\r\n`, say so.
    """

    def __init__(
        self,
        codec: Codec,
        *,
        newline: bytes = b"\n",
        record_bytes_max: int = RECORD_BYTES_MAX,
    ) -> None:
        self.offset = 0
        self._codec = codec
        self._newline = newline
        self._record_bytes_max = record_bytes_max
        self._buffer = bytearray()
        # No newline begins before this place in the buffer.
        self._searched = 0

    def feed(self, data: bytes) -> None:
        """Append bytes."""
        self._buffer += data

    def take(self) -> list[Any]:
        """Return the values of the next whole lines."""
        end = self._buffer.rfind(self._newline, self._searched)
        if end >= 0:
            return self._take_block(bytes(memoryview(self._buffer)[:end]))
        if len(self._buffer) > self._record_bytes_max:
            raise _too_large(self._record_bytes_max, self.offset)
        self._searched = max(0, len(self._buffer) - len(self._newline) + 1)
        return []

    def take_last(self) -> list[Any]:
        """Return the value of a last line that no newline ends, if there is one."""
        return self._take_block(bytes(self._buffer)) if self._buffer else []

    def buffered_bytes(self) -> int:
        """Return how many bytes were fed and not taken."""
        return len(self._buffer)

    def _take_block(self, block: bytes) -> list[Any]:
        """Take `block`, whole lines less the last newline, or as much as is good."""
        newline = self._newline
        if block.count(newline) >= RECORDS_MAX:
            rest = block.split(newline, RECORDS_MAX)[-1]
            block = block[: -len(rest) - len(newline)]
        if len(block) > self._record_bytes_max:
            block = self._before_oversize(block)
        try:
            values = self._decode(block)
        except (UnicodeDecodeError, CodecError) as error:
            bad_at = self._faulty_line_at(block, error)
            if bad_at == 0:
                raise _bad_value(error, self.offset) from error
            block = block[: bad_at - len(newline)]
            values = self._decode(block)
        taken = min(len(block) + len(newline), len(self._buffer))
        del self._buffer[:taken]
        self.offset += taken
        self._searched = 0
        return values

    def _decode(self, block: bytes) -> list[Any]:
        if self._codec.name == "text":
            # One decode for the block: no character of UTF-8 holds a newline byte.
            return block.decode().split(self._newline.decode())
        return self._codec.decode_many(block.split(self._newline))

    def _before_oversize(self, block: bytes) -> bytes:
        """Return the lines of `block` before the first that is too large."""
        start = 0
        for line in block.split(self._newline):
            if len(line) > self._record_bytes_max:
                if start == 0:
                    raise _too_large(self._record_bytes_max, self.offset)
                return block[: start - len(self._newline)]
            start += len(line) + len(self._newline)
        return block

    def _faulty_line_at(
        self, block: bytes, error: UnicodeDecodeError | CodecError
    ) -> int:
        """Return where in `block` the line begins that cannot be decoded."""
        newline = self._newline
        if isinstance(error, UnicodeDecodeError):
            end = block.rfind(newline, 0, error.start)
            return end + len(newline) if end >= 0 else 0
        lines = block.split(newline)[: error.index or 0]
        return sum(map(len, lines)) + len(lines) * len(newline)


class Length4Decoder:
    """Records behind their length, 4 bytes big-endian."""

    def __init__(
        self, codec: Codec, *, record_bytes_max: int = RECORD_BYTES_MAX
    ) -> None:
        self.offset = 0
        self._codec = codec
        self._record_bytes_max = record_bytes_max
        self._buffer = bytearray()

    def feed(self, data: bytes) -> None:
        """Append bytes."""
        self._buffer += data

    def take(self) -> list[Any]:
        """Return the values of the next whole records."""
        frames = self._whole_frames()
        if not frames:
            return []
        try:
            values = self._codec.decode_many(frames)
        except CodecError as error:
            if not error.index:
                raise _bad_value(error, self.offset) from error
            frames = frames[: error.index]
            values = self._codec.decode_many(frames)
        taken = sum(map(len, frames)) + _LENGTH_BYTES * len(frames)
        del self._buffer[:taken]
        self.offset += taken
        return values

    def take_last(self) -> list[Any]:
        """Return nothing; an unfinished record is an error."""
        if self._buffer:
            raise FramingError(
                f"the input ends inside a record: {len(self._buffer)} bytes are left",
                offset=self.offset,
                code=ErrorCode.CODEC,
            )
        return []

    def buffered_bytes(self) -> int:
        """Return how many bytes were fed and not taken."""
        return len(self._buffer)

    def _whole_frames(self) -> list[bytes]:
        buffer, start, frames = self._buffer, 0, list[bytes]()
        while len(frames) < RECORDS_MAX and start + _LENGTH_BYTES <= len(buffer):
            begin = start + _LENGTH_BYTES
            length = int.from_bytes(buffer[start:begin], "big")
            if length > self._record_bytes_max:
                if not frames:
                    raise _too_large(self._record_bytes_max, self.offset, length)
                break
            if begin + length > len(buffer):
                break
            start = begin + length
            frames.append(bytes(buffer[begin:start]))
        return frames


def new_decoder(framing: Framing, codec: Codec, record_bytes_max: int) -> Decoder:
    """Return a decoder at the beginning of an input."""
    if framing == "lines":
        return LineDecoder(codec, record_bytes_max=record_bytes_max)
    return Length4Decoder(codec, record_bytes_max=record_bytes_max)


def join(framing: Framing, records: Sequence[bytes]) -> bytes:
    """Return the bytes of whole records: what a decoder of `framing` takes apart."""
    if framing == "lines":
        return b"\n".join([*records, b""])
    return b"".join(
        [
            part
            for record in records
            for part in (len(record).to_bytes(_LENGTH_BYTES, "big"), record)
        ]
    )


def check_framing(framing: str) -> None:
    """Raise `GraphError` unless `framing` is one of those above."""
    if framing not in ("lines", "length4"):
        raise GraphError(f"framing is 'lines' or 'length4', not {framing!r}")


def _too_large(limit: int, offset: int, length: int | None = None) -> FramingError:
    size = "a record" if length is None else f"a record of {length} bytes"
    return FramingError(
        f"{size} is over the limit of {limit} bytes; raise record_bytes_max, or check"
        " that the input has the framing that was declared",
        offset=offset,
        code=ErrorCode.TOO_LARGE,
    )


def _bad_value(error: UnicodeDecodeError | CodecError, offset: int) -> FramingError:
    if isinstance(error, UnicodeDecodeError):
        reason = (
            f"a record is not UTF-8 ({error.reason}); declare codec=raw_bytes and"
            " decode it in a map"
        )
    else:
        reason = f"a record cannot be read: {error.message}"
    return FramingError(reason, offset=offset, code=ErrorCode.CODEC)
