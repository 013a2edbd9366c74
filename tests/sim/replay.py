"""`python -m tests.sim.replay --seed S --plugins sdk`: one schedule, told aloud."""

import argparse

from tests.sim.hunting import plugins_of

from bettong_engine.sim.options import draw
from bettong_engine.sim.world import run

if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m tests.sim.replay")
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--plugins", choices=("sdk", "reference"), default="sdk")
    arguments = parser.parse_args()
    schedule = draw(arguments.seed)
    print(schedule)
    print(run(schedule, plugins_of(schedule, arguments.plugins), tells=True))
