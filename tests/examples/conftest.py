"""Each test has a yard: its directory, and processes that end with it."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.e2e.yard import Yard


@pytest.fixture
def yard(tmp_path: Path) -> Iterator[Yard]:
    place = Yard(tmp_path)
    try:
        yield place
    finally:
        place.close()
