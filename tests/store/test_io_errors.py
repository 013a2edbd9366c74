"""A disk that fails to sync: the outcome is not known, then settled, then right."""

import subprocess
import sys
from pathlib import Path

import pytest
from tests.store.values import committed_epoch, epochs, opened

pytestmark = pytest.mark.needs_tool("strace")

# Says what each call comes to.
PROGRAM = """
import os, sys
from pathlib import Path
from bettong_engine.errors import BettongError
from tests.store.values import commit, committed_epoch, created, deltas, epochs

def attempt(name, call):
    try:
        print(name, call(), flush=True)
    except BettongError as error:
        print(name, type(error).__name__, flush=True)

store = created(Path(sys.argv[1]))
store.append(1, deltas(1, [0]))
commit(store, 1)
store.append(2, deltas(2, [0]))
print("ready", flush=True)
attempt("commit", lambda: commit(store, 2))
attempt("get", lambda: committed_epoch(store))
attempt("sync", store.sync)
attempt("get", lambda: committed_epoch(store))
attempt("commit", lambda: commit(store, 2))
attempt("load", lambda: epochs(store))
os._exit(0)
"""


def run(tmp_path: Path, failing: str) -> list[str]:
    """Return what the program says when some of its syncs fail."""
    command = ["strace", "-f", "-e", f"inject=fdatasync:error=EIO:when={failing}"]
    options = ["-e", "trace=fdatasync,write", "-o", str(tmp_path / "log")]
    result = subprocess.run(
        [*command, *options, sys.executable, "-c", PROGRAM, str(tmp_path / "data")],
        check=True,
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[2],
    )
    return result.stdout.split("ready\n")[1].splitlines()


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> int:
    """The number of the sync that makes epoch 2 durable."""
    root = tmp_path_factory.mktemp("undisturbed")
    assert run(root, "9999")[:2] == ["commit None", "get 2"]
    before, _ = (root / "log").read_text().split('"ready')
    return before.count("fdatasync(") + 1


def test_failed_sync_is_unknown_and_a_later_one_settles_it(
    tmp_path: Path, first: int
) -> None:
    said = run(tmp_path, str(first))

    assert said == [
        "commit StoreUnknownError",
        "get 1",
        "sync None",
        "get 1",
        "commit None",
        "load {0: [1, 2]}",
    ]


def test_nothing_is_read_while_the_outcome_cannot_be_settled(
    tmp_path: Path, first: int
) -> None:
    said = run(tmp_path, f"{first}..{first + 2}")

    assert said == [
        "commit StoreUnknownError",
        "get StoreUnavailableError",
        "sync StoreUnavailableError",
        "get 1",
        "commit None",
        "load {0: [1, 2]}",
    ]


@pytest.mark.parametrize("last", [0, 1, 2, 9])
def test_kill_after_failed_syncs_leaves_one_of_the_two(
    tmp_path: Path, first: int, last: int
) -> None:
    said = run(tmp_path, f"{first}..{first + last}")

    store = opened(tmp_path / "data")
    epoch = committed_epoch(store)
    store.truncate_after(epoch)
    assert epochs(store) == {0: list(range(1, epoch + 1))}
    if "commit None" in said:
        assert epoch == 2
    store.close()
