"""Word count in Bettong, as on the README's first screen."""

import sys
from collections.abc import Iterator
from dataclasses import dataclass

import bettong as bt

INPUT, OUTPUT = sys.argv[1:3]


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
