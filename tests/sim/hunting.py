"""Runs schedules against a mutant until one of them notices."""

from dataclasses import replace

from tests.sim.mutants import Mutant, applied
from tests.sim.sdk_plugins import SdkPlugins

from bettong.errors import BettongError
from bettong_engine.sim.claims import Violation
from bettong_engine.sim.options import SimOptions, draw
from bettong_engine.sim.reference import ReferencePlugins
from bettong_engine.sim.world import run

# Enough for every healthy schedule here, and no longer than needed.
HEAL_STEPS = 20_000


def plugins_of(options: SimOptions, kind: str) -> SdkPlugins | ReferencePlugins:
    return SdkPlugins(options) if kind == "sdk" else ReferencePlugins(options)


def check_healthy(mutant: Mutant, schedules: int) -> None:
    """Run schedules of a mutant without its patch: all must end well."""
    for seed in range(schedules):
        options = replace(draw(seed), heal_steps=HEAL_STEPS, **mutant.options)
        run(options, plugins_of(options, mutant.plugins))


def hunt(mutant: Mutant) -> tuple[int, str] | None:
    """Return how many schedules it took and what was noticed; None: it survived."""
    with applied(mutant):
        for seed in range(mutant.seeds_max):
            options = replace(draw(seed), heal_steps=HEAL_STEPS, **mutant.options)
            try:
                run(options, plugins_of(options, mutant.plugins))
            except (Violation, AssertionError, BettongError) as found:
                return seed + 1, f"{type(found).__name__}: {found}"
    return None
