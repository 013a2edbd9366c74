"""Records on which user code fails: nothing is lost under any policy."""

import json
import re
from pathlib import Path

import pytest
from tests.e2e.windows import check_continuously, undisturbed, window_of
from tests.e2e.yard import PROGRAMS, Run, Yard

pytestmark = pytest.mark.e2e

PROGRAM = PROGRAMS / "window_lines.py"
COUNT, KEYS, BAD = 2_000, 10, 1_234
BAD_KEY, BAD_NUMBER = str(BAD % KEYS), BAD // KEYS + 1


def write_input(yard: Yard, mood: str) -> Path:
    """Write numbered lines, one of which has a mood."""
    lines = [f"{i % KEYS} {i // KEYS + 1}\n" for i in range(COUNT)]
    lines[BAD] = lines[BAD].replace("\n", f" {mood}\n")
    path = yard.place / "in.txt"
    path.write_text("".join(lines))
    return path


def start(yard: Yard, source: Path, *words: str) -> Run:
    mend = f"mend={yard.place / 'mended'}"
    return yard.run(PROGRAM, source, yard.place / "out.txt", mend, *words)


def output(yard: Yard) -> list[str]:
    path = yard.place / "out.txt"
    return path.read_text().splitlines() if path.exists() else []


@pytest.mark.parametrize(
    ("mood", "code", "says"),
    [
        ("raise", "USER_CODE", ("window", f"key b'{BAD_KEY}'", "a bad day")),
        ("raise-early", "USER_CODE", ("split", "a bad day in the source")),
        ("huge-output", "TOO_LARGE", ("window", "1,048,577 bytes")),
        ("huge-state", "TOO_LARGE", ("window", f"key b'{BAD_KEY}'")),
    ],
)
def test_under_fail_it_stops_and_once_mended_goes_on(
    yard: Yard, mood: str, code: str, says: tuple[str, ...]
) -> None:
    source = write_input(yard, mood)

    for _ in range(2):
        run = start(yard, source)
        assert run.ends() == 1, run
        for text in (code, *says, "Nothing is lost"):
            assert text in run.log(), run
        assert ("Traceback" in run.log()) == mood.startswith("raise")
        assert undisturbed(COUNT, KEYS)[: len(output(yard))] == output(yard)
        assert len(output(yard)) <= BAD

    (yard.place / "mended").touch()
    run = start(yard, source)
    assert run.ends() == 0, run
    assert output(yard) == undisturbed(COUNT, KEYS)


def windows_of_others(lines: list[str]) -> list[str]:
    return [line for line in lines if not line.startswith(f"{BAD_KEY} ")]


@pytest.mark.parametrize("mood", ["raise", "raise-early", "huge-output", "huge-state"])
def test_under_skip_it_leaves_nothing_behind(yard: Yard, mood: str) -> None:
    run = start(yard, write_input(yard, mood), "policy=skip")

    assert run.ends() == 0, run

    assert_only_the_bad_one_is_missing(output(yard))
    assert re.search(r"records_skipped +count=1\n", run.log()), run


def test_under_dead_letter_it_is_told_in_full(yard: Yard) -> None:
    dead = yard.place / "dead.txt"
    source = write_input(yard, "raise")

    run = start(yard, source, "policy=dead_letter", f"dead={dead}")

    assert run.ends() == 0, run
    assert_only_the_bad_one_is_missing(output(yard))
    letters = [json.loads(line) for line in dead.read_text().splitlines()]
    assert len(letters) == 1
    assert letters[0]["step"] == "window"
    assert letters[0]["key"] == BAD_KEY
    assert str(BAD_NUMBER) in str(letters[0]["value"])
    assert "a bad day" in letters[0]["error"]
    assert "Traceback" in letters[0]["stack"]


def test_oversize_line_stops_the_source_naming_file_and_byte(yard: Yard) -> None:
    source = write_input(yard, "raise-not")
    lines = source.read_text().splitlines(keepends=True)
    at = sum(map(len, lines[:BAD]))
    huge = [*lines[:BAD], "x" * (1 << 20) + lines[BAD], *lines[BAD + 1 :]]
    source.write_text("".join(huge))

    run = start(yard, source)
    assert run.ends() == 1, run
    for text in ("TOO_LARGE", str(source), str(at), "Nothing is lost"):
        assert text in run.log(), run
    assert output(yard) == undisturbed(BAD, KEYS)[: len(output(yard))]

    source.write_text("".join(lines))
    run = start(yard, source)
    assert run.ends() == 0, run
    assert output(yard) == undisturbed(COUNT, KEYS)


def assert_only_the_bad_one_is_missing(lines: list[str]) -> None:
    """Check that the state is that of before the call: its window lacks that number."""
    others = windows_of_others(undisturbed(COUNT, KEYS))
    assert windows_of_others(lines) == others
    mine = [line for line in lines if line not in set(others)]
    numbers = [n for n in range(1, COUNT // KEYS + 1) if n != BAD_NUMBER]
    padded = [0, 0, 0, *numbers]
    assert mine == [f"{BAD_KEY} {padded[i : i + 4]}" for i in range(len(numbers))]
    assert check_continuously(others)
    assert window_of(1) == "[0, 0, 0, 1]"
