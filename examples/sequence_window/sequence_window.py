"""Shows the last four numbers of each key: whatever goes wrong shows in them.

bettong run sequence_window.py [OUTPUT [COUNT [KEYS [RECORDS_A_SECOND]]]]
"""

import sys
from dataclasses import dataclass, field

import bettong as bt

ARGUMENTS = dict(enumerate(sys.argv))
OUTPUT = ARGUMENTS.get(1, "windows.txt")
COUNT = int(ARGUMENTS.get(2, "10000"))
KEYS = int(ARGUMENTS.get(3, "10"))
RATE = float(ARGUMENTS.get(4, "0"))


@dataclass
class Window:
    """The last four numbers of a key, zeros before the first."""

    numbers: list[int] = field(default_factory=lambda: [0, 0, 0, 0])


def number_of(index: int) -> tuple[int, int]:
    """Return the key and the number of a record: each key counts from 1."""
    return index % KEYS, index // KEYS + 1


def slide(key: int, record: tuple[int, int], state: Window) -> str:
    """Move the window on by one number, and show it."""
    state.numbers = [*state.numbers[1:], record[1]]
    return f"{key} {state.numbers}"


app = bt.App("sequence-window")
numbers = bt.GeneratorSource(
    number_of,
    count=COUNT,
    rate_per_second=RATE or None,
    codec=bt.msgpack(tuple[int, int]),
)
(
    app.source("numbers", numbers)
    .key_by(lambda record: record[0], key=int)
    .stateful(slide, state=Window)
    .sink("windows", bt.FileSink(OUTPUT))
)

if __name__ == "__main__":
    app.run()
