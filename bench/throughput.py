"""Word count against a plain loop and Bytewax, all in one run, interleaved."""

import shutil
import statistics
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

from bench.processes import Measured, run
from bench.words import write_words

PROGRAMS = Path(__file__).parent / "programs"
BETTONG = [sys.executable, "-m", "bettong_engine.cli.main", "run", "--plain"]


@dataclass
class Contender:
    """One way to count the words. prepare: makes the place ready for a round."""

    name: str
    command: list[str]
    environment: dict[str, str] = field(default_factory=dict)
    output: str = "out.txt"
    rounds: list[Measured] = field(default_factory=list)

    def words_a_second(self, words):
        return [words / measured.wall_s for measured in self.rounds]


def contenders(place, source):
    bytewax = [sys.executable, "-m", "bytewax.run", "bench.programs.bytewax_word_count"]
    output = str(place / "out.txt")
    bytewax_environment = {"BENCH_INPUT": str(source), "BENCH_OUTPUT": output}
    recovery = ["-r", str(place / "recovery"), "-s", "1", "-b", "0"]
    program = str(PROGRAMS / "bettong_word_count.py")
    files = [program, str(source), output]
    data = ["--data-dir", str(place / "data")]
    return [
        Contender(
            "plain dict loop (the limit)",
            [sys.executable, str(PROGRAMS / "plain_loop.py"), str(source), output],
        ),
        Contender("Bytewax 0.21.1, no recovery", bytewax, bytewax_environment),
        Contender(
            "Bytewax 0.21.1, recovery every 1 s",
            [*bytewax, *recovery],
            bytewax_environment,
        ),
        Contender("Bettong, disk, exactly once", [*BETTONG, *data, *files]),
        Contender(
            "Bettong, disk, exactly once, 2 computations",
            [*BETTONG, *data, "--computes", "2", *files],
        ),
        Contender(
            "Bettong, memory",
            [*BETTONG, "--durability", "memory", *files],
        ),
        Contender(
            "plain dict loop again (A/A)",
            [sys.executable, str(PROGRAMS / "plain_loop.py"), str(source), output],
        ),
    ]


def measure(root, *, words, rounds):
    """Return the contenders with their rounds. Raises if an output is wrong."""
    source = write_words(root / f"words-{words}.txt", words)
    place = root / "throughput"
    found = contenders(place, source)
    truth = None
    for number in range(rounds):
        for contender in found:
            shutil.rmtree(place, ignore_errors=True)
            place.mkdir(parents=True)
            if "-r" in contender.command:
                (place / "recovery").mkdir()
                run(
                    [
                        sys.executable,
                        "-m",
                        "bytewax.recovery",
                        str(place / "recovery"),
                        "1",
                    ]
                )
            contender.rounds.append(
                run(contender.command, environment=contender.environment)
            )
            result = final_counts(place / contender.output)
            truth = truth or result
            if result != truth:
                raise RuntimeError(f"{contender.name} counted wrong: the run is void")
            print(
                f"round {number + 1}: {contender.name}: {contender.rounds[-1].wall_s:.2f} s"
            )
            time.sleep(0.5)
    return found


def final_counts(path):
    """Return the number of updates, and the last count of every word."""
    counts = {}
    updates = 0
    with path.open() as lines:
        for line in lines:
            word, _, count = line.partition(" => ")
            counts[word] = count
            updates += 1
    return updates, counts


def table(found, words):
    """Return the rows of the report."""
    limit = statistics.median(found[0].words_a_second(words))
    free = statistics.median(found[1].words_a_second(words))
    safe = statistics.median(found[2].words_a_second(words))
    rows = [
        "| what | words/s, median (min to max) | x plain loop | x Bytewax, no recovery |"
        " x Bytewax, recovery |",
        "|---|---|---|---|---|",
    ]
    for contender in found:
        rates = contender.words_a_second(words)
        middle = statistics.median(rates)
        rows.append(
            f"| {contender.name} | {middle / 1e3:,.0f} k ({min(rates) / 1e3:,.0f} to"
            f" {max(rates) / 1e3:,.0f}) | {middle / limit:.2f} | {middle / free:.2f} |"
            f" {middle / safe:.2f} |"
        )
    return rows


def cpu_table(found, words):
    """Return where the time of the Bettong rounds goes, by process."""
    rows = [
        "| what | source | engine | computation | sink | engine's share |",
        "|---|---|---|---|---|---|",
    ]
    for contender in found:
        if not contender.name.startswith("Bettong"):
            continue
        cost = {
            role: statistics.median(
                measured.cpu_s.get(role, 0.0) / words * 1e6
                for measured in contender.rounds
            )
            for role in ("source", "engine", "compute", "sink")
        }
        cells = " | ".join(f"{cost[role]:.2f}" for role in cost)
        share = cost["engine"] / sum(cost.values())
        rows.append(f"| {contender.name} | {cells} | {share:.2f} |")
    return rows
