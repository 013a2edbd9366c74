"""Drives a source as the runner does: read until there is nothing, then wait."""

import time
from collections.abc import Sequence
from typing import Any

import bettong as bt

DEADLINE_S = 20.0


def next_read(source: bt.Source, reader: bt.Reader) -> bt.Read:
    """Return the next read; fails if there is none in time."""
    until = time.monotonic() + DEADLINE_S
    while (read := reader.read()) is None:
        assert time.monotonic() < until, "the source had nothing to read in time"
        source.wait(0.1)
    return read


def read_to_end(source: bt.Source, reader: bt.Reader) -> list[bt.Read]:
    """Return all reads up to the one that says end."""
    reads = [next_read(source, reader)]
    while not reads[-1].end:
        reads.append(next_read(source, reader))
    return reads


def records_of(reads: Sequence[bt.Read]) -> list[Any]:
    """Return the records of several reads."""
    return [record for read in reads for record in read.records]


def take(source: bt.Source, reader: bt.Reader, count: int) -> list[Any]:
    """Return the next records, exactly so many."""
    records: list[Any] = []
    while len(records) < count:
        read = next_read(source, reader)
        records += read.records
        assert not read.end or len(records) >= count, f"ended after {records}"
    assert len(records) == count, f"more than {count}: {records}"
    return records


def next_streams(source: bt.Source, count: int) -> list[str]:
    """Return the streams once there are so many."""
    until = time.monotonic() + DEADLINE_S
    while len(streams := source.streams()[0]) != count:
        assert time.monotonic() < until, f"wanted {count} streams, got {streams}"
        source.wait(0.1)
    return list(streams)
