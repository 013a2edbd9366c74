"""Each guard is needed: without it, some schedule breaks a claim."""

import pytest
from tests.sim.hunting import check_healthy, hunt
from tests.sim.mutants import MUTANTS, Mutant

# Where a mutant has schedules of its own, as many of them must end well unpatched.
HEALTHY = 4


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_mutant_is_noticed(mutant: Mutant) -> None:
    if mutant.options:
        check_healthy(mutant, HEALTHY)

    found = hunt(mutant)

    assert found is not None, f"{mutant.sentence} Nobody noticed."
