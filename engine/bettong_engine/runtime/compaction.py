"""Folds deltas into snapshots, in the background, so that disks do not grow.

A partition is due when the deltas since its snapshot are larger than the snapshot:
then each byte is written about twice in all. One partition at a time, between
epochs.
"""

from collections.abc import Sequence

from bettong_engine.core.delta import StoredDelta
from bettong_engine.core.partition import Partition
from bettong_engine.net.delta_codec import encode_delta
from bettong_engine.runtime.store_task import StoreTask
from bettong_engine.store.interface import StoredSnapshot

# Below this, folding costs more than the deltas.
DELTA_BYTES_MIN = 1 << 20


class Compaction:
    """Decides which partition is folded next."""

    def __init__(self, store: StoreTask, partitions: Sequence[Partition]) -> None:
        self._store = store
        self._partitions = partitions
        self._delta_bytes = [0] * len(partitions)
        self._snapshot_bytes = [0] * len(partitions)
        self._is_busy = False

    def on_stored(self, deltas: Sequence[StoredDelta]) -> None:
        """Count deltas that go to the store."""
        for delta in deltas:
            self._delta_bytes[delta.partition] += len(delta.body)

    def on_epoch(self) -> None:
        """Fold the partition that is most overdue, if any is."""
        if self._is_busy:
            return
        due = [
            (size, number)
            for number, size in enumerate(self._delta_bytes)
            if size > max(DELTA_BYTES_MIN, self._snapshot_bytes[number])
        ]
        if not due:
            return
        _, number = max(due)
        partition = self._partitions[number]
        body = encode_delta(partition.snapshot())
        self._is_busy = True
        self._delta_bytes[number] = 0
        self._snapshot_bytes[number] = len(body)
        snapshot = StoredSnapshot(
            partition=partition.number,
            epoch=partition.epoch,
            digest=partition.digest,
            body=body,
        )
        self._store.put_snapshot(snapshot, self._done)

    def _done(self) -> None:
        self._is_busy = False
