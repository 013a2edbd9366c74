"""`python -m bettong_engine.sim`: run schedules by seed with the reference plugins."""

import argparse
import sys
import time
from collections import Counter

from bettong_engine.sim.claims import Violation
from bettong_engine.sim.options import draw
from bettong_engine.sim.reference import ReferencePlugins
from bettong_engine.sim.world import run

COMMAND = "python -m bettong_engine.sim"


def main(arguments: list[str]) -> int:
    """Run what was asked for; return 1 if a claim does not hold."""
    parser = argparse.ArgumentParser(prog=COMMAND, description=__doc__)
    parser.add_argument("--seeds", type=int, default=200, help="how many schedules")
    parser.add_argument("--seed-base", type=int, default=0, help="the first seed")
    parser.add_argument("--seed", type=int, help="this one only")
    parser.add_argument("--trace", action="store_true", help="print what happens")
    parser.add_argument("--keep-going", action="store_true", help="after a violation")
    options = parser.parse_args(arguments)
    first = options.seed_base if options.seed is None else options.seed
    count = options.seeds if options.seed is None else 1
    commits = steps = failures = 0
    faults: Counter[str] = Counter()
    situations: Counter[str] = Counter()
    begun = time.monotonic()
    for seed in range(first, first + count):
        schedule = draw(seed)
        if options.trace:
            print(schedule)
        try:
            result = run(schedule, ReferencePlugins(schedule), tells=options.trace)
        except (Violation, AssertionError) as violation:
            failures += 1
            print(f"seed {seed}: {type(violation).__name__} {violation}")
            print(f"replay it: {COMMAND} --seed {seed} --trace")
            if options.trace or not options.keep_going:
                raise
            continue
        commits += result.commits
        steps += result.steps
        faults += result.faults
        situations += result.situations
    seconds = time.monotonic() - begun
    print(
        f"{count} schedules, {failures} violations, {commits} commits, {steps} steps,"
        f" {sum(faults.values())} faults, {count / seconds:.1f} schedules/s"
    )
    print("faults:", ", ".join(f"{name} {n}" for name, n in sorted(faults.items())))
    for name, times in sorted(situations.items()):
        print(f"  sometimes: {name} ({times})")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
