"""The store of a lone worker: one SQLite file, one fsynced transaction an epoch.

An epoch's deltas wait in memory until the transaction that commits it; then both
become durable together. So the commit record and what it speaks of cannot part: a
file that was torn in the middle of a write has neither.

Write-ahead log with synchronous=FULL: each transaction is one fsync of the log.
"""

import sqlite3
import struct
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from hashlib import blake2b
from pathlib import Path

from bettong_engine.core.delta import StoredDelta
from bettong_engine.core.ids import Epoch, Generation, PartitionId
from bettong_engine.errors import (
    StateCorruptedError,
    StateLostError,
    StoreUnavailableError,
)
from bettong_engine.store.directory import DataDirectory
from bettong_engine.store.interface import (
    Applied,
    Conflict,
    LoadedPartition,
    Meta,
    StoredSnapshot,
    Versioned,
)

FILE = "bettong.db"
# "Btng", told by `file` and by SQLite itself.
APPLICATION_ID = 0x42746E67
FORMAT_VERSION = 1
CHECK_BYTES = 16
# Pages of log before it is folded into the file: 16 MiB.
AUTOCHECKPOINT_PAGES = 4096

_SCHEMA = """
CREATE TABLE meta (name TEXT PRIMARY KEY, value BLOB NOT NULL) WITHOUT ROWID;
CREATE TABLE record (
    name TEXT PRIMARY KEY, value BLOB NOT NULL, revision INTEGER NOT NULL
) WITHOUT ROWID;
CREATE TABLE delta (
    epoch INTEGER NOT NULL, partition INTEGER NOT NULL, generation INTEGER NOT NULL,
    digest BLOB NOT NULL, body BLOB NOT NULL, checksum BLOB NOT NULL
);
CREATE INDEX delta_place ON delta (partition, epoch);
CREATE TABLE snapshot (
    partition INTEGER PRIMARY KEY, epoch INTEGER NOT NULL,
    digest BLOB NOT NULL, body BLOB NOT NULL, checksum BLOB NOT NULL
);
"""


class SingleStore:
    """Invariant: an epoch is in the file if and only if its commit record is.

    is_memory: durability `memory` with a data directory; then only what the
    application is and that it once committed something are kept, so that a restart
    finds out that its state is lost.
    """

    def __init__(self, path: Path, *, is_memory: bool = False) -> None:
        self.path = path / FILE
        self._directory = DataDirectory(path)
        self._is_memory = is_memory
        self._has_lost_mark = False
        self._database: sqlite3.Connection | None = None
        # Deltas by epoch, until a transaction makes them durable.
        self._waiting: dict[int, list[StoredDelta]] = {}

    def open(self, lock_wait_s: float = 0.0) -> None:
        """Lock the directory and open the file, making both if need be.

        Raises:
            ConfigError: the directory is in use, or cannot be made.
            StateCorruptedError: the file is damaged, foreign or of a newer format.
            StateLostError: the application's state was kept in memory only, and is
                gone.
        """
        self._directory.open(lock_wait_s)
        try:
            self._open_file()
            self._check_lost()
        except BaseException:
            self.close()
            raise

    # What the application is.

    def meta(self) -> Meta | None:
        """Return what was created, or None."""
        with self._reading() as database:
            rows = dict(database.execute("SELECT name, value FROM meta"))
        if "history" not in rows:
            return None
        return Meta(
            rows["cluster_id"],
            rows["history"],
            rows["application"],
            rows["durability"].decode(),
            rows["coordination"].decode(),
        )

    def create(self, meta: Meta) -> None:
        """Create the application, durably."""
        values = {
            "cluster_id": meta.cluster_id,
            "history": meta.history,
            "application": meta.application,
            "durability": meta.durability.encode(),
            "coordination": meta.coordination.encode(),
        }
        with self._writing() as database:
            database.executemany("INSERT INTO meta VALUES (?, ?)", values.items())

    def update_application(self, application: bytes) -> None:
        """Replace the registered application, durably."""
        with self._writing() as database:
            database.execute(
                "UPDATE meta SET value = ? WHERE name = 'application'", (application,)
            )

    # Records.

    def campaign(self, candidate: bytes) -> int:
        """Become the leader; return the new term."""
        found = self.get(["term", "leader"])
        term = 1
        if "term" in found:
            term += struct.unpack(">Q", found["term"].value)[0]
        self.transact({}, {"term": struct.pack(">Q", term), "leader": candidate})
        return term

    def get(self, keys: Sequence[str]) -> dict[str, Versioned]:
        """Return the values of those keys that exist."""
        with self._reading() as database:
            rows = database.execute("SELECT name, value, revision FROM record")
            found = {name: Versioned(value, revision) for name, value, revision in rows}
        return {key: found[key] for key in keys if key in found}

    def transact(
        self, guards: Mapping[str, int], puts: Mapping[str, bytes]
    ) -> Applied | Conflict:
        """Write `puts` and all waiting deltas, durably, if the guards hold."""
        with self._writing() as database:
            rows = database.execute("SELECT name, value, revision FROM record")
            found = {name: Versioned(value, revision) for name, value, revision in rows}
            for key, revision in guards.items():
                if (found[key].revision if key in found else 0) != revision:
                    return Conflict({k: found[k] for k in guards if k in found})
            newest = 1 + max((v.revision for v in found.values()), default=0)
            if not self._is_memory:
                database.executemany(
                    "INSERT INTO delta VALUES (?, ?, ?, ?, ?, ?)", self._rows()
                )
            elif "commit" in puts and not self._has_lost_mark:
                database.execute("INSERT INTO meta VALUES ('in_memory', x'01')")
                self._has_lost_mark = True
            database.executemany(
                "INSERT OR REPLACE INTO record VALUES (?, ?, ?)",
                [(key, value, newest) for key, value in puts.items()],
            )
        self._waiting.clear()
        return Applied(newest)

    # Deltas and snapshots.

    def append(self, epoch: int, deltas: Sequence[StoredDelta]) -> None:
        """Take an epoch's deltas; the next transaction makes them durable."""
        self._waiting[epoch] = list(deltas)

    def truncate_after(self, epoch: int) -> None:
        """Drop the deltas of epochs after `epoch`, waiting or durable."""
        self._waiting = {e: d for e, d in self._waiting.items() if e <= epoch}
        with self._writing() as database:
            database.execute("DELETE FROM delta WHERE epoch > ?", (epoch,))

    def load(self) -> Iterator[LoadedPartition]:
        """Yield every partition that has anything.

        Raises:
            StateCorruptedError: a delta or snapshot is not what was written.
        """
        with self._reading() as database:
            numbers = database.execute(
                "SELECT partition FROM delta UNION SELECT partition FROM snapshot"
            ).fetchall()
        for (number,) in numbers:
            yield self._load(number)

    def put_snapshot(self, snapshot: StoredSnapshot) -> None:
        """Replace a partition's snapshot and drop the deltas that it holds.

        Deltas that wait stay waiting: they are of later epochs.
        """
        if self._is_memory:
            return
        place, head = snapshot.partition, _head(snapshot.partition, snapshot.epoch)
        checksum = _checksum(head, snapshot.digest, snapshot.body)
        with self._writing() as database:
            database.execute(
                "INSERT OR REPLACE INTO snapshot VALUES (?, ?, ?, ?, ?)",
                (place, snapshot.epoch, snapshot.digest, snapshot.body, checksum),
            )
            database.execute(
                "DELETE FROM delta WHERE partition = ? AND epoch <= ?",
                (place, snapshot.epoch),
            )

    def close(self) -> None:
        """Release file and lock; what waits is dropped."""
        if self._database is not None:
            self._database.close()
            self._database = None
        self._directory.close()

    # Inside.

    def _open_file(self) -> None:
        is_new = not self.path.exists()
        if is_new:
            self.path.touch(mode=0o600)
        database = sqlite3.connect(
            self.path, isolation_level=None, check_same_thread=False
        )
        self._database = database
        with self._reading():
            version = database.execute("PRAGMA user_version").fetchone()[0]
            identity = database.execute("PRAGMA application_id").fetchone()[0]
            tables = database.execute("SELECT count(*) FROM sqlite_schema").fetchone()[
                0
            ]
        if tables and identity != APPLICATION_ID:
            raise StateCorruptedError(
                f"{self.path} is a database of another program; move it away"
            )
        if version > FORMAT_VERSION:
            raise StateCorruptedError(
                f"{self.path} has format {version}, this engine reads up to"
                f" {FORMAT_VERSION}; start the newer engine that wrote it"
            )
        with self._reading():
            database.execute("PRAGMA journal_mode = WAL")
            database.execute("PRAGMA synchronous = FULL")
            database.execute(f"PRAGMA wal_autocheckpoint = {AUTOCHECKPOINT_PAGES}")
            found = database.execute("PRAGMA quick_check(1)").fetchone()[0]
        if found != "ok":
            raise StateCorruptedError(self._damaged(found))
        if not tables:
            with self._writing():
                for statement in _SCHEMA.split(";"):
                    database.execute(statement)
                database.execute(f"PRAGMA application_id = {APPLICATION_ID}")
                database.execute(f"PRAGMA user_version = {FORMAT_VERSION}")

    def _check_lost(self) -> None:
        with self._reading() as database:
            rows = dict(database.execute("SELECT name, value FROM meta"))
        if "in_memory" in rows:
            raise StateLostError(
                f"the application in {self.path.parent} was run with durability memory:"
                " its state ended with its engine. It is not started empty by accident:"
                " to begin a new history, remove the directory (and what its sinks have"
                " written), or name another with --data-dir"
            )

    def _rows(self) -> Iterator[tuple[int, int, int, bytes, bytes, bytes]]:
        for epoch in sorted(self._waiting):
            for delta in self._waiting[epoch]:
                head = _head(delta.partition, delta.epoch)
                checksum = _checksum(head, delta.digest, delta.body)
                yield (
                    delta.epoch,
                    delta.partition,
                    delta.generation,
                    delta.digest,
                    delta.body,
                    checksum,
                )

    def _load(self, number: int) -> LoadedPartition:
        with self._reading() as database:
            row = database.execute(
                "SELECT epoch, digest, body, checksum FROM snapshot"
                " WHERE partition = ?",
                (number,),
            ).fetchone()
            rows = database.execute(
                "SELECT epoch, generation, digest, body, checksum FROM delta"
                " WHERE partition = ? ORDER BY epoch",
                (number,),
            ).fetchall()
        snapshot = None
        if row is not None:
            epoch, digest, body, checksum = row
            self._check(number, epoch, digest, body, checksum)
            snapshot = StoredSnapshot(number, epoch, digest, body)
        deltas = []
        for epoch, generation, digest, body, checksum in rows:
            self._check(number, epoch, digest, body, checksum)
            deltas.append(
                StoredDelta(
                    PartitionId(number),
                    Epoch(epoch),
                    Generation(generation),
                    digest,
                    body,
                )
            )
        return LoadedPartition(number, snapshot, deltas)

    def _check(
        self, partition: int, epoch: int, digest: bytes, body: bytes, checksum: bytes
    ) -> None:
        if _checksum(_head(partition, epoch), digest, body) != checksum:
            raise StateCorruptedError(
                self._damaged(
                    f"partition {partition}, epoch {epoch} fails its checksum"
                )
            )

    @contextmanager
    def _reading(self) -> Iterator[sqlite3.Connection]:
        assert self._database is not None, "the store is open"
        try:
            yield self._database
        except sqlite3.DatabaseError as error:
            raise self._translated(error) from error

    @contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        """Run one durable transaction; undone whole if anything raises."""
        with self._reading() as database:
            database.execute("BEGIN IMMEDIATE")
            try:
                yield database
                database.execute("COMMIT")
            except BaseException:
                if database.in_transaction:
                    database.execute("ROLLBACK")
                raise

    def _translated(
        self, error: sqlite3.DatabaseError
    ) -> StoreUnavailableError | StateCorruptedError:
        name = getattr(error, "sqlite_errorname", "")
        if name.startswith(("SQLITE_CORRUPT", "SQLITE_NOTADB")) or not name:
            return StateCorruptedError(self._damaged(str(error)))
        return StoreUnavailableError(
            f"{self.path} cannot be written ({name}: {error}): free space or mend the"
            " disk; nothing is lost, and it is tried again"
        )

    def _damaged(self, why: str) -> str:
        return (
            f"{self.path} is damaged ({why}); restore the data directory from a backup,"
            " or begin anew in another one"
        )


def _head(partition: int, epoch: int) -> bytes:
    return struct.pack(">QQ", partition, epoch)


def _checksum(head: bytes, digest: bytes, body: bytes) -> bytes:
    found = blake2b(head, digest_size=CHECK_BYTES)
    found.update(digest)
    found.update(body)
    return found.digest()
