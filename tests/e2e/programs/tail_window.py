"""The detector on a growing file of "KEY NUMBER" lines; runs until it is stopped.

bettong run tail_window.py INPUT OUTPUT
"""

import sys

import bettong as bt

INPUT, OUTPUT = sys.argv[1:3]


def window(key: str, value: list[str], state: list[int]) -> str:
    """Keep the last four numbers; show them."""
    state.append(int(value[1]))
    del state[:-4]
    return f"{key} {[0] * (4 - len(state)) + state}"


app = bt.App("tail-window")
(
    app.source("lines", bt.FileSource(INPUT, follow=True))
    .map(str.split, name="split")
    .key_by(lambda pair: pair[0], key=str)
    .stateful(window, state=list)
    .sink("windows", bt.FileSink(OUTPUT))
)

if __name__ == "__main__":
    app.run()
