"""Owns the data directory: one engine at a time, and no other application's files.

LOCK is held while an engine runs and names it. IDENTITY is written once, when the
application is created; a database that has gone, or belongs to another application,
does not fit it. So a directory that once held state is never taken for an empty one.
"""

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path

from bettong_engine.errors import (
    ConfigError,
    StateCorruptedError,
    StoreUnavailableError,
)

LOCK_FILE = "LOCK"
IDENTITY_FILE = "IDENTITY"
DATABASE_FILE = "bettong.db"

_LOCK_POLL_S = 0.05


class DataDirectory:
    """Invariant: files are read and written only between `lock` and `unlock`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.database = path / DATABASE_FILE
        self._lock: int | None = None

    def lock(self, wait_s: float) -> None:
        """Take the directory, made if it is missing; wait for an engine that ends.

        Raises:
            ConfigError: it cannot be used, or another engine holds it.
        """
        try:
            _make_private(self.path)
            lock = os.open(self.path / LOCK_FILE, os.O_RDWR | os.O_CREAT, 0o600)
        except OSError as error:
            raise ConfigError(
                f"{self.path} cannot be used as a data directory: {error.strerror};"
                " name another one, or let this user write there"
            ) from error
        deadline = time.monotonic() + wait_s
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() < deadline:
                    time.sleep(_LOCK_POLL_S)
                    continue
            holder = os.pread(lock, 200, 0).decode(errors="replace").strip()
            os.close(lock)
            raise ConfigError(
                f"{self.path} is in use by another engine"
                f" ({holder or 'it has not said which'}); stop that one, or name"
                " another data directory"
            )
        self._lock = lock
        started = datetime.now(UTC).isoformat(timespec="seconds")
        # Only a help: a full disk must not keep an engine from its data.
        with suppress(OSError):
            os.ftruncate(lock, 0)
            os.pwrite(lock, f"pid {os.getpid()}, started {started}\n".encode(), 0)

    def unlock(self) -> None:
        """Let another engine have the directory."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def is_new(self) -> bool:
        """Tell whether nothing was ever stored here.

        Raises:
            StateCorruptedError: something was, and its database has gone.
        """
        if self.database.exists():
            return False
        wal = self.database.with_name(f"{DATABASE_FILE}-wal")
        if (self.path / IDENTITY_FILE).exists() or wal.exists():
            raise StateCorruptedError(
                f"{self.database} is missing, but {self.path} has held an application;"
                " put the file back, restore the directory from a backup, or remove"
                " the whole directory to start from nothing"
            )
        return True

    def write_identity(self, cluster_id: bytes) -> None:
        """Say, durably, whose directory this is.

        Raises:
            StoreUnavailableError: it cannot be written.
        """
        new = self.path / f"{IDENTITY_FILE}.new"
        with translated(new):
            file = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
            try:
                os.write(file, _identity(cluster_id).encode())
                os.fsync(file)
            finally:
                os.close(file)
            new.rename(self.path / IDENTITY_FILE)
            sync_directory(self.path)

    def check_identity(self, cluster_id: bytes | None) -> None:
        """Compare IDENTITY with what the database says; None: nothing is created.

        A crash may come between the creation in the database and IDENTITY, which is
        then written now.

        Raises:
            StateCorruptedError: they do not belong together.
        """
        try:
            found = (self.path / IDENTITY_FILE).read_text(errors="replace")
        except FileNotFoundError:
            if cluster_id is not None:
                self.write_identity(cluster_id)
            return
        if cluster_id is None or found != _identity(cluster_id):
            raise StateCorruptedError(
                f"{self.database} is not the database of the application that"
                f" {self.path / IDENTITY_FILE} names: files of several copies are"
                " mixed; restore the whole directory from one backup"
            )


@contextmanager
def translated(path: Path) -> Iterator[None]:
    """Raise what the operating system refuses as `StoreUnavailableError`."""
    try:
        yield
    except OSError as error:
        raise StoreUnavailableError(
            f"{path} cannot be read or written: {error.strerror}; free space, or look"
            " at its owner and mode"
        ) from error


def sync_directory(path: Path) -> None:
    """Make names in a directory durable."""
    directory = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def _identity(cluster_id: bytes) -> str:
    return f"Bettong data directory of cluster {cluster_id.hex()}\n"


def _make_private(path: Path) -> None:
    """Make a directory that only this user enters; leave one that exists as it is."""
    if path.is_dir():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    path.mkdir(mode=0o700)
    sync_directory(path.parent)
