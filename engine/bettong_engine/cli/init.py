"""`bettong init`: a small project that runs as it is."""

from pathlib import Path

import typer

from bettong_engine.errors import ConfigError

APP = '''"""Counts words: one state object a word, made when it is first seen."""

from dataclasses import dataclass

import bettong as bt


@dataclass
class WordCount:
    word: str = ""
    count: int = 0


def count(key: str, word: str, state: WordCount):
    state.word, state.count = key, state.count + 1
    yield f"{key} => {state.count}"


app = bt.App("word-count")
(
    app.source("lines", bt.FileSource("lines.txt"))
    .flat_map(str.split, name="split")
    .key_by(lambda word: word)
    .stateful(count, state=WordCount)
    .sink("counts", bt.FileSink("counts.txt"))
)

if __name__ == "__main__":
    app.run()
'''

LINES = """the quick brown fox jumps over the lazy dog
the dog sleeps and the fox runs
"""

README = """# A Bettong project

    python app.py            # or: bettong run app.py

reads `lines.txt`, counts every word, and writes each update to `counts.txt`, exactly
once: kill any of its processes and start it again. State lives in `.bettong/`; remove
that directory and `counts.txt*` to begin anew.

    python -m pytest         # the pipeline on lists, in memory, with a crash in it
"""

TEST = '''"""The pipeline in memory, with a crash in the middle."""

from app import app
from bettong.testing import Crash, run_in_memory


def test_every_word_is_counted_once() -> None:
    result = run_in_memory(app, {"lines": ["a b a", Crash(), "b a"]})

    assert sorted(result["counts"]) == [
        "a => 1",
        "a => 2",
        "a => 3",
        "b => 1",
        "b => 2",
    ]
'''

FILES = {
    "app.py": APP,
    "lines.txt": LINES,
    "README.md": README,
    "test_app.py": TEST,
    ".gitignore": ".bettong/\ncounts.txt*\n",
}


def write_project(directory: Path) -> None:
    """Write the files. Raises `ConfigError`: one of them is there already."""
    there = [name for name in FILES if (directory / name).exists()]
    if there:
        raise ConfigError(
            f"{directory} has {', '.join(there)} already; name an empty directory"
        )
    directory.mkdir(parents=True, exist_ok=True)
    for name, text in FILES.items():
        (directory / name).write_text(text)
    typer.echo(f"Wrote {', '.join(FILES)} to {directory}.")
    typer.echo(f"Next: cd {directory} && python app.py && cat counts.txt")
