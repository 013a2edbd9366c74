"""Counts the words of a text, with one state object per word.

    bettong run word_count.py [INPUT [OUTPUT]]

Every word of the input gives one line of output: the word and how often it has been
seen so far. The output file is exactly-once: kill any process, start it again.
"""

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import bettong as bt

HERE = Path(__file__).parent
INPUT = sys.argv[1] if len(sys.argv) > 1 else str(HERE / "bill_of_rights.txt")
OUTPUT = sys.argv[2] if len(sys.argv) > 2 else "word_counts.txt"


@dataclass
class WordCount:
    """Made when its word is first seen."""

    word: str = ""
    count: int = 0


def count(key: str, word: str, state: WordCount) -> Iterator[str]:
    """Count one more of the word."""
    state.word, state.count = key, state.count + 1
    yield f"{key} => {state.count}"


app = bt.App("word-count")
(
    app.source("lines", bt.FileSource(INPUT))
    .flat_map(str.split, name="split")
    .key_by(lambda word: word)
    .stateful(count, state=WordCount)
    .sink("counts", bt.FileSink(OUTPUT))
)

if __name__ == "__main__":
    app.run()
