"""The detector finds nothing in a good run, and everything in a bad one."""

import importlib.util
import random
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
from tests.e2e.yard import COMPUTE, ENGINE, PLUGINS, Yard, wait_until
from tests.examples.running import EXAMPLES, run_to_end, script

FOLDER = EXAMPLES / "sequence_window"
PROGRAM = "sequence_window/sequence_window.py"


def load_check() -> ModuleType:
    spec = importlib.util.spec_from_file_location("check", FOLDER / "check.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


check = load_check()


def windows(count: int, keys: int) -> list[str]:
    return [f"{i % keys} {check.window_of(i // keys + 1)}" for i in range(count)]


@pytest.mark.e2e
def test_run_gives_what_is_expected(yard: Yard) -> None:
    output = yard.place / "windows.txt"

    run_to_end(yard, PROGRAM, output, 12, 3)

    assert output.read_text() == (FOLDER / "expected.txt").read_text()


@pytest.mark.e2e
def test_two_computations_pass_the_check(yard: Yard) -> None:
    output = yard.place / "windows.txt"

    run_to_end(yard, PROGRAM, output, 5000, 7, computes=2)

    shown = script("sequence_window/check.py", output, "--count", 5000, "--keys", 7)
    assert shown == "5000 windows of 7 keys, all as they must be\n"


@pytest.mark.e2e
def test_kills_change_nothing_and_the_check_watches(yard: Yard) -> None:
    output = yard.place / "windows.txt"
    command = [
        sys.executable, FOLDER / "check.py", output,
        "--count", "6000", "--keys", "10", "--follow",
    ]  # fmt: skip

    run = yard.run(EXAMPLES / PROGRAM, output, 6000, 10, 2000)
    wait_until(output.exists, f"output: {run}")
    checker = yard.start(command)
    for victim, size in (((COMPUTE,), 20_000), ((ENGINE, *PLUGINS), 60_000)):
        wait_until(lambda: output.stat().st_size > size, f"output: {run}")  # noqa: B023
        yard.kill(*victim)
    assert run.ends() == -signal.SIGKILL
    again = yard.run(EXAMPLES / PROGRAM, output, 6000, 10, 2000)

    assert again.ends() == 0, again
    assert checker.ends() == 0, checker
    assert output.read_text().splitlines() == windows(6000, 10)


def test_good_lines_pass_in_any_pieces() -> None:
    checker, lines = check.Checker(), windows(100, 7)

    checker.feed(lines[:33])
    checker.feed(lines[33:])
    checker.finish(count=100, keys=7)

    assert checker.lines == 100
    assert checker.last["1"] == 15


def lose(lines: list[str]) -> None:
    del lines[12]


def lose_two_of_a_key(lines: list[str]) -> None:
    del lines[15]
    del lines[12]


def repeat(lines: list[str]) -> None:
    lines.insert(12, lines[11])


def reorder(lines: list[str]) -> None:
    lines.insert(12, lines.pop(15))


def restore_another_state(lines: list[str]) -> None:
    lines[12] = "0 [1, 2, 3, 5]"


def tear(lines: list[str]) -> None:
    lines[12] = "0 [2, 3,"


def blank(lines: list[str]) -> None:
    lines[12] = ""


@pytest.mark.parametrize(
    ("spoil", "place", "problem"),
    [
        (lose, 15, "key 0: .*: 5 is lost, or comes too late"),
        (lose_two_of_a_key, 17, "key 0: .*: 5 to 6 are lost, or come too late"),
        (repeat, 13, "key 2: .*: 4 is repeated, or comes too late"),
        (reorder, 13, "key 0: .*: 5 is lost, or comes too late"),
        (restore_another_state, 13, "key 0: .*: the state was not that of the record"),
        (tear, 13, "key 0: .*: this is no window"),
        (blank, 13, "key : .*: this is no window"),
    ],
)
def test_what_is_wrong_is_found_at_its_line(
    spoil: Callable[[list[str]], None], place: int, problem: str
) -> None:
    lines = windows(30, 3)
    spoil(lines)

    with pytest.raises(check.WindowError, match=problem) as raised:
        check.Checker().feed(lines)

    assert raised.value.place == place


def test_missing_end_is_found() -> None:
    checker = check.Checker()
    checker.feed(windows(28, 3))

    with pytest.raises(check.WindowError, match=r"key 1 ends at 9, not 10; key 2"):
        checker.finish(count=30, keys=3)
    with pytest.raises(check.WindowError, match="key 0 ends at 10, not 9"):
        checker.finish(count=27, keys=3)


@pytest.mark.parametrize("seed", range(50))
def test_any_two_lines_of_a_key_that_change_places_are_found(seed: int) -> None:
    chance, lines = random.Random(seed), windows(60, 4)
    first, second = chance.sample(range(seed % 4, 60, 4), 2)
    lines[first], lines[second] = lines[second], lines[first]

    with pytest.raises(check.WindowError) as raised:
        check.Checker().feed(lines)

    assert raised.value.place == min(first, second) + 1


def test_file_that_ends_inside_a_line_is_found(tmp_path: Path) -> None:
    path = tmp_path / "windows.txt"
    path.write_text("\n".join(windows(9, 3)))

    with pytest.raises(check.WindowError, match="ends inside a line"):
        check.check_file(path, count=9, keys=3)
