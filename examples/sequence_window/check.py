"""Checks the windows of the detector, line by line: each must follow the one before.

    python check.py OUTPUT [--count N] [--keys N] [--follow]

Needs nothing but the output, and no more memory than a number a key. About a million
lines a second.
"""

import argparse
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

POLL_S = 0.05


class WindowError(Exception):
    """A line that cannot follow what was before it. `place`: its number, from 1."""

    def __init__(self, place: int, problem: str) -> None:
        super().__init__(f"line {place}: {problem}")
        self.place = place


def window_of(number: int) -> str:
    """Return the window that a key's number gives, as text."""
    return str([max(0, number - back) for back in (3, 2, 1, 0)])


class Checker:
    """Takes lines as they come.

    last: the number of the last window, by key as written in the output.
    lines: how many were taken.
    """

    def __init__(self) -> None:
        self.last: dict[str, int] = {}
        self.lines = 0

    def feed(self, lines: Iterable[str]) -> None:
        """Check lines, without their newlines.

        Raises:
            WindowError: at the first that is not as it must be.
        """
        last = self.last
        for line in lines:
            self.lines += 1
            key, _, window = line.partition(" ")
            number = last.get(key, 0) + 1
            if number > 3:
                expected = f"[{number - 3}, {number - 2}, {number - 1}, {number}]"
            else:
                expected = window_of(number)
            if window != expected:
                raise WindowError(self.lines, _diagnosis(key, window, number))
            last[key] = number

    def finish(self, *, count: int, keys: int) -> None:
        """Check that nothing is missing at the end: `count` numbers, dealt in turn.

        Raises:
            WindowError: a key has not come to its last number, or there are others.
        """
        expected = {str(k): len(range(k, count, keys)) for k in range(keys)}
        wrong = [
            f"key {key} ends at {self.last.get(key, 0)}, not {expected.get(key, 0)}"
            for key in sorted({*expected, *self.last})
            if self.last.get(key, 0) != expected.get(key, 0)
        ]
        if wrong:
            more = f", and {len(wrong) - 5} more" if len(wrong) > 5 else ""
            raise WindowError(self.lines, "; ".join(wrong[:5]) + more)


def _diagnosis(key: str, window: str, number: int) -> str:
    """Say what is wrong with a window in the place of that of `number`."""
    told = f"key {key}: {window} where {window_of(number)} must be"
    try:
        numbers = [int(part) for part in window.strip("[]").split(",")]
    except ValueError:
        return f"{told}: this is no window"
    found = numbers[-1]
    if window != window_of(found):
        return f"{told}: the state was not that of the record before"
    if found < number:
        return f"{told}: {found} is repeated, or comes too late"
    if found == number + 1:
        return f"{told}: {number} is lost, or comes too late"
    return f"{told}: {number} to {found - 1} are lost, or come too late"


def whole_lines(path: Path, *, follow: bool = False) -> Iterator[list[str]]:
    """Yield the whole lines of a file, block by block; `follow`: for ever.

    A file sink cuts off after a crash what was not committed, and writes the same
    again: so a file that is shorter than what was read will grow back.
    """
    with path.open("rb") as file:
        rest = b""
        while True:
            block = file.read(1 << 20)
            if block:
                *lines, rest = (rest + block).split(b"\n")
                yield [line.decode() for line in lines]
            elif follow:
                yield []
                time.sleep(POLL_S)
            else:
                break
    if rest:
        raise WindowError(0, f"the file ends inside a line, with {rest!r}")


def check_file(path: Path, *, count: int, keys: int, follow: bool = False) -> int:
    """Check a whole file; with `follow`, wait until `count` lines are there.

    Returns:
        How many lines it has.

    Raises:
        WindowError: it is not what it must be.
    """
    checker = Checker()
    for lines in whole_lines(path, follow=follow):
        checker.feed(lines)
        if follow and checker.lines >= count:
            break
    checker.finish(count=count, keys=keys)
    return checker.lines


def main() -> None:
    """Check the file that the command line names."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("output", type=Path)
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--keys", type=int, default=10)
    parser.add_argument("--follow", action="store_true")
    given = parser.parse_args()
    try:
        lines = check_file(
            given.output, count=given.count, keys=given.keys, follow=given.follow
        )
    except WindowError as error:
        sys.exit(f"{given.output}: {error}")
    print(f"{lines} windows of {given.keys} keys, all as they must be")


if __name__ == "__main__":
    main()
