"""The store of a lone worker: one SQLite file, one fsynced transaction an epoch.

Deltas wait in memory, not in an open transaction, until the one that commits their
epoch; then both become durable together. So the commit record and what it speaks of
cannot part, a failed transaction loses nothing that waits, and a snapshot or a
truncation may come between without a thought. Waiting deltas of later epochs go
along: until their own commit record is there, `truncate_after` drops them.

Every row carries a seal, and a summary in the same transaction the sum of all seals:
a row that changed, vanished or came back is noticed. The summary is a row of the
records' table because it then shares their page, and costs no write of its own.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from bettong_engine.core.delta import StoredDelta
from bettong_engine.errors import (
    ConfigError,
    StateLostError,
    StoreUnavailableError,
    StoreUnknownError,
)
from bettong_engine.store import segments, sqlite
from bettong_engine.store.contract import (
    check_append,
    check_snapshot,
    check_truncation,
)
from bettong_engine.store.directory import DataDirectory
from bettong_engine.store.interface import (
    LEADER_KEY,
    Applied,
    Conflict,
    LoadedPartition,
    Meta,
    StoredSnapshot,
    Versioned,
    Watcher,
)
from bettong_engine.store.tables import SCHEMA, Tables

# A log of this size is worth copying while nobody waits: a quarter of the size at
# which a commit has to do it.
TIDY_BYTES = sqlite.LOG_BYTES_MAX // 4
# What a transaction writes beside bodies: a few pages.
PAGES_BYTES = 4 * sqlite.PAGE_BYTES


class SingleStore:
    """Keeps both contracts in `path`, which it locks while it is open.

    is_memory: durability `memory` in a data directory. Then only what the
    application is, and that it has committed something, are on disk: enough for a
    restart to find out that its state is lost.

    Invariant: a delta that was appended waits until it is durable or truncated.
    """

    def __init__(self, path: Path, *, is_memory: bool = False) -> None:
        self._directory = DataDirectory(path)
        self._is_memory = is_memory
        self._opened: sqlite.Database | None = None
        self._tables = Tables()
        self._waiting: list[StoredDelta] = []
        self._is_leader = False
        # About what the log has grown by since `tidy`.
        self._log_bytes = 0
        # The outcome of the last transaction is not known.
        self._is_unsettled = False
        self._watchers: list[Watcher] = []

    def open(self, wait_s: float = 0.0) -> None:
        """Lock the directory and open its file, made if they are missing.

        Args:
            wait_s: how long to wait for an engine that holds the directory.

        Raises:
            ConfigError: the directory is in use, cannot be used, or belongs to an
                application of another durability.
            StateCorruptedError: the file is damaged, foreign, or of another format.
            StateLostError: the state was in the memory of an engine that has ended.
        """
        self._directory.lock(wait_s)
        try:
            self._open_file()
            self._check_owner()
        except BaseException:
            self.close()
            raise

    # What the application is.

    def meta(self) -> Meta | None:
        """Return what was created, or None."""
        return self._tables.meta

    def create(self, meta: Meta) -> None:
        """Create the application, durably."""
        assert self._tables.meta in (None, meta), "an application is created once"
        wanted = "memory" if self._is_memory else "disk"
        assert meta.durability == wanted, "the store was opened for another durability"
        with self._writing() as tables:
            tables.put_meta(self._database.connection, meta)
        self._directory.write_identity(meta.cluster_id)

    def update_application(self, application: bytes) -> None:
        """Replace the registered application, durably."""
        meta = self._tables.meta
        assert meta is not None, "create comes first"
        with self._writing() as tables:
            tables.put_meta(
                self._database.connection, replace(meta, application=application)
            )

    # Records.

    def campaign(self, candidate: bytes) -> int:
        """Become the leader; return the new term."""
        result = self.transact({}, {LEADER_KEY: candidate})
        assert isinstance(result, Applied), "it has no guards"
        self._is_leader = True
        return result.revision

    def keepalive(self) -> bool:
        """Return whether a campaign was won: the lock keeps others away."""
        return self._is_leader

    def get(self, keys: Sequence[str]) -> dict[str, Versioned]:
        """Return the records of those keys that exist."""
        if self._is_unsettled:
            self._settle()
        return self._tables.records.get(keys)

    def transact(
        self, guards: Mapping[str, int], puts: Mapping[str, bytes]
    ) -> Applied | Conflict:
        """Write `puts` and all waiting deltas, durably, if the guards hold."""
        if self._is_unsettled:
            self._settle()
        if conflict := self._tables.records.conflict_with(guards):
            return conflict
        if self._is_memory:
            self._mark_committed()
            revision = self._tables.records.put(puts)
        else:
            with self._writing(is_repeatable=False) as tables:
                connection = self._database.connection
                tables.add_deltas(connection, self._waiting)
                revision = tables.put_records(connection, puts)
        self._waiting.clear()
        for watcher in self._watchers:
            watcher(frozenset(puts))
        return Applied(revision)

    def watch(self, on_change: Watcher) -> None:
        """Call `on_change` with the keys of each later transaction."""
        self._watchers.append(on_change)

    # Deltas and snapshots.

    def append(self, epoch: int, deltas: Sequence[StoredDelta]) -> None:
        """Take an epoch's deltas; the next transaction makes them durable."""
        last = self._tables.segments.last_epoch
        if self._waiting:
            last = self._waiting[-1].epoch
        check_append(epoch, deltas, last)
        self._waiting += deltas

    def sync(self) -> None:
        """Make durable what waits."""
        if not self._waiting:
            return
        if self._is_memory:
            self._mark_committed()
        else:
            with self._writing() as tables:
                tables.add_deltas(self._database.connection, self._waiting)
        self._waiting.clear()

    def truncate_after(self, epoch: int) -> None:
        """Drop the deltas of epochs after `epoch`, waiting or durable."""
        check_truncation(epoch, self._tables.snapshot_epochs)
        self._waiting = [delta for delta in self._waiting if delta.epoch <= epoch]
        if self._tables.segments.last_epoch > epoch:
            with self._writing() as tables:
                tables.segments = segments.truncate_after(
                    self._database.connection, tables.segments, epoch
                )

    def load(self) -> Iterator[LoadedPartition]:
        """Yield every partition that has anything, ascending.

        Everything is read and compared before the first is yielded. Takes as much
        memory as all deltas that no snapshot covers, and one snapshot.
        """
        with self._database.reading() as connection:
            deltas = self._tables.load_deltas(connection)
        for partition in sorted({*deltas, *self._tables.snapshot_epochs}):
            with self._database.reading() as connection:
                snapshot = self._tables.load_snapshot(connection, partition)
            yield LoadedPartition(partition, snapshot, deltas.pop(partition, []))

    def put_snapshot(self, snapshot: StoredSnapshot) -> None:
        """Replace a partition's snapshot and drop its deltas up to that epoch."""
        known = self._tables.snapshot_epochs.get(snapshot.partition, 0)
        check_snapshot(snapshot, known, self._waiting)
        if self._is_memory:
            return
        with self._writing() as tables:
            connection = self._database.connection
            tables.put_snapshot(connection, snapshot)
            tables.segments = segments.sweep(
                connection, tables.segments, tables.snapshot_epochs
            )
        self._log_bytes += len(snapshot.body)

    def tidy(self) -> None:
        """Copy the log into the file, if it has grown, before a commit has to."""
        if self._log_bytes >= TIDY_BYTES:
            self._database.shorten_log()
            self._log_bytes = 0

    def close(self) -> None:
        """Release file and lock; what waits is dropped."""
        self._is_leader = False
        self._waiting.clear()
        if self._opened is not None:
            self._opened.close()
            self._opened = None
        self._directory.unlock()

    # Inside.

    @property
    def _database(self) -> sqlite.Database:
        assert self._opened is not None, "the store is open"
        return self._opened

    def _open_file(self) -> None:
        path = self._directory.database
        if self._directory.is_new():
            sqlite.create_file(path, SCHEMA, Tables().write_summary)
        sqlite.check_header(path)
        was_ended_well = not path.with_name(f"{path.name}-wal").exists()
        self._opened = sqlite.Database(path)
        self._opened.check_structure()
        if not was_ended_well:
            # What an unfinished fsync left in the log is read back from memory, and
            # may not be on the disk: bring it there before anybody relies on it.
            self._opened.empty_log()
        with self._opened.reading() as connection:
            self._tables = Tables.read(connection)

    def _check_owner(self) -> None:
        tables, path = self._tables, self._directory.path
        self._directory.check_identity(tables.meta.cluster_id if tables.meta else None)
        if tables.is_state_in_memory:
            raise StateLostError(
                f"the state of the application in {path} was kept in memory only, by"
                " an engine that has ended. It is not started empty by accident: to"
                " start it anew, remove that directory, and what its sinks have"
                " written; to have it survive next time, use durability disk"
            )
        durability = "memory" if self._is_memory else "disk"
        if tables.meta is not None and tables.meta.durability != durability:
            raise ConfigError(
                f"the application in {path} was created with durability"
                f" {tables.meta.durability}, not {durability}: start it with that one,"
                " or name another data directory"
            )

    def _mark_committed(self) -> None:
        """Note that state exists that is not on disk; only the first time."""
        if self._waiting and not self._tables.is_state_in_memory:
            with self._writing() as tables:
                tables.mark_state_in_memory(self._database.connection)

    def _settle(self) -> None:
        """Make sure that a transaction of unknown outcome is not applied.

        SQLite counts it as undone, but its frames may be in the log, where a crash
        would find them. The next transaction takes their place, whatever it writes.
        """
        with self._writing():
            pass

    @contextmanager
    def _writing(self, *, is_repeatable: bool = True) -> Iterator[Tables]:
        """Change tables in one durable transaction, or not at all.

        is_repeatable: doing it twice is as good as once, so that an unknown outcome
        need not concern the caller.
        """
        draft = self._tables.copy()
        size = sum(len(delta.body) for delta in self._waiting) + PAGES_BYTES
        try:
            with self._database.transaction() as connection:
                yield draft
                draft.write_summary(connection)
        except StoreUnknownError as error:
            self._is_unsettled = True
            if is_repeatable:
                raise StoreUnavailableError(str(error)) from error
            raise
        self._tables = draft
        self._is_unsettled = False
        self._log_bytes += size
