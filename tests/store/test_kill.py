"""A killed engine leaves exactly what it had committed, whenever it was killed."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest
from tests.store.values import opened
from tests.store.workload import check

ROOT = Path(__file__).parents[2]


def start(path: Path, *arguments: int) -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", "tests.store.workload", str(path)]
    return subprocess.Popen(
        [*command, *map(str, arguments)], stdout=subprocess.PIPE, text=True, cwd=ROOT
    )


def last_committed(lines: list[str]) -> int:
    epochs = [int(line.split()[1]) for line in lines if line.startswith("committed ")]
    return max(epochs, default=0)


def test_kill_after_every_step_leaves_what_was_committed(tmp_path: Path) -> None:
    path, committed = tmp_path / "data", 0
    for stop_at in range(40):
        with start(path, 20, stop_at) as child:
            assert child.stdout is not None
            told = last_committed(child.stdout.readlines())
        assert child.returncode == -signal.SIGKILL

        store = opened(path)
        committed = check(store, at_least=max(committed, told))
        store.close()

    assert committed > 60


@pytest.mark.slow
def test_kill_at_any_moment_leaves_what_was_committed(tmp_path: Path) -> None:
    path, committed = tmp_path / "data", 0
    for lines in range(1, 200, 10):
        with start(path) as child:
            assert child.stdout is not None
            # It runs on while this reads, and dies somewhere further on.
            said = [child.stdout.readline() for _ in range(lines)]
            child.kill()
            said += child.stdout.readlines()
        assert child.returncode == -signal.SIGKILL

        store = opened(path)
        committed = check(store, at_least=max(committed, last_committed(said)))
        store.close()

    assert committed > 200
