"""Copies lines from a source to a sink, each exactly once.

bettong run passthrough.py [INPUT [OUTPUT]]
"""

import sys
from pathlib import Path

import bettong as bt

HERE = Path(__file__).parent
INPUT = sys.argv[1] if len(sys.argv) > 1 else str(HERE / "poem.txt")
OUTPUT = sys.argv[2] if len(sys.argv) > 2 else "passthrough.txt"

app = bt.App("passthrough")
app.source("lines", bt.FileSource(INPUT)).sink("copy", bt.FileSink(OUTPUT))

if __name__ == "__main__":
    app.run()
