"""What a worker knows of each open epoch until its delta is complete.

An epoch's delta is complete when the source boundary has ended it and every stage
of every instance has acked it. Epochs complete in order, since each numbers its
outputs from where the one before ended.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field

from bettong_engine.core.delta import OutputBatch, StreamState
from bettong_engine.core.ids import Epoch, InstanceId


@dataclass(slots=True)
class OpenEpoch:
    """One epoch on its way to its delta."""

    epoch: Epoch
    awaited: set[tuple[InstanceId, int]]
    is_ended: bool = False
    processing_time_us: int = 0
    # When its first frame came; None: nothing did.
    opened_ms: int | None = None
    flush_cpu_us: int = 0
    streams: tuple[StreamState, ...] = ()
    outputs: dict[tuple[int, int], list[OutputBatch]] = field(default_factory=dict)
    output_bytes: int = 0
    skipped: dict[tuple[int, int], list[int]] = field(default_factory=dict)
    # Of stages, as their barriers carried it.
    watermarks: dict[str, int] = field(default_factory=dict)
    # Partitions that stages wrote to, and those stages.
    touched: set[int] = field(default_factory=set)
    touched_stages: set[str] = field(default_factory=set)
    # Of every partition that the epoch changed, once it is prepared.
    digests: dict[int, bytes] = field(default_factory=dict)
    records_read: int = 0
    # By the policy "skip".
    records_skipped: int = 0
    is_prepared: bool = False

    @property
    def is_complete(self) -> bool:
        """Tell whether nothing of the epoch is missing."""
        return self.is_ended and not self.awaited

    def add_output(self, place: tuple[int, int], batch: OutputBatch) -> None:
        """Add outputs to (sink, sink partition), behind those that are there."""
        self.outputs.setdefault(place, []).append(batch)
        self.output_bytes += len(batch.records)


class EpochLedger:
    """Invariant: open epochs are consecutive; prepared ones come first."""

    def __init__(self, runs: Iterable[tuple[InstanceId, int]]) -> None:
        self._runs = frozenset(runs)
        self._open: dict[Epoch, OpenEpoch] = {}

    def of(self, epoch: Epoch) -> OpenEpoch:
        """Return the entry of an open epoch."""
        if epoch not in self._open:
            self._open[epoch] = OpenEpoch(epoch, set(self._runs))
        return self._open[epoch]

    def take_complete(self) -> list[OpenEpoch]:
        """Return the epochs that became complete, in order, marked as prepared."""
        found: list[OpenEpoch] = []
        for epoch in sorted(self._open):
            entry = self._open[epoch]
            if entry.is_prepared:
                continue
            if not entry.is_complete:
                break
            entry.is_prepared = True
            found.append(entry)
        return found

    def close(self, epoch: Epoch) -> OpenEpoch | None:
        """Forget a committed epoch and return it."""
        return self._open.pop(epoch, None)

    @property
    def has_incomplete(self) -> bool:
        """Tell whether an epoch that has ended at the boundary is not complete."""
        return any(e.is_ended and e.awaited for e in self._open.values())

    @property
    def output_bytes(self) -> int:
        """Of outputs that open epochs hold."""
        return sum(entry.output_bytes for entry in self._open.values())
