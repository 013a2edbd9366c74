"""A full disk stops commits, says so, and loses nothing; room ends it."""

import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.store.values import (
    META,
    commit,
    committed_epoch,
    created,
    deltas,
    epochs,
    opened,
    snapshot,
)

from bettong_engine.errors import ConfigError, StoreUnavailableError
from bettong_engine.store.single import SingleStore

pytestmark = pytest.mark.needs_tool("tmpfs")


@pytest.fixture
def disk() -> Iterator[Path]:
    """A disk of one MiB.

    Not below tmp_path: what a failed test leaves open there would keep pytest from
    cleaning up.
    """
    mount = Path(tempfile.mkdtemp(prefix="bettong-disk-"))
    subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "bettong-test", mount], check=True
    )
    try:
        yield mount
    finally:
        subprocess.run(["umount", "--lazy", mount], check=True)
        mount.rmdir()


def make_room(disk: Path, size: str = "64m") -> None:
    subprocess.run(["mount", "-o", f"remount,size={size}", disk], check=True)


def fill(store: SingleStore) -> int:
    """Commit epochs until the disk is full; return the one that did not fit."""
    epoch = 0

    def commit_on_and_on() -> None:
        nonlocal epoch
        while epoch < 1000:
            epoch += 1
            store.append(epoch, deltas(epoch, range(4), size=5_000))
            commit(store, epoch)

    with pytest.raises(
        StoreUnavailableError, match=r"bettong.db: the disk is full; fr"
    ):
        commit_on_and_on()
    return epoch


def test_full_disk_keeps_what_was_committed_and_what_waits(disk: Path) -> None:
    store = created(disk / "data")
    refused = fill(store)
    for _ in range(3):
        with pytest.raises(StoreUnavailableError, match="full"):
            commit(store, refused)
    # The next epoch is prepared already.
    store.append(refused + 1, deltas(refused + 1, range(4), size=5_000))
    before = epochs(store)

    make_room(disk)
    commit(store, refused)
    commit(store, refused + 1)

    assert before == {number: list(range(1, refused)) for number in range(4)}
    assert committed_epoch(store) == refused + 1
    assert epochs(store) == {n: list(range(1, refused + 2)) for n in range(4)}
    store.close()


def test_kill_on_a_full_disk_leaves_what_was_committed(disk: Path) -> None:
    store = created(disk / "data")
    refused = fill(store)
    files = {file.name: file.read_bytes() for file in (disk / "data").iterdir()}
    store.close()
    for name, data in files.items():
        (disk / "data" / name).unlink(missing_ok=True)
        make_room(disk)
        (disk / "data" / name).write_bytes(data)

    store = opened(disk / "data")

    assert committed_epoch(store) == refused - 1
    assert epochs(store) == {n: list(range(1, refused)) for n in range(4)}
    store.close()


def test_snapshot_that_does_not_fit_leaves_the_old_one_and_the_deltas(
    disk: Path,
) -> None:
    store = created(disk / "data")
    store.put_snapshot(snapshot(0, 0, b"old"))
    store.append(1, deltas(1, [0]))
    commit(store, 1)
    store.append(2, deltas(2, [0]))

    with pytest.raises(StoreUnavailableError, match="full"):
        store.put_snapshot(snapshot(0, 1, bytes(2_000_000)))
    (found,) = store.load()
    commit(store, 2)

    assert found.snapshot == snapshot(0, 0, b"old")
    assert found.deltas == deltas(1, [0])
    assert epochs(store) == {0: [1, 2]}
    store.close()


def test_truncation_that_does_not_fit_is_tried_again(disk: Path) -> None:
    store = created(disk / "data")
    refused = fill(store)
    filler = disk / "filler"
    try:
        filler.write_bytes(bytes(2_000_000))
    except OSError:
        pass

    with pytest.raises(StoreUnavailableError, match="full"):
        store.truncate_after(refused - 2)
    before = epochs(store)
    filler.unlink()
    make_room(disk)
    store.truncate_after(refused - 2)

    assert before[0] == list(range(1, refused))
    assert epochs(store)[0] == list(range(1, refused - 1))
    store.close()


def test_store_is_not_created_on_a_full_disk_but_later(disk: Path) -> None:
    filler = disk / "filler"
    try:
        filler.write_bytes(bytes(2_000_000))
    except OSError:
        pass
    (disk / "data").mkdir()

    with pytest.raises(StoreUnavailableError, match="free some space"):
        created(disk / "data")
    filler.unlink()

    store = created(disk / "data")
    commit(store, 1)
    store.close()


def test_creation_that_runs_out_of_room_anywhere_can_be_repeated(disk: Path) -> None:
    refused = 0
    for pages in range(4, 60):
        path = disk / f"{pages}"
        make_room(disk, f"{4 * pages}k")
        try:
            created(path).close()
        except (ConfigError, StoreUnavailableError):
            refused += 1
        make_room(disk)

        store = SingleStore(path)
        store.open()
        if store.meta() is None:
            store.create(META)
        commit(store, 1)
        store.close()
        store = opened(path)
        assert committed_epoch(store) == 1
        store.close()
        shutil.rmtree(path)

    assert 10 < refused < 50
