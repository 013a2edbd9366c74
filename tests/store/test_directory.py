"""Whose data directory it is, and what is refused in it."""

import os
import sqlite3
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from tests.store.values import META, commit, committed_epoch, created, deltas, opened

from bettong_engine.errors import ConfigError, StateCorruptedError, StateLostError
from bettong_engine.store.single import SingleStore


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "data"


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


# Files.


def test_new_directory_and_its_files_are_for_their_user_only(path: Path) -> None:
    old = os.umask(0)
    try:
        store = created(path)
        commit(store, 1)
    finally:
        os.umask(old)

    assert mode(path) == 0o700
    assert {file.name: mode(file) for file in path.iterdir()} == {
        "LOCK": 0o600,
        "IDENTITY": 0o600,
        "bettong.db": 0o600,
        "bettong.db-wal": 0o600,
    }
    store.close()


def test_directory_that_is_a_file_is_refused(path: Path) -> None:
    path.write_text("something else")

    with pytest.raises(ConfigError, match=r"data cannot be used .* name another one"):
        SingleStore(path).open()


def test_creation_that_was_cut_short_is_begun_again(path: Path) -> None:
    path.mkdir()
    (path / "bettong.db.new").write_bytes(b"half of a file")

    created(path).close()

    assert not (path / "bettong.db.new").exists()


def test_crash_between_creation_and_identity_is_mended(path: Path) -> None:
    created(path).close()
    (path / "IDENTITY").unlink()

    store = opened(path)

    assert store.meta() == META
    assert META.cluster_id.hex() in (path / "IDENTITY").read_text()
    store.close()


# The lock.


def test_second_engine_is_refused_and_the_first_named(path: Path) -> None:
    first = created(path)

    with pytest.raises(ConfigError, match=rf"\(pid {os.getpid()}, started 20.*stop "):
        SingleStore(path).open()

    commit(first, 1)
    first.close()
    opened(path).close()


def test_engine_waits_for_one_that_ends(path: Path) -> None:
    first = created(path)
    commit(first, 3)
    # Ends while the second one waits, or before: both are fine.
    ending = threading.Thread(target=first.close)
    second = SingleStore(path)

    ending.start()
    second.open(wait_s=30.0)
    ending.join()

    assert committed_epoch(second) == 3
    second.close()


def test_lock_is_free_when_its_holder_was_killed(path: Path) -> None:
    program = (
        "import sys, pathlib\n"
        "from tests.store.values import created\n"
        "store = created(pathlib.Path(sys.argv[1]))\n"
        "print('open', flush=True)\n"
        "sys.stdin.read()\n"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", program, path],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd=Path(__file__).parents[2],
    )
    assert child.stdout is not None
    with child, child.stdout:
        assert child.stdout.readline() == b"open\n"
        with pytest.raises(ConfigError, match=rf"pid {child.pid}, started"):
            SingleStore(path).open()
        child.kill()

    store = opened(path)
    assert store.meta() == META
    store.close()


def test_store_that_could_not_be_opened_gives_up_the_lock(path: Path) -> None:
    created(path).close()
    database = (path / "bettong.db").read_bytes()
    (path / "bettong.db").write_bytes(b"not a database" * 100)
    with pytest.raises(StateCorruptedError):
        SingleStore(path).open()
    (path / "bettong.db").write_bytes(database)

    opened(path).close()


# What is not ours.


def test_file_of_another_kind_is_refused_and_left_alone(path: Path) -> None:
    path.mkdir()
    file = path / "bettong.db"
    file.write_bytes(b"a letter to a friend" * 10)

    with pytest.raises(StateCorruptedError, match="is not a database"):
        SingleStore(path).open()

    assert file.read_bytes() == b"a letter to a friend" * 10


def test_database_of_another_program_is_refused_and_left_alone(path: Path) -> None:
    path.mkdir()
    other = sqlite3.connect(path / "bettong.db")
    other.execute("PRAGMA journal_mode = WAL")
    other.execute("CREATE TABLE theirs (name TEXT)")
    other.commit()
    before = {file.name: file.read_bytes() for file in path.iterdir()}

    with pytest.raises(StateCorruptedError, match=r"another program .*0x00000000"):
        SingleStore(path).open()

    after = {file.name: file.read_bytes() for file in path.iterdir()}
    del after["LOCK"]
    assert after == before
    other.close()


@pytest.mark.parametrize("version", [0, 2, 77])
def test_other_format_is_refused(path: Path, version: int) -> None:
    created(path).close()
    database = sqlite3.connect(path / "bettong.db")
    database.execute(f"PRAGMA user_version = {version}")
    database.close()

    with pytest.raises(StateCorruptedError, match=f"has format {version}, this .* 1;"):
        SingleStore(path).open()


def test_database_that_has_gone_is_not_taken_for_a_new_one(path: Path) -> None:
    created(path).close()
    (path / "bettong.db").unlink()

    with pytest.raises(StateCorruptedError, match=r"is missing, but .* has held"):
        SingleStore(path).open()


def test_log_without_its_database_is_not_taken_for_a_new_one(path: Path) -> None:
    path.mkdir()
    (path / "bettong.db-wal").write_bytes(b"x" * 100)

    with pytest.raises(StateCorruptedError, match="is missing"):
        SingleStore(path).open()


def test_empty_database_is_not_taken_for_a_new_one(path: Path) -> None:
    created(path).close()
    (path / "bettong.db").write_bytes(b"")

    with pytest.raises(StateCorruptedError, match="0 bytes of header"):
        SingleStore(path).open()


def test_database_of_another_application_is_refused(path: Path, tmp_path: Path) -> None:
    created(path).close()
    other = SingleStore(tmp_path / "other")
    other.open()
    other.close()
    (path / "bettong.db").write_bytes((tmp_path / "other/bettong.db").read_bytes())

    with pytest.raises(StateCorruptedError, match="several copies are mixed"):
        SingleStore(path).open()


# Durability `memory`.


def test_state_that_was_only_in_memory_is_lost_and_stays_so(path: Path) -> None:
    store = created(path, is_memory=True)
    store.append(1, deltas(1, [0]))
    commit(store, 1)
    store.close()

    for is_memory in (True, True, False):
        with pytest.raises(StateLostError, match=r"remove that directory, .* disk"):
            SingleStore(path, is_memory=is_memory).open()


def test_conflict_does_not_count_as_state(path: Path) -> None:
    store = created(path, is_memory=True)
    store.append(1, deltas(1, [0]))
    store.transact({"commit": 9}, {"commit": b"1"})
    store.close()

    SingleStore(path, is_memory=True).open()


def test_nothing_is_lost_when_nothing_was_committed(path: Path) -> None:
    store = created(path, is_memory=True)
    store.campaign(b"worker")
    commit(store, 0)
    store.append(1, deltas(1, [0]))
    store.close()

    store = SingleStore(path, is_memory=True)
    store.open()

    meta = store.meta()
    assert meta is not None
    assert meta.durability == "memory"
    assert store.get(["commit"]) == {}
    store.close()


def test_state_in_memory_is_lost_also_after_a_sync(path: Path) -> None:
    store = created(path, is_memory=True)
    store.append(1, deltas(1, [0]))
    store.sync()
    store.close()

    with pytest.raises(StateLostError):
        SingleStore(path, is_memory=True).open()


@pytest.mark.parametrize("is_memory", [False, True])
def test_durability_is_for_life(path: Path, *, is_memory: bool) -> None:
    created(path, is_memory=is_memory).close()

    with pytest.raises(ConfigError, match="was created with durability"):
        SingleStore(path, is_memory=not is_memory).open()
