"""Bugs that the simulator has found, as the smallest schedules that showed them."""

from dataclasses import dataclass, field
from typing import Any

import pytest
from tests.sim.hunting import plugins_of

from bettong_engine.sim.claims import Violation
from bettong_engine.sim.options import SimOptions
from bettong_engine.sim.world import run


@dataclass(frozen=True, slots=True)
class Regression:
    """What went wrong, and schedules that showed it: seeds with the same options."""

    name: str
    sentence: str
    options: dict[str, Any] = field(default_factory=dict)
    seeds: int = 12
    kind: str = "sdk"


REGRESSIONS = [
    Regression(
        "reads_deadlock_on_shared_credit",
        "A read of many frames that a cut waits for starved: another stream's frame,"
        " parked behind the cut, had the last credit of their channel.",
        {
            "shape": "fork",
            "streams": 3,
            "records": 26,
            "records_a_read": 8,
            "credit_records": 2,
            "batch_records": 2,
            "computes": 3,
        },
        kind="reference",
    ),
    Regression(
        "finished_while_a_generation_begins",
        "A worker said that all is done while the next generation was being written:"
        " the coordinator stopped with an assertion.",
        {
            "records": 6,
            "faults": (("session_break", 0.02), ("sink_trouble", 0.02)),
            "speeds": (("store", 0.08), ("tell", 0.4)),
        },
        seeds=30,
    ),
    Regression(
        "connections_are_reset_before_they_are_named",
        "A new process was told to go on with connections of one that had died: the"
        " application paused.",
        {"is_local": True, "streams": 2, "faults": (("plugin_crash", 0.02),)},
    ),
    Regression(
        "source_attaches_in_mid_generation",
        "A source came back before its loss had begun a generation: its first frame"
        " followed the last of the one before.",
        {"faults": (("session_break", 0.02),), "streams": 2},
        seeds=20,
    ),
    Regression(
        "drain_while_a_cut_waits",
        "The cut of a drain was lost when the cut before it waited for a read: the"
        " engine never ended.",
        {
            "faults": (("drain", 0.02), ("stall", 0.02)),
            "credit_records": 1,
            "batch_records": 1,
            "records_a_read": 8,
        },
    ),
    Regression(
        "letter_for_what_was_skipped",
        "A target that cannot say where it stands got an output again whose skip mark"
        " was trimmed: it became a second dead letter.",
        {
            "refuses_every": 5,
            "sink_is_exact": False,
            "faults": (("plugin_crash", 0.02), ("session_break", 0.02)),
        },
        seeds=20,
        kind="reference",
    ),
]


def options_of(regression: Regression, seed: int) -> SimOptions:
    defaults: dict[str, Any] = {"fault_steps": 400, "heal_steps": 20_000}
    return SimOptions(seed, **{**defaults, **regression.options})


@pytest.mark.parametrize("regression", REGRESSIONS, ids=lambda r: r.name)
def test_bug_stays_away(regression: Regression) -> None:
    for seed in range(regression.seeds):
        options = options_of(regression, seed)
        result = run(options, plugins_of(options, regression.kind))

        assert result.commits, regression.sentence


@pytest.mark.xfail(
    reason="the engine forgets a connection when its end is committed; a process that"
    " did not hear of it, and dials again, names it as a new one",
    strict=True,
    raises=Violation,
)
@pytest.mark.parametrize("seed", [19, 44])
def test_connections_survive_the_loss_of_a_session(seed: int) -> None:
    options = SimOptions(
        seed,
        is_local=True,
        local_sessions_survive=True,
        streams=3,
        records=4,
        records_a_read=4,
        fault_steps=400,
        heal_steps=20_000,
        faults=(("session_break", 0.03), ("engine_crash", 0.02)),
        speeds=(("deliver", 0.1),),
    )

    run(options, plugins_of(options, "sdk"))
