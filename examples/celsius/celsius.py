"""Converts temperatures from Celsius to Fahrenheit.

bettong run celsius.py [INPUT [OUTPUT]]
"""

import sys
from pathlib import Path

import bettong as bt

HERE = Path(__file__).parent
INPUT = sys.argv[1] if len(sys.argv) > 1 else str(HERE / "celsius.txt")
OUTPUT = sys.argv[2] if len(sys.argv) > 2 else "fahrenheit.txt"


def scale(celsius: float) -> float:
    """Stretch a degree Celsius to degrees Fahrenheit."""
    return celsius * 9 / 5


def shift(scaled: float) -> float:
    """Move the zero."""
    return scaled + 32


def show(fahrenheit: float) -> str:
    """Write a temperature with one decimal."""
    return f"{fahrenheit:.1f}"


app = bt.App("celsius")
(
    app.source("celsius", bt.FileSource(INPUT))
    .map(float)
    .map(scale)
    .map(shift)
    .map(show)
    .sink("fahrenheit", bt.FileSink(OUTPUT))
)

if __name__ == "__main__":
    app.run()
