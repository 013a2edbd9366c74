"""What the runtime asks of a store, and the values that they exchange.

Stores are synchronous and used from one thread at a time.
"""

from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from bettong_engine.core.delta import StoredDelta


@dataclass(frozen=True, slots=True)
class Versioned:
    """A value, and the revision of its last change. Revisions only rise."""

    value: bytes
    revision: int


@dataclass(frozen=True, slots=True)
class Applied:
    """A transaction is durable; all that it wrote has this revision."""

    revision: int


@dataclass(frozen=True, slots=True)
class Conflict:
    """A guard did not hold, and nothing was written. current: the guarded keys."""

    current: dict[str, Versioned]


@dataclass(frozen=True, slots=True)
class Meta:
    """What is fixed when an application is created.

    cluster_id, history: 16 random bytes each. application: as it was registered
    last. durability: `disk` or `memory`. coordination: `single`.
    """

    cluster_id: bytes
    history: bytes
    application: bytes
    durability: str
    coordination: str


@dataclass(frozen=True, slots=True)
class StoredSnapshot:
    """All committed state of a partition at an epoch, with its chained digest."""

    partition: int
    epoch: int
    digest: bytes
    body: bytes


@dataclass(frozen=True, slots=True)
class LoadedPartition:
    """What is kept of a partition: deltas after the snapshot, ascending."""

    partition: int
    snapshot: StoredSnapshot | None
    deltas: list[StoredDelta]


class CoordinationStore(Protocol):
    """Linearizable records with guarded transactions.

    Every method raises `StoreUnavailableError` if the disk refuses.
    """

    @abstractmethod
    def campaign(self, candidate: bytes) -> int:
        """Become the leader; return a term higher than all before.

        Changes the revision of the key `leader`, so that guards of older terms fail.
        """

    @abstractmethod
    def get(self, keys: Sequence[str]) -> dict[str, Versioned]:
        """Return the values of those keys that exist."""

    @abstractmethod
    def transact(
        self, guards: Mapping[str, int], puts: Mapping[str, bytes]
    ) -> Applied | Conflict:
        """Write all of `puts`, durably, if every guarded key has its revision.

        guards: key to revision; 0: it must not exist. Raises `StoreUnknownError`
        where the outcome is not known, `StoreUnavailableError` where it surely was
        not applied.
        """


class DeltaStore(Protocol):
    """Deltas and snapshots of partitions, and what an application is."""

    @abstractmethod
    def meta(self) -> Meta | None:
        """Return what was created, or None."""

    @abstractmethod
    def create(self, meta: Meta) -> None:
        """Create the application, durably."""

    @abstractmethod
    def update_application(self, application: bytes) -> None:
        """Replace the registered application, durably."""

    @abstractmethod
    def append(self, epoch: int, deltas: Sequence[StoredDelta]) -> None:
        """Take an epoch's deltas; the transaction that follows makes them durable."""

    @abstractmethod
    def truncate_after(self, epoch: int) -> None:
        """Drop the deltas of epochs after `epoch`."""

    @abstractmethod
    def load(self) -> Iterator[LoadedPartition]:
        """Yield every partition that has anything."""

    @abstractmethod
    def put_snapshot(self, snapshot: StoredSnapshot) -> None:
        """Replace a partition's snapshot, and drop its deltas up to that epoch."""

    @abstractmethod
    def close(self) -> None:
        """Release the store. What was appended and not transacted is dropped."""
