"""Memory at a steady rate, and by key."""

import shutil
import sys
from pathlib import Path

from bench.processes import run

PROGRAMS = Path(__file__).parent / "programs"


def steady(root, *, rate, seconds):
    """Return for each role its size after a fifth of the run and at its end, MiB."""
    place = root / "memory"
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir(parents=True)
    command = [
        sys.executable, "-m", "bettong_engine.cli.main", "run", "--plain",
        "--data-dir", str(place / "data"), str(PROGRAMS / "bettong_latency.py"),
        str(rate), str(rate * seconds), str(place / "out.txt"),
    ]  # fmt: skip
    measured = run(command)
    found = {}
    for role, points in measured.rss.items():
        early = [size for at, size in points if seconds * 0.15 < at < seconds * 0.25]
        late = [size for at, size in points if seconds * 0.85 < at < seconds * 0.95]
        found[role] = (max(early) / 2**20, max(late) / 2**20)
    return found


def by_key(root, *, keys):
    """Return the bytes a key of the engine and of the computation."""
    sizes = {}
    for count in (1_000, keys):
        place = root / "keys"
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir(parents=True)
        source = place / "words.txt"
        with source.open("w") as file:
            for begin in range(0, count, 10):
                words = (f"key-{number:09d}" for number in range(begin, begin + 10))
                file.write(" ".join(words) + "\n")
        command = [
            sys.executable, "-m", "bettong_engine.cli.main", "run", "--plain",
            "--data-dir", str(place / "data"),
            str(PROGRAMS / "bettong_word_count.py"), str(source), str(place / "out.txt"),
        ]  # fmt: skip
        measured = run(command)
        sizes[count] = {
            role: max(size for _, size in points)
            for role, points in measured.rss.items()
        }
    return {
        role: (sizes[keys][role] - sizes[1_000][role]) / keys
        for role in ("engine", "compute")
    }
