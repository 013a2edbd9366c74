"""The data directory: private to its user, and locked by one engine at a time."""

import fcntl
import os
import time
from pathlib import Path

from bettong_engine.errors import ConfigError

LOCK_FILE = "LOCK"
POLL_S = 0.05


class DataDirectory:
    """Holds the lock from `open` to `close`, or until the process ends."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock: int | None = None

    def open(self, wait_s: float) -> None:
        """Make the directory if need be, and lock it.

        Raises:
            ConfigError: it cannot be made, or another engine holds it; naming it.
        """
        try:
            self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
            lock = os.open(self.path / LOCK_FILE, os.O_RDWR | os.O_CREAT, 0o600)
        except OSError as error:
            raise ConfigError(
                f"the data directory {self.path} cannot be used: {error.strerror}"
            ) from error
        until = time.monotonic() + wait_s
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() >= until:
                    holder = os.pread(lock, 100, 0).decode(errors="replace").strip()
                    os.close(lock)
                    raise ConfigError(
                        f"the data directory {self.path} is in use by another engine,"
                        f" {holder or 'unknown'}; stop that one, or name another"
                        " directory with --data-dir"
                    ) from None
                time.sleep(POLL_S)
        os.ftruncate(lock, 0)
        os.pwrite(lock, f"pid {os.getpid()}\n".encode(), 0)
        self._lock = lock

    def close(self) -> None:
        """Let another engine in."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None
