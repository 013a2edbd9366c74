"""The input: ten words a line, Zipf over 50,000 distinct words, the same every time."""

import random
from bisect import bisect
from itertools import accumulate
from pathlib import Path

DISTINCT = 50_000
WORDS_A_LINE = 10


def write_words(path: Path, count: int) -> Path:
    """Write `count` words, unless the file is there."""
    if path.exists():
        return path
    chance = random.Random(1)
    weights = list(accumulate(1 / rank for rank in range(1, DISTINCT + 1)))
    words = [f"w{number:05d}" for number in range(DISTINCT)]
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    with partial.open("w") as file:
        for _ in range(count // WORDS_A_LINE):
            line = (
                words[bisect(weights, chance.random() * weights[-1])]
                for _ in range(WORDS_A_LINE)
            )
            file.write(" ".join(line) + "\n")
    partial.rename(path)
    return path
