"""kill -9 of anything, at any moment: the output is that of an undisturbed run."""

import random
import signal
import time

import pytest
from tests.e2e.windows import check_continuously, undisturbed
from tests.e2e.yard import COMPUTE, ENGINE, PROGRAMS, SINK, SOURCE, Yard

PROGRAM = PROGRAMS / "sequence_window.py"
KEYS = 50
COUNT = 60_000
RATE = 4_000
KILLS_MIN = 20
DEADLINE_S = 150.0

# What is killed, in turn: every kind of process at least three times, and at every
# distance to the kill before.
VICTIMS = (
    (COMPUTE,),
    (ENGINE,),
    (SINK,),
    (SOURCE,),
    (ENGINE, SOURCE, COMPUTE, SINK),
    (SOURCE, SINK),
)


@pytest.mark.e2e
@pytest.mark.slow
@pytest.mark.timeout(240)
@pytest.mark.parametrize(("computes", "streams"), [(1, 1), (2, 5)])
def test_output_is_exact_whatever_is_killed(
    yard: Yard, computes: int, streams: int
) -> None:
    chance = random.Random(computes)
    output = yard.place / "windows.txt"
    until = time.monotonic() + DEADLINE_S
    kills = 0

    while True:
        run = yard.run(
            PROGRAM, COUNT, KEYS, RATE, output, streams,
            options=("--computes", computes),
        )  # fmt: skip
        while not run.is_over():
            assert time.monotonic() < until, run
            time.sleep(chance.uniform(0.1, 0.8))  # The pace of the killing.
            if kills < KILLS_MIN:
                kills += min(1, yard.kill(*VICTIMS[kills % len(VICTIMS)]))
        if run.process.returncode == 0:
            break
        assert run.process.returncode == -signal.SIGKILL, run

    lines = output.read_text().splitlines()
    assert kills >= KILLS_MIN
    assert check_continuously(lines) == dict.fromkeys(range(KEYS), COUNT // KEYS)
    if computes == 1:
        assert lines == undisturbed(COUNT, KEYS)
    assert yard.is_deserted()
