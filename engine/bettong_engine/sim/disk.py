"""The disk of the simulated engine: what one engine leaves to the next.

Keeps the contract of the engine's `single` store: deltas that were appended wait in
the memory of whoever has the store open, and become durable with the transaction that
comes next, together with its records, all or nothing. A crash loses what waits.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from bettong_engine.core.coordinator import GenerationRecord, Manifest, Record
from bettong_engine.core.delta import StoredDelta
from bettong_engine.errors import StoreUnavailableError, StoreUnknownError
from bettong_engine.net.delta_codec import decode_generation, decode_manifest

LEADER_KEY = "leader"
GENERATION_KEY = "generation"
COMMIT_KEY = "commit"


@dataclass(frozen=True, slots=True)
class Snapshot:
    """All committed state of a partition at an epoch."""

    partition: int
    epoch: int
    digest: bytes
    body: bytes


# Called when a commit record has become durable, with the deltas of its epoch.
OnCommit = Callable[[Manifest, Sequence[StoredDelta]], None]


@dataclass(slots=True)
class SimDisk:
    """Invariant: changes in one step only, by an applied transaction."""

    on_commit: OnCommit
    records: dict[str, tuple[bytes, int]] = field(default_factory=dict)
    deltas: dict[int, list[StoredDelta]] = field(default_factory=dict)
    snapshots: dict[int, Snapshot] = field(default_factory=dict)
    revision: int = 0
    # How many of the next transactions meet trouble, and what kind.
    refusals: int = 0
    unknown: bool | None = None

    def record(self) -> Record | None:
        """Return the records as the coordinator takes them; None: none yet."""
        if COMMIT_KEY not in self.records:
            return None
        generation, commit = self.records[GENERATION_KEY], self.records[COMMIT_KEY]
        return Record(
            decode_generation(generation[0]),
            decode_manifest(commit[0]),
            self.records[LEADER_KEY][1],
            generation[1],
            commit[1],
        )

    def generation(self) -> GenerationRecord | None:
        """Return the newest generation on the disk."""
        found = self.records.get(GENERATION_KEY)
        return None if found is None else decode_generation(found[0])

    def put(self, puts: Mapping[str, bytes], deltas: Sequence[StoredDelta]) -> int:
        """Make records and deltas durable; return their revision."""
        self.revision += 1
        for key, value in puts.items():
            self.records[key] = (value, self.revision)
        for delta in deltas:
            self.deltas.setdefault(delta.partition, []).append(delta)
        if COMMIT_KEY in puts:
            manifest = decode_manifest(puts[COMMIT_KEY])
            found = [
                delta
                for kept in self.deltas.values()
                for delta in kept
                if delta.epoch == manifest.epoch
            ]
            self.on_commit(manifest, found)
        return self.revision


class OpenStore:
    """The disk as one engine has it open; what waits here dies with that engine."""

    def __init__(self, disk: SimDisk) -> None:
        self.disk = disk
        self._waiting: list[StoredDelta] = []
        self._term = 0

    def campaign(self) -> int:
        """Become the leader, so that guards of older terms fail."""
        self._term = self.disk.put({LEADER_KEY: b"worker-1"}, ())
        return self._term

    def append(self, epoch: int, deltas: Sequence[StoredDelta]) -> None:
        """Take an epoch's deltas; they go with the next transaction."""
        assert all(delta.epoch == epoch for delta in deltas), "deltas of other epochs"
        assert not self._waiting or self._waiting[-1].epoch <= epoch, "epochs fall"
        self._waiting += deltas

    def transact(
        self, guards: Mapping[str, int], puts: Mapping[str, bytes]
    ) -> int | None:
        """Return the revision, or None if a guard did not hold.

        Raises:
            StoreUnavailableError: it was surely not applied.
            StoreUnknownError: it was applied, or not.
        """
        disk = self.disk
        if disk.refusals:
            disk.refusals -= 1
            raise StoreUnavailableError("the disk refuses")
        for key, revision in guards.items():
            if disk.records.get(key, (b"", 0))[1] != revision:
                return None
        unknown, disk.unknown = disk.unknown, None
        if unknown is not False:
            revision = disk.put(puts, self._waiting)
            self._waiting = []
        if unknown is not None:
            raise StoreUnknownError("the disk did not answer")
        return revision

    def truncate_after(self, epoch: int) -> None:
        """Drop deltas of epochs after `epoch`, waiting or durable.

        An engine that has lost the lead has lost the lock of the directory too.
        """
        disk = self.disk
        self._waiting = [delta for delta in self._waiting if delta.epoch <= epoch]
        if disk.records[LEADER_KEY][1] != self._term:
            return
        for partition, kept in disk.deltas.items():
            disk.deltas[partition] = [d for d in kept if d.epoch <= epoch]

    def put_snapshot(self, snapshot: Snapshot) -> None:
        """Replace a partition's snapshot and drop the deltas that it holds."""
        disk = self.disk
        if disk.records[LEADER_KEY][1] != self._term:
            return
        known = disk.snapshots.get(snapshot.partition)
        assert known is None or known.epoch <= snapshot.epoch, "an older snapshot"
        disk.snapshots[snapshot.partition] = snapshot
        kept = disk.deltas.get(snapshot.partition, [])
        disk.deltas[snapshot.partition] = [d for d in kept if d.epoch > snapshot.epoch]
