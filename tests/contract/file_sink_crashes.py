"""Kills a process that writes to a file sink, at every system call, again and again.

Run as a program with a directory. Each crash point is a process of its own, forked
here, that ends with `os._exit` inside the n-th call that touches the disk: a write
is then cut in half. After it a second process is killed at every call of *its* start,
and a third finishes the work. The file must end with each output once, in order,
whatever happened before.

A program and not a test function, since it forks and so must have one thread only.
"""

import itertools
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import bettong as bt
from bettong_connectors import FileSink

HISTORY = b"h" * 16
OUTPUTS = [b"output %d %s" % (n, b"x" * (n * 37 % 300)) for n in range(1, 10)]
# One is refused by an imagined check, and so is only counted.
SKIPPED = 6
EXPECTED = b"".join(
    line + b"\n" for number, line in enumerate(OUTPUTS, 1) if number != SKIPPED
)
CRASHED = 9
# Calls of a second start and of its first flush: beyond it is as after the first.
SECOND_MAX = 14
_CALLS = ("open", "pwrite", "fdatasync", "fsync", "ftruncate", "close")


def crash_at(call_number: int) -> None:
    """Let this process die in its n-th call from now on; a write is half done."""
    calls = itertools.count(1)

    def crashing(name: str) -> Callable[..., Any]:
        real = getattr(os, name)

        def call(*arguments: Any) -> Any:
            if next(calls) == call_number:
                if name == "pwrite":
                    file, data, at = arguments
                    real(file, data[: len(data) // 2], at)
                os._exit(CRASHED)
            return real(*arguments)

        return call

    for name in _CALLS:
        setattr(os, name, crashing(name))


def write_all(path: Path, acknowledged: Path) -> None:
    """Write what the sink does not have yet, two at a time, as the runner does."""
    generation = 1 + int(acknowledged.read_text().count("\n"))
    writer, position = FileSink(path).open(0, bt.Fence(HISTORY, generation))
    assert isinstance(position, bt.SinkPosition)
    assert position.sequence >= last_acknowledged(acknowledged), "durable output lost"
    sequence = position.sequence + 1
    while sequence <= len(OUTPUTS):
        if sequence == SKIPPED:
            writer.skip(sequence)
            sequence += 1
        else:
            until = SKIPPED if sequence < SKIPPED else len(OUTPUTS) + 1
            last = min(sequence + 2, until)
            writer.write(sequence, OUTPUTS[sequence - 1 : last - 1])
            sequence = last
        if sequence % 3:
            acknowledge(acknowledged, writer.flush())
    acknowledge(acknowledged, writer.flush())
    writer.close()


def acknowledge(path: Path, sequence: int) -> None:
    # Not through `os`, whose calls are counted.
    with path.open("a") as file:
        file.write(f"{sequence}\n")


def last_acknowledged(path: Path) -> int:
    return max(map(int, path.read_text().split()), default=0)


def run_child(path: Path, acknowledged: Path, crash_point: int | None) -> bool:
    """Return whether the child finished; False: it crashed where it was to."""
    child = os.fork()
    if child == 0:
        try:
            if crash_point is not None:
                crash_at(crash_point)
            write_all(path, acknowledged)
        except BaseException as error:
            sys.stderr.write(f"{type(error).__name__}: {error}\n")
            sys.stderr.flush()
            os._exit(1)
        os._exit(0)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert status in (0, CRASHED), f"crash point {crash_point}: status {status}"
    return status == 0


def crash_twice(directory: Path, first: int, second: int) -> tuple[bool, bool]:
    """Return whether the first and the second child finished; check the end."""
    path = directory / f"{first}-{second}.txt"
    acknowledged = path.with_suffix(".ack")
    acknowledged.touch()
    first_finished = run_child(path, acknowledged, first)
    second_finished = run_child(path, acknowledged, second)
    run_child(path, acknowledged, None)
    assert path.read_bytes() == EXPECTED, f"crash points {first}, {second}"
    for file in directory.glob(f"{first}-{second}.*"):
        file.unlink()
    return first_finished, second_finished


def main(directory: Path) -> None:
    count = 0
    for first in itertools.count(1):
        for second in range(1, SECOND_MAX + 1):
            first_finished, second_finished = crash_twice(directory, first, second)
            count += 1
            if second_finished:
                break
        if first_finished:
            break
    sys.stdout.write(f"{first} first crash points, {count} pairs\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
