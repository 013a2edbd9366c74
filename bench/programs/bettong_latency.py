"""Records that carry the time at which they were made, counted by key."""

import sys
import time

import bettong as bt

RATE, COUNT = int(sys.argv[1]), int(sys.argv[2])
OUTPUT = sys.argv[3]
KEYS = 1_000


def stamped(index):
    return [index % KEYS, time.monotonic_ns()]


def count(key, value, state):
    state.append(1)
    if len(state) > 4:
        state.pop()
    return str(value[1])


source = bt.GeneratorSource(stamped, rate_per_second=RATE, count=COUNT)
app = bt.App("latency")
(
    app.source("stamps", source)
    .key_by(lambda pair: pair[0], key=int)
    .stateful(count, state=list)
    .sink("out", bt.FileSink(OUTPUT))
)

if __name__ == "__main__":
    app.run()
