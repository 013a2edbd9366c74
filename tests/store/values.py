"""Deltas, snapshots and stores to test with."""

from collections.abc import Iterable
from pathlib import Path

from bettong_engine.core.delta import StoredDelta
from bettong_engine.core.ids import Epoch, Generation, PartitionId
from bettong_engine.store.interface import (
    Applied,
    CoordinationStore,
    DeltaStore,
    LoadedPartition,
    Meta,
    StoredSnapshot,
)
from bettong_engine.store.single import SingleStore

META = Meta(b"c" * 16, b"h" * 16, b"application", "disk", "single")


def delta(partition: int, epoch: int, body: bytes = b"body") -> StoredDelta:
    """Return a delta whose digest tells it from others."""
    digest = b"%04d of %06d" % (partition, epoch)
    return StoredDelta(
        PartitionId(partition), Epoch(epoch), Generation(1), digest, body
    )


def deltas(epoch: int, partitions: Iterable[int], size: int = 4) -> list[StoredDelta]:
    """Return deltas of an epoch, with bodies that are all different."""
    return [
        delta(number, epoch, (b"%d/%d." % (number, epoch) * size)[:size])
        for number in partitions
    ]


def snapshot(partition: int, epoch: int, body: bytes = b"all") -> StoredSnapshot:
    """Return a snapshot whose digest tells it from others."""
    return StoredSnapshot(partition, epoch, b"%04d at %06d" % (partition, epoch), body)


def commit(store: CoordinationStore, epoch: int) -> None:
    """Write a commit record as the engine does."""
    found = store.get(["commit"])
    revision = found["commit"].revision if found else 0
    result = store.transact({"commit": revision}, {"commit": b"%d" % epoch})
    assert isinstance(result, Applied)


def committed_epoch(store: CoordinationStore) -> int:
    """Return the epoch that the commit record names."""
    found = store.get(["commit"])
    return int(found["commit"].value) if found else 0


def loaded(store: DeltaStore) -> dict[int, LoadedPartition]:
    """Return all that a store holds, by partition."""
    return {partition.partition: partition for partition in store.load()}


def epochs(store: DeltaStore) -> dict[int, list[int]]:
    """Return the epochs of each partition's deltas."""
    return {
        number: [delta.epoch for delta in partition.deltas]
        for number, partition in loaded(store).items()
    }


def created(path: Path, *, is_memory: bool = False) -> SingleStore:
    """Return a new store, open, with an application in it."""
    store = SingleStore(path, is_memory=is_memory)
    store.open()
    durability = "memory" if is_memory else "disk"
    store.create(Meta(b"c" * 16, b"h" * 16, b"application", durability, "single"))
    return store


def opened(path: Path) -> SingleStore:
    """Return the store that is in a directory."""
    store = SingleStore(path)
    store.open()
    return store
