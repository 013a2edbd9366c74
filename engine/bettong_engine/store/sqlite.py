"""Opens one SQLite file and runs transactions on it, in terms of the engine's errors.

One connection, in write-ahead mode: a transaction is one append to the log and one
fsync. The file is made whole under another name and then renamed, so a file that
exists is complete, or damaged.

Page size, measured with 4, 8 and 16 KiB: a delta of 1 MiB takes 2.1, 1.8 and 1.4 ms
of CPU; an epoch of 64 deltas of 100 bytes writes 29, 45 and 84 KiB.
Log size, measured with 1, 4 and 16 MiB: the slowest of a hundred commits of 256 KiB
takes 2.6, 5 and 17 ms, on a disk that syncs in 0.1 ms; on slower ones a small log
costs two more syncs too often.
"""

import os
import sqlite3
import struct
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from bettong_engine.errors import (
    BettongError,
    StateCorruptedError,
    StoreUnavailableError,
    StoreUnknownError,
    TooLargeError,
)
from bettong_engine.store.directory import sync_directory, translated
from bettong_engine.store.interface import FORMAT_VERSION

APPLICATION_ID = 0x42744E67
PAGE_BYTES = 8192
# The log is copied into the file when it has grown to this. A larger one makes that
# rarer, and the commit that it happens in slower.
LOG_BYTES_MAX = 4 << 20
CACHE_BYTES = 16 << 20

# SQLite's file header: page size at 16, user_version at 60, application_id at 68.
_HEADER_BYTES = 100
_MAGIC = b"SQLite format 3\0"

# Primary result codes that the world causes, and that pass.
_UNAVAILABLE = {
    sqlite3.SQLITE_FULL: "the disk is full; free some space",
    sqlite3.SQLITE_IOERR: "the disk fails; see the kernel's log",
    sqlite3.SQLITE_NOMEM: "there is no memory left",
    sqlite3.SQLITE_READONLY: "the file cannot be written; mount it writable",
    sqlite3.SQLITE_CANTOPEN: "the file cannot be opened; look at its owner and mode",
    sqlite3.SQLITE_PERM: "the file may not be accessed; look at its owner and mode",
    sqlite3.SQLITE_BUSY: "another program has locked the file; close that one",
    sqlite3.SQLITE_LOCKED: "another program has locked the file; close that one",
}


class Database:
    """Invariant: between two calls no transaction is open."""

    def __init__(self, path: Path) -> None:
        self.path = path
        with self._translated():
            self.connection = _connect(path)
            try:
                self._configure()
            except BaseException:
                self.close()
                raise

    @contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """Run a block in one transaction, durable when the block has ended.

        Raises:
            StoreUnavailableError: the disk failed before the commit.
            StoreUnknownError: the disk failed within it.
            StateCorruptedError: SQLite found the file damaged.
        """
        with self._translated():
            self.connection.execute("BEGIN IMMEDIATE")
            try:
                with self.reading():
                    yield self.connection
            except BaseException:
                self._roll_back()
                raise
            try:
                self.connection.execute("COMMIT")
            except sqlite3.Error as error:
                self._roll_back()
                if _primary_code(error) in (sqlite3.SQLITE_IOERR, None):
                    raise StoreUnknownError(
                        f"{self.path}: the disk failed while it was made to keep a"
                        f" transaction: {error}; see the kernel's log"
                    ) from error
                raise

    @contextmanager
    def reading(self) -> Iterator[sqlite3.Connection]:
        """Run a block that reads. Rows that make no sense mean damage.

        Raises:
            StateCorruptedError: SQLite, or what unpacks a row, found damage.
        """
        with self._translated():
            try:
                yield self.connection
            except (struct.error, TypeError, ValueError, OverflowError) as error:
                raise self.corrupted(str(error)) from error

    def check_structure(self) -> None:
        """Read every page and compare what refers to it. Cost: about a read of all.

        Raises:
            StateCorruptedError: pages do not fit each other.
        """
        with self._translated():
            found = self.connection.execute("PRAGMA quick_check(1)").fetchone()
        if found != ("ok",):
            # After a line that names the database.
            raise self.corrupted(str(found[0]).splitlines()[-1])

    def empty_log(self) -> None:
        """Bring all of the log into the file, durably."""
        with self._translated():
            row = self.connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        if row[0] != 0:
            raise StoreUnavailableError(
                f"{self.path}: another program reads the file; close that one"
            )

    def shorten_log(self) -> None:
        """Copy the log into the file; its room is used again. Failing is no harm."""
        with suppress(sqlite3.OperationalError):
            self.connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()

    def close(self) -> None:
        """Close the file; what is committed stays, whatever happens here."""
        with suppress(sqlite3.Error):
            self.connection.close()

    def corrupted(self, what: str) -> StateCorruptedError:
        """Return the error to raise when the file does not hold what it should."""
        return StateCorruptedError(
            f"{self.path} is damaged: {what}; restore the whole data directory from a"
            " backup, nothing was changed"
        )

    def _configure(self) -> None:
        # Of a new file; then it is written in its header.
        self.connection.execute(f"PRAGMA page_size = {PAGE_BYTES}")
        self.connection.execute("PRAGMA journal_mode = WAL")
        self.connection.execute("PRAGMA synchronous = FULL")
        self.connection.execute(f"PRAGMA cache_size = -{CACHE_BYTES >> 10}")
        pages = LOG_BYTES_MAX // PAGE_BYTES
        self.connection.execute(f"PRAGMA wal_autocheckpoint = {pages}")

    def _roll_back(self) -> None:
        # Some errors have rolled back already.
        if self.connection.in_transaction:
            self.connection.execute("ROLLBACK")

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            raise self._translate(error) from error
        except UnicodeDecodeError as error:
            # SQLite's words about a damaged schema may quote it.
            raise self.corrupted("text in it is not text") from error

    def _translate(self, error: sqlite3.Error) -> BettongError:
        code = _primary_code(error)
        if code in _UNAVAILABLE:
            return StoreUnavailableError(f"{self.path}: {_UNAVAILABLE[code]} ({error})")
        if code == sqlite3.SQLITE_TOOBIG or isinstance(error, sqlite3.DataError):
            return TooLargeError(f"{self.path}: a value is too large to keep ({error})")
        # Also "no such table": the schema is a part of the file.
        return self.corrupted(str(error))


def create_file(
    path: Path, schema: Sequence[str], fill: Callable[[sqlite3.Connection], None]
) -> None:
    """Make a database that is complete as soon as it has its name."""
    with translated(path):
        new = path.with_name(f"{path.name}.new")
        for suffix in ("", "-wal", "-journal"):
            new.with_name(new.name + suffix).unlink(missing_ok=True)
        # SQLite gives its other files the mode of this one.
        os.close(os.open(new, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600))
        database = Database(new)
        try:
            with database.transaction() as connection:
                connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
                connection.execute(f"PRAGMA user_version = {FORMAT_VERSION}")
                for statement in schema:
                    connection.execute(statement)
                fill(connection)
            database.empty_log()
        finally:
            database.close()
        new.rename(path)
        sync_directory(path.parent)


def check_header(path: Path) -> None:
    """Look at the first bytes of a file before SQLite, which may change it, opens it.

    Raises:
        StateCorruptedError: it is not one of ours, or of a newer version.
    """
    with translated(path), path.open("rb") as file:
        header = file.read(_HEADER_BYTES)
    if len(header) < _HEADER_BYTES or not header.startswith(_MAGIC):
        raise StateCorruptedError(
            f"{path} is not a database ({len(header)} bytes of header): it is damaged,"
            " or another program's; restore the data directory from a backup, or name"
            " another one"
        )
    version, application = struct.unpack(">I4xI", header[60:72])
    if application != APPLICATION_ID:
        raise StateCorruptedError(
            f"{path} is a database of another program (application id"
            f" {application:#010x}); name another data directory"
        )
    if version != FORMAT_VERSION:
        raise StateCorruptedError(
            f"{path} has format {version}, this engine reads format {FORMAT_VERSION};"
            " start the version of Bettong that wrote it; if this one did, the file is"
            " damaged: restore the data directory from a backup"
        )


def _connect(path: Path) -> sqlite3.Connection:
    # The engine opens the store in one thread and uses it in another, never in two.
    connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    # First of all, so that the index of the log is in memory and not in a file.
    connection.execute("PRAGMA locking_mode = EXCLUSIVE")
    # Some builds overwrite what is deleted, which doubles the writes.
    connection.execute("PRAGMA secure_delete = OFF")
    connection.execute("PRAGMA cell_size_check = ON")
    connection.execute("PRAGMA trusted_schema = OFF")
    return connection


def _primary_code(error: sqlite3.Error) -> int | None:
    """Return SQLite's result code without its details; None: Python's own error."""
    code = getattr(error, "sqlite_errorcode", None)
    return code & 0xFF if isinstance(code, int) else None
