"""What the engine asks of a store, as two contracts that one store may keep at once.

A CoordinationStore holds the few records that decide: who leads, which generation,
which epoch is committed. A DeltaStore holds what epochs changed. A `single` store is
both, and then one transaction makes an epoch's deltas and its commit record durable
together.

Calls block, and come from one thread at a time. Any may raise StateCorruptedError, or
StoreUnavailableError: the same call may be made again. Only `transact` and `campaign`
may raise StoreUnknownError: read first. Whatever fails, deltas that were appended are
not lost: they go with the next transaction.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from bettong_engine.core.delta import StoredDelta

# Of what is kept on disk. Any other is refused.
FORMAT_VERSION = 1
# The record that `campaign` writes. Its revision is the term: guard with it.
LEADER_KEY = "leader"


@dataclass(frozen=True, slots=True)
class Versioned:
    """A record. revision: of the transaction that wrote it, 1 or more."""

    value: bytes
    revision: int


@dataclass(frozen=True, slots=True)
class Applied:
    """A transaction is durable; all that it put has this revision."""

    revision: int


@dataclass(frozen=True, slots=True)
class Conflict:
    """A guard did not hold, and nothing was written. current: the guarded keys."""

    current: dict[str, Versioned]


@dataclass(frozen=True, slots=True)
class Meta:
    """What is fixed when an application is created.

    cluster_id, history: 16 random bytes each. application: as it was registered
    last. durability: `disk` or `memory`. coordination: `single`, `embedded`, `etcd`.
    """

    cluster_id: bytes
    history: bytes
    application: bytes
    durability: str
    coordination: str
    format_version: int = FORMAT_VERSION


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


Watcher = Callable[[frozenset[str]], None]


class CoordinationStore(Protocol):
    """Records with revisions, changed by guarded transactions one after the other.

    Invariant: revisions rise with every transaction and are never used twice.
    """

    def campaign(self, candidate: bytes) -> int:
        """Become the leader; return a term higher than all before.

        Writes LEADER_KEY, so that guards of older terms fail.
        """

    def keepalive(self) -> bool:
        """Return whether the leadership of the last campaign here still stands."""

    def get(self, keys: Sequence[str]) -> dict[str, Versioned]:
        """Return the records of those keys that exist."""

    def transact(
        self, guards: Mapping[str, int], puts: Mapping[str, bytes]
    ) -> Applied | Conflict:
        """Write all of `puts`, durably, if every guarded key has its revision.

        In a store that is a DeltaStore too, deltas that wait become durable in the
        same transaction; after a conflict they wait on.

        Args:
            guards: key to revision; 0: it must not exist.
            puts: new values.

        Raises:
            StoreUnknownError: it may have been applied, or not: `get` tells.
            StoreUnavailableError: it was not applied.
        """

    def watch(self, on_change: Watcher) -> None:
        """Call `on_change` with the keys of each later transaction.

        A hint: calls may be late, merged or missing; only a guard protects. Local
        stores call from within the call that wrote.
        """


class DeltaStore(Protocol):
    """What epochs changed, and what the application is that they belong to.

    Invariant: of each partition it keeps one snapshot or none, and every delta after
    it that was made durable and not truncated.
    """

    def meta(self) -> Meta | None:
        """Return what was created, or None."""

    def create(self, meta: Meta) -> None:
        """Create the application, durably. Only once."""

    def update_application(self, application: bytes) -> None:
        """Replace the registered application, durably."""

    def append(self, epoch: int, deltas: Sequence[StoredDelta]) -> None:
        """Take an epoch's deltas; `transact` or `sync` makes them durable.

        Epochs do not fall, but after a truncation. Nothing is written here: a full
        disk shows in the transaction.
        """

    def sync(self) -> None:
        """Make durable what was appended."""

    def truncate_after(self, epoch: int) -> None:
        """Drop the deltas of epochs after `epoch`, durably.

        Raises:
            StateCorruptedError: a snapshot holds a later epoch.
        """

    def load(self) -> Iterator[LoadedPartition]:
        """Yield every partition of which anything is durable, ascending.

        Raises:
            StateCorruptedError: something is not what was written, or is missing.
        """

    def put_snapshot(self, snapshot: StoredSnapshot) -> None:
        """Replace a partition's snapshot and drop its deltas up to that epoch.

        One transaction, durable on return, beside deltas that wait: those of this
        partition must be of later epochs, since a snapshot holds committed state
        only, and they wait on.

        Raises:
            TooLargeError: it cannot be kept.
        """

    def tidy(self) -> None:
        """Do a piece of what can wait; call it when no call is waiting.

        Never needed. It takes milliseconds out of some later transaction.
        """

    def close(self) -> None:
        """Release files and locks. What waits is dropped."""
