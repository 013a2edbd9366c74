"""The world outside: streams that sources read, and targets that sinks write.

It outlives every process. A target takes data and position in one step, under the
highest fence it has seen, and refuses some outputs for good.
"""

from dataclasses import dataclass, field
from random import Random
from typing import Protocol
from zlib import crc32

from bettong_engine.sim.options import SimOptions
from bettong_engine.sim.workload import Record, sink_names, source_names


class TargetWatch(Protocol):
    """Who looks on, and may raise."""

    def on_written(
        self, sink: str, partition: int, outputs: list[tuple[int, bytes]]
    ) -> None:
        """Outputs have become visible, with their sequences."""

    def note(self, situation: str) -> None:
        """Something interesting has happened."""


class UpstreamError(Exception):
    """A stream cannot be reached now."""


class TargetError(Exception):
    """A target cannot be reached now, or did not answer."""


class TargetFencedError(Exception):
    """A newer writer exists."""


class TargetRefusedError(Exception):
    """The target will never take this output; all before it count as written."""

    def __init__(self, sequence: int) -> None:
        super().__init__(f"output {sequence} is refused")
        self.sequence = sequence


@dataclass(slots=True)
class Stream:
    """A stream with its records. is_found: sources may see it.

    owner: of a connection, the process that accepted it, with which it ends.
    is_closed: by that process.
    """

    source: str
    name: str
    records: list[Record]
    is_found: bool = True
    owner: int | None = None
    is_gone: bool = False
    is_closed: bool = False


@dataclass(slots=True)
class Target:
    """One sink partition's target. records: (sequence, value) as they were written."""

    sink: str
    partition: int
    records: list[tuple[int, bytes]] = field(default_factory=list)
    history: bytes = b""
    sequence: int = 0
    fence: int = 0


class Outside:
    """Streams and targets. Faults are switched on and off by the nemesis."""

    def __init__(self, options: SimOptions, rng: Random, watch: TargetWatch) -> None:
        self.options = options
        self.watch = watch
        self.rng = rng
        self.is_source_down = False
        # Sinks that are down, and how many flushes will not be answered.
        self.down: set[str] = set()
        self.unanswered = 0
        self.streams: dict[tuple[str, str], Stream] = {}
        for source in source_names(options):
            for number in range(options.streams):
                name = f"{source[-1]}{number}"
                records = self._records(name.encode())
                found = not options.late_streams or number == 0
                self.streams[source, name] = Stream(source, name, records, found)
        self.targets = {
            (sink, partition): Target(sink, partition)
            for sink in sink_names(options)
            for partition in range(options.sink_partitions if sink != "dead" else 1)
        }

    def _records(self, stream: bytes) -> list[Record]:
        options, rng = self.options, self.rng
        counts = [0] * options.keys
        records = []
        time_us = 1_000_000
        for _ in range(options.records):
            key = rng.randrange(options.keys)
            counts[key] += 1
            time_us += rng.choice((0, 500, 2_000))
            records.append(Record(b"%s.%d" % (stream, key), counts[key], time_us))
        return records

    # Streams.

    def find(self, source: str, process: int) -> tuple[list[str], bool]:
        """Return the streams that a process may name, and whether that is all."""
        mine = [s for s in self.streams.values() if s.source == source]
        if self.options.is_local:
            for stream in mine:
                if stream.owner is None and stream.is_found:
                    stream.owner = process
            names = [s.name for s in mine if s.owner == process and not s.is_closed]
        else:
            names = [s.name for s in mine if s.is_found]
        return names, all(s.is_found for s in mine)

    def read(
        self, source: str, stream: str, position: int, *, process: int
    ) -> tuple[list[Record], bool]:
        """Return some records after a position, and whether the stream ends there.

        Raises `UpstreamError`: it is not reachable now.
        """
        if self.is_source_down and not self.options.is_local:
            raise UpstreamError("the upstream is down")
        found = self.streams[source, stream]
        if self.options.is_local:
            assert found.owner == process, "a connection is read by who accepted it"
        count = self.rng.randint(1, self.options.records_a_read)
        records = found.records[position : position + count]
        return records, position + len(records) == len(found.records)

    def close(self, source: str, stream: str) -> None:
        """Learn that a process has closed a stream; a connection is over then."""
        self.streams[source, stream].is_closed = True

    def on_process_gone(self, process: int) -> None:
        """End the connections that a process had accepted."""
        for stream in self.streams.values():
            if stream.owner == process:
                stream.is_gone = True

    # Targets.

    def refuses(self, value: bytes) -> bool:
        """Tell whether targets will never take this output."""
        every = self.options.refuses_every
        return bool(every) and crc32(value) % every == 0

    def open(self, sink: str, partition: int, fence: int) -> tuple[bytes, int] | None:
        """Shut out older writers; return what is there, None if it cannot say.

        Raises:
            TargetError: it is not reachable now.
            TargetFencedError: a newer writer exists.
        """
        target = self._reach(sink, partition)
        if fence < target.fence:
            raise TargetFencedError
        target.fence = fence
        return (target.history, target.sequence) if self._is_exact(sink) else None

    def write(
        self,
        sink: str,
        partition: int,
        fence: int,
        history: bytes,
        outputs: list[tuple[int, bytes]],
        sequence: int,
    ) -> None:
        """Take outputs and the new position, in one step.

        Raises:
            TargetError: nothing was written; or, nobody knows.
            TargetFencedError: a newer writer exists.
        """
        target = self._reach(sink, partition)
        if fence < target.fence:
            self.watch.note("a target refuses an older writer")
            raise TargetFencedError
        is_answered = True
        if self.unanswered:
            self.unanswered -= 1
            is_answered = False
            self.watch.note("a target does not answer")
            if self.rng.random() < 0.5:
                raise TargetError("no answer")
        target.records += outputs
        if not self._is_exact(sink):
            # It gets outputs again, and loses none that it had.
            sequence = max(sequence, target.sequence)
        target.history, target.sequence = history, sequence
        if outputs:
            self.watch.on_written(sink, partition, outputs)
        if not is_answered:
            raise TargetError("no answer")

    def _reach(self, sink: str, partition: int) -> Target:
        if sink in self.down:
            raise TargetError("the target is down")
        return self.targets[sink, partition]

    def _is_exact(self, sink: str) -> bool:
        return self.options.sink_is_exact or sink == "dead"
