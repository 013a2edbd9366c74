"""A store in memory: durability `memory`, where nothing outlives the engine."""

from collections.abc import Iterator, Mapping, Sequence

from bettong_engine.core.delta import StoredDelta
from bettong_engine.store.interface import (
    Applied,
    Conflict,
    LoadedPartition,
    Meta,
    StoredSnapshot,
    Versioned,
)


class MemoryStore:
    """Keeps records only: the partitions themselves are in the worker's memory."""

    def __init__(self) -> None:
        self._meta: Meta | None = None
        self._records: dict[str, Versioned] = {}
        self._revision = 0
        self._term = 0

    def meta(self) -> Meta | None:
        """Return what was created, or None."""
        return self._meta

    def create(self, meta: Meta) -> None:
        """Create the application."""
        self._meta = meta

    def update_application(self, application: bytes) -> None:
        """Replace the registered application."""
        assert self._meta is not None, "create comes first"
        old = self._meta
        self._meta = Meta(
            old.cluster_id, old.history, application, old.durability, old.coordination
        )

    def campaign(self, candidate: bytes) -> int:
        """Become the leader; return the new term."""
        self._term += 1
        self.transact({}, {"leader": candidate})
        return self._term

    def get(self, keys: Sequence[str]) -> dict[str, Versioned]:
        """Return the values of those keys that exist."""
        return {key: self._records[key] for key in keys if key in self._records}

    def transact(
        self, guards: Mapping[str, int], puts: Mapping[str, bytes]
    ) -> Applied | Conflict:
        """Write all of `puts` if every guarded key has its revision."""
        current = self.get(list(guards))
        for key, revision in guards.items():
            found = current[key].revision if key in current else 0
            if found != revision:
                return Conflict(current)
        self._revision += 1
        for key, value in puts.items():
            self._records[key] = Versioned(value, self._revision)
        return Applied(self._revision)

    def append(self, epoch: int, deltas: Sequence[StoredDelta]) -> None:
        """Keep nothing: the worker holds its partitions."""

    def truncate_after(self, epoch: int) -> None:
        """Drop nothing."""

    def load(self) -> Iterator[LoadedPartition]:
        """Yield nothing: a new store has no partitions."""
        return iter(())

    def put_snapshot(self, snapshot: StoredSnapshot) -> None:
        """Keep nothing."""

    def close(self) -> None:
        """Do nothing."""
