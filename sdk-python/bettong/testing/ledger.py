"""What the miniature engine knows: the committed epoch, and the open one over it."""

from collections.abc import Iterable
from dataclasses import dataclass, field

from bettong_proto.plugin.v1 import batch_pb2, compute_pb2

# Place of the stage, and key bytes.
Row = tuple[int, bytes]
# Place of the stage, key bytes, kind and name.
Timer = tuple[int, bytes, int, str]
# Name of the sink, and its partition.
Home = tuple[str, int]

EVENT_TIME = 1
PROCESSING_TIME = 2
# Watermark of an input that has ended for good: later than any event time.
END_OF_TIME_US = 2**63 - 1


@dataclass(frozen=True, slots=True)
class Mark:
    """The watermark of an input; idle: it holds nothing back."""

    watermark_us: int | None = None
    is_idle: bool = False


@dataclass(frozen=True, slots=True)
class Progress:
    """How far the one stream of a source is. position None: nothing was read."""

    position: bytes | None = None
    watermark_us: int | None = None
    # Until its first frame a stream holds nothing back.
    is_idle: bool = True
    has_ended: bool = False

    def mark(self) -> Mark:
        """Return the watermark that the source's channel carries."""
        if self.has_ended:
            return Mark(END_OF_TIME_US)
        return Mark(None if self.is_idle else self.watermark_us, self.is_idle)


@dataclass(frozen=True, slots=True)
class OutputBatch:
    """Outputs for one sink partition, as a serialized `Records`."""

    input: int
    count: int
    records: bytes


@dataclass(slots=True)
class OpenEpoch:
    """What the open epoch has changed so far. None: deleted."""

    rows: dict[Row, bytes | None] = field(default_factory=dict)
    timers: dict[Timer, int | None] = field(default_factory=dict)
    progress: dict[str, Progress] = field(default_factory=dict)
    watermarks: dict[int, int] = field(default_factory=dict)
    outputs: dict[Home, list[OutputBatch]] = field(default_factory=dict)
    skipped: int = 0


class Ledger:
    """Invariant: nothing of `open` is in the committed part."""

    def __init__(self, sources: Iterable[str], *, processing_time_us: int) -> None:
        self.epoch = 0
        self.rows: dict[Row, bytes] = {}
        self.timers: dict[Timer, int] = {}
        self.progress = {name: Progress() for name in sources}
        # Of stages, by their place.
        self.watermarks: dict[int, int] = {}
        self.processing_time_us = processing_time_us
        self.skipped = 0
        self.open = OpenEpoch()

    def progress_of(self, source: str) -> Progress:
        """Return how far a source is, the open epoch included."""
        return self.open.progress.get(source) or self.progress[source]

    def watermark_of(self, stage: int) -> int | None:
        """Return the watermark of a stage, the open epoch included."""
        return self.open.watermarks.get(stage, self.watermarks.get(stage))

    def value_of(self, row: Row) -> bytes | None:
        """Return the state of a key, the open epoch included; None: it has none."""
        return self.open.rows.get(row, self.rows.get(row))

    def on_rows(self, stage: int, columns: batch_pb2.StateRows) -> None:
        """Take the rows of a delta."""
        absent = frozenset(columns.absent)
        for i, key in enumerate(columns.keys):
            value = None if i in absent else columns.values[i]
            self.open.rows[stage, key] = value

    def on_timers(self, stage: int, columns: batch_pb2.Timers) -> None:
        """Take the timers of a delta."""
        deleted = frozenset(columns.deleted)
        for i, key in enumerate(columns.keys):
            timer = (stage, key, int(columns.kinds[i]), columns.names[i])
            self.open.timers[timer] = None if i in deleted else columns.due_us[i]

    def due(self, stage: int, watermark_us: int | None) -> list[tuple[Timer, int]]:
        """Return the committed timers of a stage that are due, with their times."""
        until = {PROCESSING_TIME: self.processing_time_us}
        if watermark_us is not None:
            until[EVENT_TIME] = watermark_us
        return [
            (timer, due_us)
            for timer, due_us in self.timers.items()
            if timer[0] == stage and timer[2] in until and due_us <= until[timer[2]]
        ]

    def next_due_us(self) -> int | None:
        """Return when the next timer of processing time is due; None: there is none."""
        times = (
            due_us
            for timer, due_us in self.timers.items()
            if timer[2] == PROCESSING_TIME
        )
        return min(times, default=None)

    def commit(self) -> OpenEpoch:
        """Make the open epoch stand, and begin the next; return what it changed."""
        done, self.open = self.open, OpenEpoch()
        self.epoch += 1
        for row, value in done.rows.items():
            if value is None:
                self.rows.pop(row, None)
            else:
                self.rows[row] = value
        for timer, due_us in done.timers.items():
            if due_us is None:
                self.timers.pop(timer, None)
            else:
                self.timers[timer] = due_us
        self.progress |= done.progress
        self.watermarks |= done.watermarks
        self.skipped += done.skipped
        return done

    def undo(self) -> None:
        """Drop the open epoch."""
        self.open = OpenEpoch()


def state_values(
    ledger: Ledger, request: compute_pb2.StateGet
) -> compute_pb2.StateValues:
    """Answer a request for rows."""
    found = [ledger.value_of((request.stage, key)) for key in request.keys]
    return compute_pb2.StateValues(
        generation=request.generation,
        request=request.request,
        rows=batch_pb2.StateRows(
            keys=request.keys,
            values=[value or b"" for value in found],
            absent=[i for i, value in enumerate(found) if value is None],
        ),
    )
