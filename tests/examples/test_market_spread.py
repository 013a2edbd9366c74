"""Two streams on one state: exact on one tape, right on every run of two sources."""

from pathlib import Path

import pytest
from tests.e2e.yard import Yard
from tests.examples.running import EXAMPLES, run_to_end, script

pytestmark = pytest.mark.e2e

FOLDER = EXAMPLES / "market_spread"


def rows_of(path: Path) -> list[list[str]]:
    return [line.split(",") for line in path.read_text().splitlines()]


def tape() -> str:
    rows = rows_of(FOLDER / "orders.csv") + rows_of(FOLDER / "quotes.csv")
    ordered = sorted(rows, key=lambda row: int(row[0]))
    return "".join(",".join(row) + "\n" for row in ordered)


def test_one_tape_gives_one_result(yard: Yard) -> None:
    source, rejected, accepted = (yard.place / name for name in ("t", "r", "a"))
    source.write_text(tape())
    expected = (FOLDER / "expected_rejected.txt").read_text()

    run_to_end(yard, "market_spread/market_replay.py", source, rejected, accepted)

    assert rejected.read_text() == expected
    plain = [
        script("market_spread/expected.py", kind, stdin=tape())
        for kind in ("rejected", "accepted")
    ]
    assert plain == [expected, accepted.read_text()]


def is_too_wide(quote: str) -> bool:
    if quote == "-":
        return True
    bid, offer = (int(price) for price in quote.split("/"))
    return offer - bid >= 5 or (offer - bid) * 40 >= offer + bid


@pytest.mark.parametrize("computes", [1, 2])
def test_two_sources_give_right_decisions_in_order(yard: Yard, computes: int) -> None:
    rejected, accepted = yard.place / "r", yard.place / "a"

    run_to_end(
        yard,
        "market_spread/market_spread.py",
        FOLDER / "orders.csv",
        FOLDER / "quotes.csv",
        rejected,
        accepted,
        computes=computes,
    )

    orders = [row[2:] for row in rows_of(FOLDER / "orders.csv")]
    quotes = [row[2:] for row in rows_of(FOLDER / "quotes.csv")]
    for path, is_rejected in ((rejected, True), (accepted, False)):
        found = rows_of(path)
        assert all(is_too_wide(row[-1]) is is_rejected for row in found)
        for symbol in {row[1] for row in orders}:
            numbers = [int(row[0]) for row in found if row[1] == symbol]
            assert numbers == sorted(numbers), f"{symbol}: orders out of order"
    decided = sorted(rows_of(rejected) + rows_of(accepted), key=lambda row: int(row[0]))
    assert [row[:-1] for row in decided] == orders
    for symbol in {row[1] for row in orders}:
        met = [row[-1] for row in decided if row[1] == symbol]
        told = ["-", *("/".join(row[1:]) for row in quotes if row[0] == symbol)]
        assert is_in_order(met, told), f"{symbol}: quotes out of order"


def is_in_order(met: list[str], told: list[str]) -> bool:
    """Tell whether `met` could be seen by looking at `told` now and then, in order."""
    place = 0
    for quote in met:
        while place < len(told) and told[place] != quote:
            place += 1
        if place == len(told):
            return False
    return True


def test_quotes_out_of_order_are_noticed() -> None:
    assert is_in_order(["-", "1/2", "1/2", "3/4"], ["-", "1/2", "2/3", "3/4"])
    assert not is_in_order(["1/2", "-"], ["-", "1/2"])
    assert not is_in_order(["9/9"], ["-", "1/2"])


def test_input_is_what_its_script_makes(tmp_path: Path) -> None:
    script("market_spread/make_input.py", tmp_path)

    for name in ("orders.csv", "quotes.csv"):
        assert (tmp_path / name).read_text() == (FOLDER / name).read_text()
