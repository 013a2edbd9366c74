"""What must hold, as classes named as claims; each raises `Violation`.

The truth is taken from the disk alone: what a commit made durable, decoded from its
bytes. What plugins, targets and the engine show is compared with it.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field

from bettong_engine.core.coordinator import Manifest
from bettong_engine.core.delta import PartitionDelta, StoredDelta
from bettong_engine.core.ids import InstanceId
from bettong_engine.core.worker import Worker
from bettong_engine.net.delta_codec import decode_delta
from bettong_engine.net.records import parse_records
from bettong_engine.sim.options import SimOptions
from bettong_engine.sim.outside import Outside
from bettong_engine.sim.workload import (
    DEAD_LETTERS,
    expected_ring,
    group_of,
    shape_of,
    sink_names,
)

# At most, of a record of a source with its key and time.
RECORD_BYTES = 40


class Violation(AssertionError):  # noqa: N818 - it names a broken claim, not an error
    """A claim does not hold."""

    def __init__(self, claim: object, detail: str) -> None:
        self.claim = type(claim).__name__ if not isinstance(claim, str) else claim
        super().__init__(f"{self.claim}: {detail}")


@dataclass(slots=True)
class Truth:
    """What is committed: outputs by (sink, partition), positions by stream."""

    outputs: dict[tuple[str, int], list[bytes]] = field(default_factory=dict)
    skipped: dict[tuple[str, int], set[int]] = field(default_factory=dict)
    positions: dict[tuple[str, str], int] = field(default_factory=dict)
    ended: set[tuple[str, str]] = field(default_factory=set)
    epoch: int = 0


class EpochsCommitInOrder:
    """At most one manifest an epoch, and epochs rise by one; fences never fall."""

    def __init__(self) -> None:
        self._epoch = 0
        self._fence = (0, 0)
        self._time_us = 0

    def on_commit(self, manifest: Manifest, deltas: Sequence[StoredDelta]) -> None:
        """Check a commit record that has become durable."""
        if manifest.epoch == 0:
            return
        if manifest.epoch != self._epoch + 1:
            raise Violation(self, f"{manifest.epoch} follows {self._epoch}")
        self._epoch = manifest.epoch
        fence = (manifest.term, manifest.generation)
        if fence < self._fence:
            raise Violation(self, f"fence {fence} after {self._fence}")
        self._fence = fence
        if manifest.processing_time_us < self._time_us:
            raise Violation(self, "processing time has fallen")
        self._time_us = manifest.processing_time_us
        for delta in deltas:
            if manifest.digests[delta.partition] != delta.digest:
                raise Violation(self, f"partition {delta.partition}: another delta")


class FenceNeverFalls:
    """Of a worker: (term, generation)."""

    def __init__(self) -> None:
        self._seen: dict[int, tuple[int, int]] = {}

    def check(self, engine: int, worker: Worker) -> None:
        """Compare with what this engine's worker had."""
        fence = (worker.term, worker.generation)
        if fence < self._seen.get(engine, (0, 0)):
            raise Violation(self, f"{fence} after {self._seen[engine]}")
        self._seen[engine] = fence


class EveryCommitIsAConsistentCut:
    """At every commit, outputs, states and positions tell of the same inputs.

    That is: each record up to the committed positions exactly once and in order, and
    none beyond. Numbers of outputs are gapless.
    """

    def __init__(self, options: SimOptions, outside: Outside, truth: Truth) -> None:
        self._options = options
        self._outside = outside
        self._truth = truth
        shape = shape_of(options)
        self._paths = dict(zip(shape.sinks, shape.expected, strict=True))
        self._detectors = {s.name for s in shape.stages if s.kind == "detect"}
        # Inputs committed: the last number of each key. The same, as outputs show.
        self._inputs: dict[bytes, int] = {}
        self._last: dict[tuple[str, bytes, bytes], int] = {}
        self._counts: dict[tuple[str, bytes], int] = {}
        self.fired: set[tuple[str, bytes, bytes]] = set()
        self._letters: set[tuple[str, int]] = set()

    def on_commit(self, deltas: Sequence[PartitionDelta]) -> None:
        """Take what an epoch committed, then compare."""
        truth = self._truth
        touched: set[bytes] = set()
        for delta in deltas:
            for stream in delta.streams:
                touched |= self._advance(stream.source, stream.stream, stream.position)
                if stream.is_ended:
                    truth.ended.add((stream.source, stream.stream))
        for delta in deltas:
            for sink in delta.sinks:
                place = (sink.sink, sink.sink_partition)
                known = truth.outputs.setdefault(place, [])
                if sink.first_sequence != len(known) + 1:
                    what = f"{place}: {sink.first_sequence} follows {len(known)}"
                    raise Violation("SequencesAreGapless", what)
                self._check_durable(place, sink.durable_sequence)
                for batch in sink.batches:
                    values = parse_records(batch.records).values
                    if len(values) != batch.count:
                        raise Violation("SequencesAreGapless", f"{place}: a count")
                    for value in values:
                        known.append(value)
                        if sink.sink != DEAD_LETTERS:
                            touched.add(self._take(sink.sink, value))
                        else:
                            self._take_letter(value)
                truth.skipped.setdefault(place, set()).update(sink.skipped)
        self._check_letters()
        for key in touched:
            self._compare(key)
        for delta in deltas:
            self._check_rows(delta)

    def _advance(self, source: str, stream: str, position: bytes | None) -> set[bytes]:
        name = (source, stream)
        new = int(position or b"0")
        old = self._truth.positions.get(name, 0)
        if new < old:
            raise Violation("PositionsNeverFall", f"{name}: {new} after {old}")
        self._truth.positions[name] = new
        keys = set()
        for record in self._outside.streams[name].records[old:new]:
            self._inputs[record.key] = record.number
            keys.add(record.key)
        return keys

    def _take(self, sink: str, value: bytes) -> bytes:
        path, key, *rest = value.split(b";") if b";" in value else (b"s", value)
        if path == b"s":
            key, _, text = value.rpartition(b":")
            self._next(sink, path, key, int(text))
            return key
        if rest[1:]:
            owner, _, text = rest[1].rpartition(b"#")
            count = self._counts.get((sink, owner), 0) + 1
            if int(text) != count or owner not in (key, group_of(value)):
                raise Violation(self, f"{value!r}: number {count} is due")
            self._counts[sink, owner] = count
        if path[1:]:
            timer = (sink, path, b"%s;%s" % (key, rest[0]))
            if timer in self.fired:
                raise Violation("TimersFireOnce", f"{value!r} fires again")
            self.fired.add(timer)
            if int(rest[0]) > self._inputs.get(key, 0):
                raise Violation("TimersFireOnce", f"{value!r} was never set")
            return key
        number = int(rest[0].rpartition(b",")[2])
        self._next(sink, path, key, number)
        if rest[0] != expected_ring(number, self._options.deletes_every):
            raise Violation(self, f"{value!r}: a wrong ring")
        return key

    def _next(self, sink: str, path: bytes, key: bytes, number: int) -> None:
        due = self._last.get((sink, path, key), 0) + 1
        if number != due:
            what = "again" if number < due else f"while {due} is due"
            raise Violation(self, f"{sink} {path!r} {key!r}: {number} {what}")
        self._last[sink, path, key] = number

    def _compare(self, key: bytes) -> None:
        number = self._inputs.get(key, 0)
        for sink, paths in self._paths.items():
            for path in paths:
                shown = self._last.get((sink, path, key), 0)
                if shown != number:
                    raise Violation(
                        self,
                        f"{sink} {path!r} {key!r}: positions say {number}, outputs"
                        f" {shown}",
                    )

    def _check_rows(self, delta: PartitionDelta) -> None:
        every = self._options.deletes_every
        for stage in delta.stages:
            if stage.stage not in self._detectors:
                continue
            for rows in stage.rows:
                absent = set(rows.absent)
                for i, key in enumerate(rows.keys):
                    number = self._inputs.get(key, 0)
                    is_deleted = bool(every) and number % every == 0
                    ring = expected_ring(number, every)
                    if (i in absent) != is_deleted or (
                        not is_deleted and rows.values[i] != ring
                    ):
                        raise Violation(
                            "StatesAreThoseOfThePositions",
                            f"{key!r}: {rows.values[i]!r}, wants {ring!r}",
                        )

    def _check_durable(self, place: tuple[str, int], sequence: int) -> None:
        target = self._outside.targets[place]
        if sequence > target.sequence:
            raise Violation(
                "OutputsAreKeptUntilTheyAreDurable",
                f"{place}: up to {sequence} may go, the target has {target.sequence}",
            )

    def _take_letter(self, value: bytes) -> None:
        letter = json.loads(value)
        name = (letter["step"], letter["value"])
        if name in self._letters:
            raise Violation("RefusedOutputsAreQuarantinedOnce", f"{letter}")
        self._letters.add(name)

    def _check_letters(self) -> None:
        marks = sum(len(m) for m in self._truth.skipped.values())
        if marks != len(self._letters):
            raise Violation(
                "RefusedOutputsAreQuarantinedOnce",
                f"{marks} skip marks, {len(self._letters)} dead letters",
            )

    def check_end(self) -> None:
        """Check that nothing is missing once bounded input has ended."""
        options, outside = self._options, self._outside
        for name, stream in outside.streams.items():
            position = self._truth.positions.get(name, 0)
            if not stream.is_gone and position != len(stream.records):
                raise Violation("BoundedInputFinishes", f"{name} stands at {position}")
            if not options.is_local and name not in self._truth.ended:
                raise Violation("BoundedInputFinishes", f"{name} has not ended")
        if not options.timers_every or not options.has_event_time:
            return
        for sink, paths in self._paths.items():
            for path in (p for p in paths if p != b"s"):
                for key, last in self._inputs.items():
                    for number in range(1, last + 1):
                        timer = (sink, path + b"E", b"%s;%d" % (key, number))
                        is_set = number % options.timers_every == 0
                        if is_set and timer not in self.fired:
                            raise Violation("TimersFireOnce", f"{timer} never")


class TargetsHoldAPrefixOfTheCommitted:
    """Nothing is visible before its commit, twice, out of order or altered."""

    def __init__(self, options: SimOptions, outside: Outside, truth: Truth) -> None:
        self._options = options
        self._outside = outside
        self._truth = truth
        self._shown: dict[tuple[str, int], int] = {}

    def on_written(
        self, sink: str, partition: int, outputs: list[tuple[int, bytes]]
    ) -> None:
        """Check outputs at the moment when they become visible."""
        place = (sink, partition)
        committed = self._truth.outputs.get(place, [])
        is_exact = self._options.sink_is_exact or sink == DEAD_LETTERS
        for sequence, value in outputs:
            if sequence > len(committed):
                raise Violation("NothingIsVisibleBeforeItsCommit", f"{place} {value!r}")
            if committed[sequence - 1] != value:
                raise Violation(
                    self,
                    f"{place} {sequence}: {value!r}, not {committed[sequence - 1]!r}",
                )
            if sequence in self._truth.skipped.get(place, ()):
                raise Violation(self, f"{place} {sequence} was refused")
            due = self._next(place, self._shown.get(place, 0) + 1)
            if is_exact and sequence != due:
                raise Violation(self, f"{place}: {sequence} while {due} is next")
            if not is_exact and sequence > due:
                raise Violation(self, f"{place}: {sequence} leaves out {due}")
            self._shown[place] = max(sequence, self._shown.get(place, 0))

    def _next(self, place: tuple[str, int], sequence: int) -> int:
        while sequence in self._truth.skipped.get(place, ()):
            sequence += 1
        return sequence

    def check_end(self) -> None:
        """Check that all is there."""
        for sink in sink_names(self._options):
            for partition in range(self._options.sink_partitions):
                place = (sink, partition)
                committed = len(self._truth.outputs.get(place, []))
                due = self._next(place, self._shown.get(place, 0) + 1)
                if due <= committed:
                    raise Violation(
                        "AllOutputsArrive", f"{place}: {due} of {committed} is missing"
                    )


class CreditIsConserved:
    """Sent and not consumed is less than the grant before the last batch."""

    def __init__(self, options: SimOptions) -> None:
        self._options = options
        self._sent: dict[tuple[InstanceId, int], tuple[int, int]] = {}
        self._consumed: dict[tuple[InstanceId, int], tuple[int, int]] = {}

    def on_reset(self, instance: InstanceId) -> None:
        """Count anew."""
        for table in (self._sent, self._consumed):
            for name in [n for n in table if n[0] == instance]:
                del table[name]

    def on_sent(
        self,
        instance: InstanceId,
        channel: int,
        records: int,
        size: int,
        *,
        is_from_source: bool,
    ) -> None:
        """Check before a batch goes to a stage."""
        name = (instance, channel)
        sent, consumed = self._sent.get(name, (0, 0)), self._consumed.get(name, (0, 0))
        options = self._options
        # A read begins with credit, and its last frame needs none.
        slack = options.records_a_read if is_from_source else 0
        if (
            sent[0] - consumed[0] >= options.credit_records + slack
            or sent[1] - consumed[1] >= options.credit_bytes + slack * RECORD_BYTES
        ):
            raise Violation(self, f"channel {channel}: {sent} sent, {consumed} back")
        self._sent[name] = (sent[0] + records, sent[1] + size)

    def on_consumed(
        self, instance: InstanceId, channel: int, records: int, size: int
    ) -> None:
        """Take what a stage reports."""
        name = (instance, channel)
        sent = self._sent.get(name, (0, 0))
        if records > sent[0] or size > sent[1]:
            raise Violation(self, f"channel {channel}: more consumed than sent")
        self._consumed[name] = (records, size)


def decoded(deltas: Sequence[StoredDelta]) -> list[PartitionDelta]:
    """Return deltas as values, by partition."""
    found = [decode_delta(delta.body) for delta in deltas]
    return sorted(found, key=lambda delta: delta.partition)
