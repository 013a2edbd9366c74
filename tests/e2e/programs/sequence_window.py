"""The detector: input i of a key must give the window [i-3, i-2, i-1, i].

bettong run sequence_window.py COUNT KEYS RATE OUTPUT [STREAMS]
"""

import sys

import bettong as bt

COUNT, KEYS, RATE = (int(word) for word in sys.argv[1:4])
OUTPUT = sys.argv[4]
STREAMS = int(sys.argv[5]) if len(sys.argv) > 5 else 1


def number_of(index: int) -> list[int]:
    """Return (key, number): each key counts 1, 2, 3 …"""
    return [index % KEYS, index // KEYS + 1]


def window(key: int, value: list[int], state: list[int]) -> str:
    """Keep the last four numbers; show them."""
    state.append(value[1])
    del state[:-4]
    return f"{key} {[0] * (4 - len(state)) + state}"


# Of several streams each has keys of its own: that many must divide KEYS.
assert KEYS % STREAMS == 0
source = bt.GeneratorSource(
    number_of, rate_per_second=RATE or None, count=COUNT, streams=STREAMS
)
app = bt.App("sequence-window")
(
    app.source("numbers", source)
    .key_by(lambda pair: pair[0], key=int)
    .stateful(window, state=list)
    .sink("windows", bt.FileSink(OUTPUT))
)

if __name__ == "__main__":
    app.run()
