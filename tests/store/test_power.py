"""A kill inside any system call, or a power failure, loses nothing committed."""

import random
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from tests.store.recording import Call, Disk, record
from tests.store.workload import check

from bettong_engine.store.single import SingleStore

pytestmark = pytest.mark.needs_tool("strace")

ROOT = Path(__file__).parents[2]
EPOCHS = 14
# The log is copied into the file after every few epochs.
PROGRAM = (
    "from bettong_engine.store import single, sqlite\n"
    "sqlite.LOG_BYTES_MAX = 30 * sqlite.PAGE_BYTES\n"
    "single.TIDY_BYTES = 25 * sqlite.PAGE_BYTES\n"
    "from tests.store.workload import main\n"
    "main()\n"
)


@pytest.fixture(scope="module")
def calls(tmp_path_factory: pytest.TempPathFactory) -> list[Call]:
    root = tmp_path_factory.mktemp("recorded")
    command = [sys.executable, "-c", PROGRAM, str(root / "data"), str(EPOCHS)]
    calls = record(command, root / "data", root / "log")
    assert sum(call.kind == "said" for call in calls) > 3 * EPOCHS
    # What is recorded is all there was.
    disk = Disk()
    for call in calls:
        disk.do(call)
    found = {file.name: file.read_bytes() for file in (root / "data").iterdir()}
    assert disk.after_kill() == found
    return calls


def test_log_is_copied_into_the_file_while_the_store_works(calls: list[Call]) -> None:
    first = next(n for n, call in enumerate(calls) if promised(call) == 1)

    copies = [call for call in calls[first:-5] if call.file == "bettong.db"]

    assert sum(call.kind == "sync" for call in copies) >= 3


def test_kill_inside_any_call_loses_nothing_committed(
    tmp_path: Path, calls: list[Call]
) -> None:
    disk, committed = Disk(), 0
    for call in calls:
        committed = max(committed, promised(call))
        recover(tmp_path, disk.after_kill(), committed)
        if call.kind == "change" and call.data:
            torn = replace(call, data=call.data[: len(call.data) // 2])
            disk.do(torn)
            recover(tmp_path, disk.after_kill(), committed)
        disk.do(call)

    assert committed == EPOCHS


@pytest.mark.parametrize("seed", range(3))
def test_power_failure_loses_nothing_committed(
    tmp_path: Path, calls: list[Call], seed: int
) -> None:
    rng, disk, committed = random.Random(seed), Disk(), 0
    for call in calls:
        disk.do(call)
        committed = max(committed, promised(call))
        recover(tmp_path, disk.after_power_failure(rng), committed)

    assert committed == EPOCHS


def test_log_of_a_killed_engine_is_on_the_disk_before_it_is_relied_on(
    tmp_path: Path,
) -> None:
    path = tmp_path / "data"
    command = [sys.executable, "-m", "tests.store.workload", str(path)]
    killed = subprocess.run([*command, "9", "20"], check=False, cwd=ROOT)
    assert killed.returncode == -signal.SIGKILL
    before = (path / "bettong.db").read_bytes()

    calls = record([*command, "0"], path, tmp_path / "log")
    opened_at = next(n for n, call in enumerate(calls) if call.kind == "said")
    first_sync = next(
        n
        for n, call in enumerate(calls)
        if (call.kind, call.file) == ("sync", "bettong.db")
    )
    first_change = next(
        n
        for n, call in enumerate(calls)
        if (call.kind, call.file) == ("change", "bettong.db")
    )

    assert first_change < first_sync < opened_at
    assert (path / "bettong.db").read_bytes() != before


def promised(call: Call) -> int:
    if call.kind == "said" and call.data and call.data.startswith(b"committed "):
        return int(call.data.split()[1])
    return 0


def recover(root: Path, files: dict[str, bytes], committed: int) -> None:
    path = root / "data"
    shutil.rmtree(path, ignore_errors=True)
    path.mkdir()
    for name, data in files.items():
        (path / name).write_bytes(data)
    store = SingleStore(path)
    store.open()
    check(store, at_least=committed)
    store.close()
