"""Replays every scenario. `pytest --rewrite` writes what they give now."""

from pathlib import Path

import pytest
from tests.datadriven import replay
from tests.scenarios import players

HERE = Path(__file__).parent
PATHS = sorted(HERE.glob("*/*.txt"))


@pytest.mark.parametrize("path", PATHS, ids=lambda p: f"{p.parent.name}/{p.stem}")
def test_scenario_gives_what_it_says(path: Path, pytestconfig: pytest.Config) -> None:
    player = getattr(players, path.parent.name)()

    actual = replay(path, player)

    if pytestconfig.getoption("--rewrite"):
        path.write_text(actual)
    assert actual == path.read_text()


def test_every_machine_has_a_story() -> None:
    told = {path.parent.name for path in PATHS}

    assert told == {"alignment", "boundary", "coordinator", "delivery"}
