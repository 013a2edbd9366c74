"""A store in memory: durability `memory`, where nothing outlives the engine."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from bettong_engine.core.delta import StoredDelta
from bettong_engine.store.contract import (
    check_append,
    check_snapshot,
    check_truncation,
)
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
from bettong_engine.store.records import Records


class MemoryStore:
    """Keeps both contracts as long as it lives.

    keeps_deltas: False saves the memory where nobody will load them: a running
    engine holds its partitions itself, and a new one finds a new store.

    Invariant: `_kept` holds no delta that a snapshot of its partition covers.
    """

    def __init__(self, *, keeps_deltas: bool = True) -> None:
        self._keeps_deltas = keeps_deltas
        self._meta: Meta | None = None
        self._records = Records()
        self._is_leader = False
        self._watchers: list[Watcher] = []
        self._waiting: list[StoredDelta] = []
        self._kept: dict[int, list[StoredDelta]] = {}
        self._snapshots: dict[int, StoredSnapshot] = {}
        self._last_epoch = 0

    # What the application is.

    def meta(self) -> Meta | None:
        """Return what was created, or None."""
        return self._meta

    def create(self, meta: Meta) -> None:
        """Create the application."""
        assert self._meta is None, "an application is created once"
        self._meta = meta

    def update_application(self, application: bytes) -> None:
        """Replace the registered application."""
        assert self._meta is not None, "create comes first"
        self._meta = replace(self._meta, application=application)

    # Records.

    def campaign(self, candidate: bytes) -> int:
        """Become the leader; return the new term."""
        result = self.transact({}, {LEADER_KEY: candidate})
        assert isinstance(result, Applied), "it has no guards"
        self._is_leader = True
        return result.revision

    def keepalive(self) -> bool:
        """Return whether a campaign was won: nobody else can reach this store."""
        return self._is_leader

    def get(self, keys: Sequence[str]) -> dict[str, Versioned]:
        """Return the records of those keys that exist."""
        return self._records.get(keys)

    def transact(
        self, guards: Mapping[str, int], puts: Mapping[str, bytes]
    ) -> Applied | Conflict:
        """Write all of `puts` if every guarded key has its revision."""
        if conflict := self._records.conflict_with(guards):
            return conflict
        revision = self._records.put(puts)
        self.sync()
        for watcher in self._watchers:
            watcher(frozenset(puts))
        return Applied(revision)

    def watch(self, on_change: Watcher) -> None:
        """Call `on_change` with the keys of each later transaction."""
        self._watchers.append(on_change)

    # Deltas and snapshots.

    def append(self, epoch: int, deltas: Sequence[StoredDelta]) -> None:
        """Take an epoch's deltas; the next transaction keeps them."""
        check_append(epoch, deltas, self._last_epoch)
        self._last_epoch = epoch
        if self._keeps_deltas:
            self._waiting += deltas

    def sync(self) -> None:
        """Keep what was appended."""
        for delta in self._waiting:
            self._kept.setdefault(delta.partition, []).append(delta)
        self._waiting.clear()

    def truncate_after(self, epoch: int) -> None:
        """Drop the deltas of epochs after `epoch`, waiting or kept."""
        check_truncation(epoch, {p: s.epoch for p, s in self._snapshots.items()})
        self._waiting = [delta for delta in self._waiting if delta.epoch <= epoch]
        for partition, deltas in self._kept.items():
            self._kept[partition] = [delta for delta in deltas if delta.epoch <= epoch]
        self._last_epoch = min(self._last_epoch, epoch)

    def load(self) -> Iterator[LoadedPartition]:
        """Yield every partition of which anything is kept, ascending."""
        for partition in sorted({*self._kept, *self._snapshots}):
            snapshot = self._snapshots.get(partition)
            deltas = self._kept.get(partition, [])
            if snapshot is not None or deltas:
                yield LoadedPartition(partition, snapshot, list(deltas))

    def put_snapshot(self, snapshot: StoredSnapshot) -> None:
        """Replace a partition's snapshot and drop its deltas up to that epoch."""
        partition = snapshot.partition
        known = self._snapshots.get(partition)
        check_snapshot(snapshot, known.epoch if known else 0, self._waiting)
        if not self._keeps_deltas:
            return
        self._snapshots[partition] = snapshot
        self._kept[partition] = [
            delta
            for delta in self._kept.get(partition, [])
            if delta.epoch > snapshot.epoch
        ]

    def tidy(self) -> None:
        """Do nothing: nothing can wait."""

    def close(self) -> None:
        """Forget who leads, and what waits."""
        self._is_leader = False
        self._waiting.clear()
