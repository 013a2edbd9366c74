"""Room in the file is used again, whichever partitions change."""

import os
import sqlite3
from pathlib import Path

import pytest
from tests.store.values import (
    commit,
    created,
    deltas,
    epochs,
    loaded,
    opened,
    snapshot,
)

from bettong_engine.errors import StateCorruptedError, TooLargeError
from bettong_engine.store import segments
from bettong_engine.store.single import SingleStore


def rows(store: SingleStore) -> list[tuple[int, int]]:
    """Return the epoch and the bytes of each row of deltas."""
    with store._database.reading() as connection:
        return connection.execute(
            "SELECT epoch, length(body) FROM segment ORDER BY id"
        ).fetchall()


def test_deltas_of_an_epoch_share_a_row(tmp_path: Path) -> None:
    store = created(tmp_path / "data")
    store.append(1, deltas(1, range(64), size=100))
    store.append(2, deltas(2, range(64), size=100))
    commit(store, 1)

    assert rows(store) == [(1, 6400), (2, 6400)]
    store.close()


def test_row_that_would_grow_too_large_is_split(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(segments, "SEGMENT_BYTES_MAX", 250)
    store = created(tmp_path / "data")
    store.append(1, [*deltas(1, range(5), size=100), *deltas(1, [5], size=900)])
    commit(store, 1)

    assert rows(store) == [(1, 200), (1, 200), (1, 100), (1, 900)]
    assert epochs(store) == {number: [1] for number in range(6)}
    store.close()


def test_rows_die_whole_when_all_partitions_change_alike(tmp_path: Path) -> None:
    store = created(tmp_path / "data")
    sizes = []
    for epoch in range(1, 400):
        store.append(epoch, deltas(epoch, range(8), size=100))
        commit(store, epoch)
        if epoch % 5 == 0:
            store.put_snapshot(snapshot(epoch // 5 % 8, epoch))
        sizes.append(len(rows(store)))

    # A round of snapshots is 40 epochs long.
    assert max(sizes) <= 2.5 * 40
    store.close()


def test_partition_that_hardly_changes_keeps_no_others_rows(tmp_path: Path) -> None:
    store = created(tmp_path / "data")
    store.append(1, deltas(1, range(8), size=1000))
    commit(store, 1)
    for epoch in range(2, 200):
        # Partition 7 changes in every tenth epoch and gets no snapshot.
        changed = range(8 if epoch % 10 == 0 else 7)
        store.append(epoch, deltas(epoch, changed, size=1000))
        commit(store, epoch)
        if epoch % 5 == 0:
            for number in range(7):
                store.put_snapshot(snapshot(number, epoch))

    live = sum(len(d.body) for p in store.load() for d in p.deltas)
    assert epochs(store)[7] == [1, *range(10, 200, 10)]
    assert sum(size for _, size in rows(store)) <= 4 * live
    store.close()

    store = opened(tmp_path / "data")
    assert epochs(store)[7] == [1, *range(10, 200, 10)]
    store.close()


def test_file_stops_growing_when_snapshots_are_taken(tmp_path: Path) -> None:
    store = created(tmp_path / "data")
    path = tmp_path / "data" / "bettong.db"
    sizes = []
    for epoch in range(1, 301):
        store.append(epoch, deltas(epoch, range(4), size=20_000))
        commit(store, epoch)
        if epoch % 5 == 0:
            store.put_snapshot(snapshot(epoch // 5 % 4, epoch, os.urandom(50_000)))
            sizes.append(path.stat().st_size)

    assert max(sizes) == max(sizes[:30])
    store.close()


def test_damaged_head_stops_a_sweep(tmp_path: Path) -> None:
    store = created(tmp_path / "data")
    store.append(1, deltas(1, range(2)))
    commit(store, 1)
    store._database.connection.execute("UPDATE segment SET epoch = 9")

    with pytest.raises(StateCorruptedError, match=r"epoch 9 fail.* restore"):
        store.put_snapshot(snapshot(0, 1))
    store.close()


def test_snapshot_larger_than_sqlite_takes_is_refused(tmp_path: Path) -> None:
    store = created(tmp_path / "data")
    store._database.connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, 10_000)

    with pytest.raises(TooLargeError, match="too large"):
        store.put_snapshot(snapshot(0, 1, bytes(20_000)))

    store.put_snapshot(snapshot(0, 1, b"small"))
    assert loaded(store)[0].snapshot == snapshot(0, 1, b"small")
    store.close()
