"""The outputs of one sink partition, from commit until its target has them.

Outputs are numbered 1, 2, 3 … when their epoch is prepared; the numbers of open
epochs chain from the committed ones, and start over from there in a new
generation. So a number names the same record on every delivery.
"""

from collections import deque
from dataclasses import dataclass

from bettong_engine.core.delta import OutputBatch, SinkDelta


@dataclass(frozen=True, slots=True)
class NumberedBatch:
    """A committed batch; record i has sequence first_sequence + i."""

    first_sequence: int
    batch: OutputBatch

    @property
    def last_sequence(self) -> int:
        """Of the batch's last record."""
        return self.first_sequence + self.batch.count - 1


class OutputLog:
    """Invariant: trimmed_to <= durable <= committed_to <= prepared_to.

    trimmed_to: highest sequence that is gone from here. durable: reported by the
    target. committed_to, prepared_to: highest number given in committed epochs, and
    with those prepared.
    """

    def __init__(self, sink: str, sink_partition: int) -> None:
        self.sink = sink
        self.sink_partition = sink_partition
        self.trimmed_to = 0
        self.durable = 0
        self.committed_to = 0
        self.prepared_to = 0
        self.bytes = 0
        # Refused for good, and already skipped, above trimmed_to.
        self.skipped: set[int] = set()
        self._batches: deque[NumberedBatch] = deque()
        self._prepared_durable = 0

    def prepare(
        self, batches: list[OutputBatch], skipped: tuple[int, ...]
    ) -> SinkDelta | None:
        """Number the outputs of an epoch; None if there is nothing to record."""
        durable = max(self.durable, self._prepared_durable)
        if not batches and not skipped and durable == self._prepared_durable:
            return None
        delta = SinkDelta(
            self.sink,
            self.sink_partition,
            self.prepared_to + 1,
            batches,
            durable,
            skipped,
        )
        self.prepared_to += sum(b.count for b in batches)
        self._prepared_durable = durable
        return delta

    def commit(self, delta: SinkDelta) -> list[NumberedBatch]:
        """Take the outputs of a committed epoch; return them, to be delivered."""
        assert delta.first_sequence == self.committed_to + 1, "outputs skip a number"
        fresh: list[NumberedBatch] = []
        for batch in delta.batches:
            numbered = NumberedBatch(self.committed_to + 1, batch)
            fresh.append(numbered)
            self.committed_to = numbered.last_sequence
            self.bytes += len(batch.records)
        self._batches.extend(fresh)
        self.skipped.update(delta.skipped)
        self.prepared_to = max(self.prepared_to, self.committed_to)
        self._prepared_durable = max(self._prepared_durable, delta.durable_sequence)
        self.durable = max(self.durable, delta.durable_sequence)
        self._trim(delta.durable_sequence)
        return fresh

    def reset(self) -> None:
        """Forget the numbers given in open epochs."""
        self.prepared_to = self.committed_to
        self._prepared_durable = self.trimmed_to

    def has_unrecorded_progress(self) -> bool:
        """Tell whether the target reported more than any prepared epoch says."""
        return self.durable > self._prepared_durable

    def batches_after(self, sequence: int) -> list[NumberedBatch]:
        """Return the committed batches that hold a record after `sequence`."""
        return [b for b in self._batches if b.last_sequence > sequence]

    def batch_of(self, sequence: int) -> NumberedBatch | None:
        """Return the committed batch that holds `sequence`, or None."""
        for numbered in self._batches:
            if numbered.first_sequence <= sequence <= numbered.last_sequence:
                return numbered
        return None

    def restore(self, delta: SinkDelta) -> None:
        """Begin from a snapshot: what was trimmed, and all that was not."""
        assert not self._batches, "only an empty log is restored"
        self.committed_to = self.prepared_to = delta.first_sequence - 1
        self.trimmed_to = self.durable = self._prepared_durable = delta.durable_sequence
        self.commit(delta)

    def snapshot(self) -> SinkDelta | None:
        """Return the untrimmed log as one delta, or None if it was never used."""
        if not self.committed_to:
            return None
        first = self._batches[0].first_sequence if self._batches else None
        return SinkDelta(
            self.sink,
            self.sink_partition,
            first or self.committed_to + 1,
            [b.batch for b in self._batches],
            self.trimmed_to,
            tuple(sorted(self.skipped)),
        )

    def _trim(self, sequence: int) -> None:
        """Drop whole batches that the target has; a part of one stays with it."""
        self.trimmed_to = max(self.trimmed_to, sequence)
        while self._batches and self._batches[0].last_sequence <= sequence:
            self.bytes -= len(self._batches.popleft().batch.records)
        self.skipped = {s for s in self.skipped if s > sequence}
