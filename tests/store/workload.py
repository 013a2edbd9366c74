"""Runs a fixed series of epochs on a store, and says what it should hold.

As a program it prints `committed N` after each commit, so that whoever kills it knows
what must be there:  python -m tests.store.workload DIRECTORY [EPOCHS] [STOP_AT_STEP]
"""

import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

from tests.store.values import META, commit, committed_epoch, delta, snapshot

from bettong_engine.core.delta import StoredDelta
from bettong_engine.store.interface import StoredSnapshot
from bettong_engine.store.single import SingleStore

PARTITIONS = 6


def delta_of(partition: int, epoch: int) -> StoredDelta:
    """Return what an epoch changes, of a size of its own."""
    text = b"%d:%d " % (partition, epoch)
    return delta(partition, epoch, text * (1 + epoch * 37 % 90 * (partition + 1)))


def deltas_of(epoch: int) -> list[StoredDelta]:
    """Return all that an epoch changes: not every partition, in some epochs none."""
    if epoch % 10 == 9:
        return []
    return [
        delta_of(number, epoch)
        for number in range(PARTITIONS)
        if (number + epoch) % 4 != 0
    ]


def snapshot_of(partition: int, epoch: int) -> StoredSnapshot:
    """Return what stands for all deltas of a partition up to an epoch."""
    return snapshot(partition, epoch, b"%d@%d " % (partition, epoch) * 500)


def steps(store: SingleStore, epochs: int) -> Iterator[str]:
    """Go on from what is committed, one call of the store at a time."""
    if store.meta() is None:
        store.create(META)
        yield "created"
    term = store.campaign(b"worker")
    yield f"leading {term}"
    done = committed_epoch(store)
    store.truncate_after(done)
    yield "truncated"
    for epoch in range(done + 1, done + 1 + epochs):
        store.append(epoch, deltas_of(epoch))
        yield f"appended {epoch}"
        if epoch % 3 == 0:
            # The next epoch is prepared already; sometimes it is given up again.
            store.append(epoch + 1, [delta(0, epoch + 1, b"of a lost generation")])
            yield f"appended {epoch + 1} too early"
            if epoch % 2 == 0:
                store.sync()
                yield "synced"
        commit(store, epoch)
        yield f"committed {epoch}"
        store.truncate_after(epoch)
        yield "truncated"
        if epoch % 2 == 0:
            store.put_snapshot(snapshot_of(epoch // 2 % PARTITIONS, epoch - 1))
            yield "snapshot taken"
        store.tidy()
        yield "tidied"


def check(store: SingleStore, *, at_least: int) -> int:
    """Assert that a store holds what was committed, and return up to where that is."""
    epoch = committed_epoch(store)
    assert epoch >= at_least, f"epoch {at_least} was committed, {epoch} is left"
    store.truncate_after(epoch)
    found = {loaded.partition: loaded for loaded in store.load()}
    for number in range(PARTITIONS):
        loaded = found.pop(number, None)
        kept = loaded.snapshot if loaded else None
        if kept is not None:
            assert kept.epoch <= epoch
            assert kept == snapshot_of(number, kept.epoch)
        expected = [
            delta
            for e in range((kept.epoch if kept else 0) + 1, epoch + 1)
            for delta in deltas_of(e)
            if delta.partition == number
        ]
        assert (loaded.deltas if loaded else []) == expected
    assert not found
    return epoch


def main() -> None:
    """Run the program."""
    directory, epochs, stop_at = Path(sys.argv[1]), 10_000, -1
    if len(sys.argv) > 2:
        epochs = int(sys.argv[2])
    if len(sys.argv) > 3:
        stop_at = int(sys.argv[3])
    store = SingleStore(directory)
    store.open()
    for number, said in enumerate(steps(store, epochs)):
        print(said, flush=True)
        if number == stop_at:
            os.kill(os.getpid(), signal.SIGKILL)
    store.close()


if __name__ == "__main__":
    main()
