"""Each example, run for real, gives exactly what its folder says."""

from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.e2e.yard import Yard
from tests.examples.running import EXAMPLES, run_to_end, script

pytestmark = pytest.mark.e2e


def by_key(lines: list[str], key_of: Callable[[str], str]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = defaultdict(list)
    for line in lines:
        found[key_of(line)].append(line)
    return dict(found)


def first_word(line: str) -> str:
    return line.split(" ", 1)[0]


def counted(text: str) -> list[str]:
    """Return the updates of a word count, one after the other."""
    counts: dict[str, int] = defaultdict(int)
    updates = []
    for word in text.split():
        counts[word] += 1
        updates.append(f"{word} => {counts[word]}")
    return updates


@pytest.mark.parametrize("computes", [1, 2])
def test_word_count(yard: Yard, computes: int) -> None:
    folder, output = EXAMPLES / "word_count", yard.place / "counts.txt"
    text = (folder / "bill_of_rights.txt").read_text()

    run_to_end(
        yard,
        "word_count/word_count.py",
        folder / "bill_of_rights.txt",
        output,
        computes=computes,
    )

    lines = output.read_text().splitlines()
    expected = counted(text)
    assert len(lines) == 482
    assert by_key(lines, first_word) == by_key(expected, first_word)
    if computes == 1:
        assert lines == expected
    final = {word: line.split()[-1] for word, line in last_of(lines).items()}
    told = (folder / "expected_counts.txt").read_text()
    assert final == dict(line.split() for line in told.splitlines())
    assert told == script("word_count/expected.py", stdin=text)


def last_of(lines: list[str]) -> dict[str, str]:
    return {first_word(line): line for line in lines}


def test_word_count_is_shown_as_a_table(tmp_path: Path) -> None:
    folder, output = EXAMPLES / "word_count", tmp_path / "counts.txt"
    updates = counted((folder / "bill_of_rights.txt").read_text())
    output.write_text("\n".join(updates) + "\n")

    shown = script("word_count/show.py", output)

    assert "482 updates, 238 distinct words" in shown
    rows = [line.split() for line in shown.splitlines()]
    (the,) = (row for row in rows if row[1:2] == ["the"])
    assert the[3] == "37"
    assert sum("│" in row for row in rows) == 20


def test_passthrough(yard: Yard) -> None:
    poem, output = EXAMPLES / "passthrough/poem.txt", yard.place / "out.txt"

    run_to_end(yard, "passthrough/passthrough.py", poem, output)

    assert output.read_bytes() == poem.read_bytes()


def test_celsius(yard: Yard) -> None:
    folder, output = EXAMPLES / "celsius", yard.place / "out.txt"

    run_to_end(yard, "celsius/celsius.py", folder / "celsius.txt", output)

    assert output.read_text() == (folder / "expected.txt").read_text()


@pytest.mark.parametrize("kind", ["stateless", "stateful"])
def test_alerts(yard: Yard, kind: str) -> None:
    folder, output = EXAMPLES / "alerts", yard.place / "out.txt"
    transactions = folder / "transactions.jsonl"
    expected = (folder / f"expected_{kind}.txt").read_text()

    run_to_end(yard, f"alerts/alerts_{kind}.py", transactions, output)

    assert output.read_text() == expected
    text = transactions.read_text()
    assert script("alerts/expected.py", kind, stdin=text) == expected
    assert script("alerts/make_input.py") == text


def test_stateful_alerts_of_two_computations_are_the_same_for_each_user(
    yard: Yard,
) -> None:
    folder, output = EXAMPLES / "alerts", yard.place / "out.txt"
    expected = (folder / "expected_stateful.txt").read_text().splitlines()

    run_to_end(
        yard,
        "alerts/alerts_stateful.py",
        folder / "transactions.jsonl",
        output,
        computes=2,
    )

    lines = output.read_text().splitlines()
    assert by_key(lines, first_word) == by_key(expected, first_word)


def test_programs_run_without_arguments_where_one_is(yard: Yard) -> None:
    run_to_end(yard, "celsius/celsius.py")

    expected = (EXAMPLES / "celsius/expected.txt").read_text()
    assert (yard.place / "fahrenheit.txt").read_text() == expected


def test_every_example_has_a_readme_that_tells_its_command() -> None:
    folders = [path for path in EXAMPLES.iterdir() if path.is_dir()]
    index = (EXAMPLES / "README.md").read_text()

    assert folders
    for folder in folders:
        readme = (folder / "README.md").read_text()
        assert f"bettong run examples/{folder.name}/" in readme, folder
        assert f"({folder.name}/)" in index, folder
