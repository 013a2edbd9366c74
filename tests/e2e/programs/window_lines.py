"""The detector on lines "KEY NUMBER [MOOD]" of a file, some of which are trouble.

bettong run window_lines.py INPUT OUTPUT [WORD…]

Words: follow (the file grows), policy=NAME, dead=FILE, mend=FILE. A mood does its harm
for as long as the file of mend= is not there: raise, raise-early, hang, hang-once,
huge-output, huge-state, flood, refused.
"""

import os
import sys
import time
from pathlib import Path
from typing import Any

import bettong as bt

INPUT, OUTPUT = sys.argv[1:3]
WORDS = dict(word.partition("=")[::2] for word in sys.argv[3:])
MEND = Path(WORDS.get("mend", "/nowhere/at/all"))
HUGE = "x" * ((1 << 20) + 1)


def split(line: str) -> list[str]:
    """Return (key, number, mood)."""
    words = line.split()
    if words[2:] == ["raise-early"] and not MEND.exists():
        raise ValueError("a bad day in the source")
    return words


def window(key: str, value: list[str], state: list[Any]) -> str:
    """Keep the last four numbers; show them."""
    numbers = [*(n for n in state if n != HUGE), int(value[1])][-4:]
    state[:] = [*(n for n in state if n == HUGE), *numbers]
    shown = f"{key} {[0] * (4 - len(numbers)) + numbers}"
    mood = value[2] if len(value) > 2 and not MEND.exists() else ""
    if mood == "raise":
        raise ValueError("a bad day")
    if mood == "hang":
        time.sleep(3600)
    if mood == "hang-once":
        MEND.touch()
        time.sleep(3600)
    if mood == "huge-output":
        return HUGE
    if mood == "huge-state":
        state.insert(0, HUGE)
    if mood == "flood":
        for _ in range(200):
            print("stdout " * 20, flush=False)
            print("stderr " * 20, file=sys.stderr)
        os.write(1, b"one line without an end " * 10_000)
    return shown


dead = WORDS.get("dead")
app = bt.App(
    "window-lines",
    on_error=WORDS.get("policy", "fail"),  # type: ignore[arg-type]
    dead_letter=bt.FileSink(dead) if dead else None,
)
(
    app.source("lines", bt.FileSource(INPUT, follow="follow" in WORDS))
    .map(split, name="split")
    .key_by(lambda words: words[0], key=str)
    .stateful(window, state=list)
    .sink("windows", bt.FileSink(OUTPUT))
)

if __name__ == "__main__":
    app.run()
