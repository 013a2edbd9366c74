"""Reads the lines of files. Each file is a stream that resumes at its byte offset.

A position also holds a digest of the bytes before it. So a file that was truncated
or rewritten below what was read is an error, never a silent jump: exactly-once needs
input that stays as it was. Appending is fine.
"""

import glob
import hashlib
import os
import stat
import struct
import time
from collections.abc import Iterable, Sequence

from bettong.codec import Codec
from bettong.codecs import text
from bettong.connector import Read, Reader, Source, StreamKind
from bettong.errors import ErrorCode, GraphError, SourceError
from bettong_connectors.framing import RECORD_BYTES_MAX, FramingError, LineDecoder

Path = str | os.PathLike[str]

_READ_BYTES = 256 * 1024
_TAIL_BYTES = 64
_DIGEST_BYTES = 8
# Version, byte offset, digest of the (at most 64) bytes before it; big-endian.
_POSITION = struct.Struct(f">BQ{_DIGEST_BYTES}s")
_POSITION_VERSION = 1
_STREAM_BYTES_MAX = 1024
_POLL_S = 0.02


class FileSource(Source):
    r"""The lines of one file, several, or all that match a glob.

    Args:
        path: a file, a glob ("logs/*.log", "in/**/*.csv"), or a list of these. The
            path as written here names the stream: keep it, and the directory that
            it is relative to, when the application is started again.
        follow: go on at the end of each file when it grows, and take up new files
            that match. A file is then to be appended to and never replaced: rotate
            logs to a name that the glob does not match, after they were read.
        codec: what the bytes of a line become: `text`, `raw_bytes`, `json` …
        newline: what ends a line. With "\n" a "\r" before it stays in the record.
        record_bytes_max: a longer line is an error.

    Without `follow`, a last line that no newline ends is a record; with it, that
    line waits for its newline.
    """

    kind = StreamKind.SHARED

    def __init__(
        self,
        path: Path | Iterable[Path],
        *,
        follow: bool = False,
        codec: Codec = text,
        newline: str = "\n",
        record_bytes_max: int = RECORD_BYTES_MAX,
    ) -> None:
        paths = [path] if isinstance(path, str | os.PathLike) else list(path)
        if not paths:
            raise GraphError("a file source needs at least one path")
        if not newline:
            raise GraphError("newline is what ends a line, such as '\\n'")
        self._patterns = [os.fspath(path) for path in paths]
        self._follows = follow
        self.codec = codec
        self._newline = newline.encode()
        self._record_bytes_max = record_bytes_max

    def start(self) -> None:
        """Check that there is something to read, so that a typo shows at once."""
        missing = [pattern for pattern in self._patterns if not _files_of(pattern)]
        if missing and not self._follows:
            raise SourceError(
                f"no such file: {', '.join(missing)} (from {os.getcwd()}); check the"
                " path, or give follow=True to wait for it",
                is_retryable=False,
                code=ErrorCode.SOURCE_UNAVAILABLE,
            )

    def streams(self) -> tuple[Sequence[str], bool]:
        """Return the files that exist; without `follow` there come no more."""
        files = [path for pattern in self._patterns for path in _files_of(pattern)]
        return list(dict.fromkeys(files)), not self._follows

    def open(self, stream: str, position: bytes | None) -> Reader:
        """Open a file; check that it is the one that was read up to `position`."""
        offset, digest = _unpack(stream, position)
        try:
            file = os.open(stream, os.O_RDONLY | os.O_NONBLOCK)
        except OSError as error:
            raise SourceError(
                f"cannot open {stream}: {error.strerror or error}"
            ) from error
        try:
            _check_regular(file, stream)
            _check_unchanged(file, stream, offset, digest)
        except BaseException:
            os.close(file)
            raise
        decoder = LineDecoder(
            self.codec,
            newline=self._newline,
            record_bytes_max=self._record_bytes_max,
        )
        return _FileReader(
            file, stream, offset=offset, decoder=decoder, follows=self._follows
        )

    def wait(self, timeout_s: float) -> None:
        """Sleep: files are polled, 50 times a second."""
        time.sleep(min(timeout_s, _POLL_S))

    def stop(self) -> None:
        """Do nothing: files are held by their readers."""


class _FileReader(Reader):
    """One open file. `_begin` is where in the file the decoder began."""

    def __init__(
        self,
        file: int,
        path: str,
        *,
        offset: int,
        decoder: LineDecoder,
        follows: bool,
    ) -> None:
        self._file = file
        self._path = path
        self._begin = offset
        self._decoder = decoder
        self._follows = follows

    def read(self) -> Read | None:
        """Return the lines of about the next 256 KiB."""
        try:
            records = self._decoder.take()
            while not records:
                block = os.pread(self._file, _READ_BYTES, self._read_until())
                if not block:
                    return self._read_at_end()
                self._decoder.feed(block)
                records = self._decoder.take()
            return Read(records, self._position())
        except FramingError as error:
            raise SourceError(
                f"{self._path}, byte {self._begin + error.offset}: {error}",
                is_retryable=False,
                code=error.code,
            ) from error
        except OSError as error:
            raise SourceError(
                f"cannot read {self._path}: {error.strerror or error}"
            ) from error

    def committed(self, position: bytes) -> None:
        """Do nothing: a file is not told."""

    def close(self) -> None:
        """Close the file."""
        os.close(self._file)

    def _read_at_end(self) -> Read | None:
        size = os.fstat(self._file).st_size
        if size < self._read_until():
            raise _truncated(self._path, size, self._read_until())
        if self._follows:
            self._check_not_replaced()
            return None
        return Read(self._decoder.take_last(), self._position(), end=True)

    def _check_not_replaced(self) -> None:
        here = os.stat(self._path)
        if not os.path.samestat(here, os.fstat(self._file)):
            raise SourceError(
                f"{self._path} was replaced by another file while it was followed;"
                " put the old one back, or give the new one a name of its own",
                is_retryable=False,
                code=ErrorCode.SOURCE_TRUNCATED,
            )

    def _read_until(self) -> int:
        return self._begin + self._decoder.offset + self._decoder.buffered_bytes()

    def _position(self) -> bytes:
        offset = self._begin + self._decoder.offset
        return _POSITION.pack(_POSITION_VERSION, offset, _digest(self._file, offset))


def _files_of(pattern: str) -> list[str]:
    """Return the file of that name, or the files that match it as a glob, sorted."""
    if os.path.isdir(pattern):
        raise SourceError(
            f"{pattern} is a directory; give its files as a glob, such as"
            f" '{os.path.join(pattern, '*')}'",
            is_retryable=False,
            code=ErrorCode.SOURCE_UNAVAILABLE,
        )
    if os.path.exists(pattern):
        return [_checked(pattern)]
    matches = sorted(glob.glob(pattern, recursive=True))
    return [_checked(path) for path in matches if os.path.isfile(path)]


def _checked(path: str) -> str:
    """Return `path`, which can name a stream."""
    try:
        is_too_long = len(path.encode()) > _STREAM_BYTES_MAX
    except UnicodeEncodeError as error:
        raise SourceError(
            f"the name of the file {path!r} is not UTF-8; rename it",
            is_retryable=False,
            code=ErrorCode.SOURCE_UNAVAILABLE,
        ) from error
    if is_too_long:
        raise SourceError(
            f"the path {path} is over {_STREAM_BYTES_MAX} bytes; shorten it",
            is_retryable=False,
            code=ErrorCode.TOO_LARGE,
        )
    return path


def _unpack(path: str, position: bytes | None) -> tuple[int, bytes]:
    if position is None:
        return 0, hashlib.blake2b(digest_size=_DIGEST_BYTES).digest()
    if len(position) == _POSITION.size and position[0] == _POSITION_VERSION:
        _, offset, digest = _POSITION.unpack(position)
        return offset, digest
    raise SourceError(
        f"{path}: {len(position)} bytes are no position of a file source; does the"
        " stored application belong to this program?",
        is_retryable=False,
    )


def _check_regular(file: int, path: str) -> None:
    if not stat.S_ISREG(os.fstat(file).st_mode):
        raise SourceError(
            f"{path} is a pipe or a device, which cannot be read again from a"
            " position; use StdinSource, or copy it into a file",
            is_retryable=False,
            code=ErrorCode.SOURCE_UNAVAILABLE,
        )


def _check_unchanged(file: int, path: str, offset: int, digest: bytes) -> None:
    size = os.fstat(file).st_size
    if size < offset:
        raise _truncated(path, size, offset)
    if _digest(file, offset) != digest:
        raise SourceError(
            f"{path} was rewritten: before byte {offset}, up to which it was"
            " processed, it holds other text than it did; put the old content back",
            is_retryable=False,
            code=ErrorCode.SOURCE_TRUNCATED,
        )


def _truncated(path: str, size: int, offset: int) -> SourceError:
    return SourceError(
        f"{path} was truncated: it has {size} bytes, but was read up to byte"
        f" {offset}; put the old content back",
        is_retryable=False,
        code=ErrorCode.SOURCE_TRUNCATED,
    )


def _digest(file: int, offset: int) -> bytes:
    """Return a digest of the last bytes before `offset`."""
    length = min(offset, _TAIL_BYTES)
    tail = os.pread(file, length, offset - length)
    return hashlib.blake2b(tail, digest_size=_DIGEST_BYTES).digest()
