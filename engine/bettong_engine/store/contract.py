"""What every store asks of its caller, and of what it holds."""

from collections.abc import Mapping, Sequence

from bettong_engine.core.delta import StoredDelta
from bettong_engine.errors import StateCorruptedError
from bettong_engine.store.interface import StoredSnapshot


def check_append(epoch: int, deltas: Sequence[StoredDelta], last_epoch: int) -> None:
    """Assert that deltas are of `epoch`, and that epochs do not fall."""
    assert epoch >= last_epoch, "an epoch is appended after a later one"
    assert all(delta.epoch == epoch for delta in deltas), "deltas of other epochs"


def check_snapshot(
    snapshot: StoredSnapshot, last_epoch: int, waiting: Sequence[StoredDelta]
) -> None:
    """Assert that a snapshot is not older than the last, and that it is committed."""
    assert snapshot.epoch >= last_epoch, "a snapshot older than the one before it"
    assert not any(
        delta.partition == snapshot.partition and delta.epoch <= snapshot.epoch
        for delta in waiting
    ), "a snapshot of an epoch that is not durable"


def check_truncation(epoch: int, snapshot_epochs: Mapping[int, int]) -> None:
    """Refuse to go back behind a snapshot: what it holds was committed.

    Raises:
        StateCorruptedError: the commit record is older than a snapshot.
    """
    for partition, held in snapshot_epochs.items():
        if held > epoch:
            raise StateCorruptedError(
                f"the snapshot of partition {partition} is of epoch {held}, but only"
                f" epoch {epoch} is committed: files of several copies are mixed;"
                " restore the whole data directory from one backup"
            )
