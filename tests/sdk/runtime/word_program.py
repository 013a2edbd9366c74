"""A program as a user writes it, started by tests as plugin processes.

Usage: python -m tests.sdk.runtime.word_program INPUT OUTPUT
"""

import logging
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass

import bettong as bt
from bettong.runtime.plugin import serve


@dataclass
class WordCount:
    word: str = ""
    count: int = 0


def count(key: str, word: str, state: WordCount) -> Iterator[str]:
    state.word, state.count = key, state.count + 1
    if word == "stuck":
        threading.Event().wait()
    if state.count == 3:
        logging.getLogger("words").warning("three of %s", key)
    yield f"{key} => {state.count}"


def make_app(source: str, target: str) -> bt.App:
    app = bt.App("words", partitions=8)
    (
        app.source("lines", bt.FileSource(source))
        .flat_map(str.split, name="split")
        .key_by(lambda word: word, key=str, name="by_word")
        .stateful(count, state=WordCount)
        .sink("counts", bt.FileSink(target))
    )
    return app


if __name__ == "__main__":
    sys.exit(serve(make_app(sys.argv[1], sys.argv[2]).plan()))
