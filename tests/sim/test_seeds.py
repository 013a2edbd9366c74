"""Schedules by seed: every claim holds, whatever the dice bring."""

from collections import Counter

import pytest
from tests.sim.hunting import plugins_of

from bettong_engine.sim.claims import Violation
from bettong_engine.sim.options import SimOptions, draw
from bettong_engine.sim.world import Result, run

CHUNK = 20
# With the machines of the SDK, and with plugins written on messages alone.
CHUNKS = [("sdk", n) for n in range(20)] + [("reference", n) for n in range(20, 30)]

# Must come about in a hundred schedules, or the nemesis has gone lame.
SITUATIONS = {
    "a partition is folded into a snapshot",
    "a plugin reports trouble",
    "a stage has no plugin",
    "a target does not answer",
    "a zombie engine is deposed",
    "an engine crashes before its transaction",
    "an engine crashes between transaction and announcement",
    "an engine starts from the disk",
    "an older plugin is fenced",
    "the outcome of a transaction is looked up",
    "the store refuses and the job is tried again",
}


def run_seed(options: SimOptions, kind: str) -> Result:
    try:
        return run(options, plugins_of(options, kind))
    except (Violation, AssertionError) as found:
        command = f"python -m tests.sim.replay --seed {options.seed} --plugins {kind}"
        raise AssertionError(f"{found}\nreplay it: {command}") from found


@pytest.mark.parametrize(("kind", "chunk"), CHUNKS)
def test_every_claim_holds_in_every_schedule(kind: str, chunk: int) -> None:
    first = chunk * CHUNK
    results = [run_seed(draw(s), kind) for s in range(first, first + CHUNK)]

    assert sum(result.commits for result in results) > CHUNK


@pytest.mark.parametrize("kind", ["sdk", "reference"])
def test_same_seed_gives_the_same_trace(kind: str) -> None:
    for seed in (3, 40, 77):
        assert run_seed(draw(seed), kind).trace == run_seed(draw(seed), kind).trace


def test_what_is_rare_comes_about() -> None:
    seen: Counter[str] = Counter()
    faults: Counter[str] = Counter()
    for seed in range(1000, 1100):
        result = run_seed(draw(seed), "reference")
        seen += result.situations
        faults += result.faults

    assert set(seen) >= SITUATIONS
    assert all(faults[name] for name in ("plugin_crash", "pause", "late_message"))
