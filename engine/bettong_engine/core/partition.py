"""One partition: its committed state, and above it what open epochs changed.

Committed state is never touched by an open epoch: each keeps its own overlay, which
is merged when the epoch commits and dropped when a generation goes back before it.
"""

from collections.abc import Container, Iterable, Sequence
from dataclasses import dataclass, field

from bettong_engine.core.delta import (
    EncodeDelta,
    PartitionDelta,
    RowColumns,
    SinkDelta,
    StageDelta,
    StoredDelta,
    StreamState,
    TimerColumns,
    chain,
)
from bettong_engine.core.ids import Epoch, Generation, PartitionId
from bettong_engine.core.output_log import NumberedBatch, OutputLog
from bettong_engine.core.state_table import Row, StateTable, add_rows, merge
from bettong_engine.core.timers import TimerTable
from bettong_engine.errors import StateCorruptedError

# Rows in one StageDelta of a snapshot.
SNAPSHOT_ROWS_MAX = 4096


@dataclass(slots=True)
class _Open:
    """An epoch that is not committed: its delta as it grows, and its overlay."""

    stages: dict[str, StageDelta] = field(default_factory=dict)
    tables: dict[str, dict[int, StateTable]] = field(default_factory=dict)
    # Set when the epoch is prepared.
    delta: PartitionDelta | None = None
    digest: bytes = b""


class Partition:
    """Invariant: open epochs are above `epoch`; prepared ones are the lowest."""

    def __init__(self, number: PartitionId) -> None:
        self.number = number
        # Of the last committed delta; 0: none yet.
        self.epoch = Epoch(0)
        self.digest = b""
        self.streams: dict[tuple[str, str], StreamState] = {}
        self.logs: dict[tuple[str, int], OutputLog] = {}
        self.watermarks: dict[str, int] = {}
        self._tables: dict[str, dict[int, StateTable]] = {}
        self._timers: dict[str, TimerTable] = {}
        self._open: dict[Epoch, _Open] = {}

    # What open epochs write.

    def on_stage_rows(
        self,
        epoch: Epoch,
        stage: str,
        rows: RowColumns | None,
        timers: TimerColumns | None,
    ) -> None:
        """Take a piece of a stage's delta; it is visible to `rows_of` at once."""
        pending = self._open.setdefault(epoch, _Open())
        delta = pending.stages.setdefault(stage, StageDelta(stage))
        if rows is not None:
            delta.rows.append(rows)
            add_rows(pending.tables.setdefault(stage, {}), rows)
        if timers is not None:
            delta.timers.append(timers)
            self.timers_of(stage).apply_live(timers)

    def prepare(
        self,
        epoch: Epoch,
        generation: Generation,
        *,
        streams: list[StreamState],
        sinks: list[SinkDelta],
        watermarks: dict[str, int],
        encode: EncodeDelta,
    ) -> StoredDelta:
        """Close an epoch's delta and chain it to the one before."""
        pending = self._open.setdefault(epoch, _Open())
        for name, stage in pending.stages.items():
            stage.watermark_us = watermarks.get(name)
        base_epoch, digest = self._prepared()
        delta = PartitionDelta(
            self.number,
            epoch,
            generation,
            base_epoch,
            list(pending.stages.values()),
            streams,
            sinks,
        )
        body = encode(delta)
        pending.delta, pending.digest = delta, chain(digest, body)
        return StoredDelta(self.number, epoch, generation, pending.digest, body)

    def digest_at(self, epoch: Epoch) -> bytes | None:
        """Return the digest of the chain up to `epoch`; None: it is not known.

        It is not known once a later epoch is committed, or while that epoch, or
        one before it, is not prepared.
        """
        if self.epoch > epoch:
            return None
        digest = self.digest
        for number in sorted(e for e in self._open if e <= epoch):
            pending = self._open[number]
            if pending.delta is None:
                return None
            digest = pending.digest
        return digest

    # Commit, and going back.

    def commit(self, epoch: Epoch) -> list[tuple[OutputLog, list[NumberedBatch]]]:
        """Merge all epochs up to `epoch`; return the outputs that may now leave."""
        released: list[tuple[OutputLog, list[NumberedBatch]]] = []
        for number in sorted(e for e in self._open if e <= epoch):
            pending = self._open.pop(number)
            assert pending.delta is not None, "only prepared epochs are committed"
            released += self._merge(pending.delta, pending.tables)
            self.epoch, self.digest = number, pending.digest
        return released

    def drop_open(self) -> None:
        """Forget every open epoch."""
        self._open.clear()
        for log in self.logs.values():
            log.reset()
        for timers in self._timers.values():
            timers.reset()

    def load(
        self,
        snapshot: PartitionDelta | None,
        digest: bytes,
        deltas: Iterable[tuple[PartitionDelta, StoredDelta]],
    ) -> None:
        """Begin from what a store kept: a snapshot and the deltas after it.

        Raises:
            StateCorruptedError: a delta is missing, or is not the one that was
                written.
        """
        if snapshot is not None:
            for sink in snapshot.sinks:
                self.log_of(sink.sink, sink.sink_partition).restore(sink)
            sinks, snapshot.sinks = snapshot.sinks, []
            self._merge(snapshot, _overlay(snapshot))
            snapshot.sinks = sinks
            self.epoch, self.digest = snapshot.epoch, digest
        for delta, stored in deltas:
            digest = chain(self.digest, stored.body)
            if delta.base_epoch != self.epoch or digest != stored.digest:
                raise StateCorruptedError(
                    f"partition {self.number}: the delta of epoch {delta.epoch} does"
                    f" not follow epoch {self.epoch}; the data directory is damaged or"
                    " mixed from several copies: restore it from a backup"
                )
            self._merge(delta, _overlay(delta))
            self.epoch, self.digest = delta.epoch, digest
        self.drop_open()

    def snapshot(self) -> PartitionDelta:
        """Return all committed state, as one delta without a base."""
        stages: list[StageDelta] = []
        for name in {**self._tables, **self._timers, **self.watermarks}:
            stage = StageDelta(name, watermark_us=self.watermarks.get(name))
            stage.rows = list(_columns(self._tables.get(name, {})))
            if timers := self.timers_of(name).committed:
                stage.timers = [_timer_columns(timers)]
            if stage.rows or stage.timers or stage.watermark_us is not None:
                stages.append(stage)
        sinks = [s for log in self.logs.values() if (s := log.snapshot())]
        return PartitionDelta(
            self.number,
            self.epoch,
            Generation(0),
            Epoch(0),
            stages,
            list(self.streams.values()),
            sinks,
        )

    def copy_stage(self, old: str, new: str) -> None:
        """Keep a stage's committed rows and timers under a second name too."""
        assert not self._open, "names change only before a generation begins"
        if old in self._tables:
            self._tables[new] = self._tables[old]
        if old in self._timers:
            self._timers[new] = self._timers[old]
        if old in self.watermarks:
            self.watermarks[new] = self.watermarks[old]

    def drop_names(self, names: Container[str]) -> None:
        """Forget all that is committed under these names, for good."""
        assert not self._open, "names change only before a generation begins"
        for table in (self._tables, self._timers, self.watermarks):
            for name in [n for n in table if n in names]:
                del table[name]
        self.streams = {k: s for k, s in self.streams.items() if k[0] not in names}
        self.logs = {k: log for k, log in self.logs.items() if k[0] not in names}

    # What is asked.

    def log_of(self, sink: str, sink_partition: int) -> OutputLog:
        """Return the output log of a sink partition whose home is here."""
        key = (sink, sink_partition)
        if key not in self.logs:
            self.logs[key] = OutputLog(sink, sink_partition)
        return self.logs[key]

    def timers_of(self, stage: str) -> TimerTable:
        """Return the timers of a stage."""
        if stage not in self._timers:
            self._timers[stage] = TimerTable()
        return self._timers[stage]

    def is_fresh(self, stage: str) -> bool:
        """Tell whether no committed row of the stage is here."""
        return not any(map(len, self._tables.get(stage, {}).values()))

    def key_count(self) -> int:
        """Return the number of committed rows, over all stages."""
        return sum(len(t) for tables in self._tables.values() for t in tables.values())

    def row_of(self, stage: str, state: int, key: bytes, entry: bytes) -> Row | None:
        """Return the newest row, open epochs included."""
        for table in self._newest_first(stage, state):
            rows = table.maps.get(key, {}) if entry else table.plain
            name = entry or key
            if name in rows:
                return rows[name]
        return None

    def entries_of(self, stage: str, state: int, key: bytes) -> dict[bytes, Row]:
        """Return all entries of a key of a map, by name, open epochs included."""
        found: dict[bytes, Row | None] = {}
        for table in reversed(self._newest_first(stage, state)):
            found.update(table.maps.get(key, {}))
        return {k: row for k, row in sorted(found.items()) if row is not None}

    def _newest_first(self, stage: str, state: int) -> Sequence[StateTable]:
        newest = sorted(self._open, reverse=True)
        layers = [self._open[number].tables for number in newest]
        found = [layer.get(stage, {}).get(state) for layer in (*layers, self._tables)]
        return [table for table in found if table is not None]

    def _prepared(self) -> tuple[Epoch, bytes]:
        for number in sorted(self._open, reverse=True):
            pending = self._open[number]
            if pending.delta is not None:
                return number, pending.digest
        return self.epoch, self.digest

    def _merge(
        self, delta: PartitionDelta, overlay: dict[str, dict[int, StateTable]]
    ) -> list[tuple[OutputLog, list[NumberedBatch]]]:
        for name, tables in overlay.items():
            kept = self._tables.setdefault(name, {})
            for state, table in tables.items():
                merge(kept.setdefault(state, StateTable()), table)
        for stage in delta.stages:
            for columns in stage.timers:
                self.timers_of(stage.stage).commit(columns)
            if stage.watermark_us is not None:
                self.watermarks[stage.stage] = stage.watermark_us
        for stream in delta.streams:
            key = (stream.source, stream.stream)
            if stream.is_forgotten:
                self.streams.pop(key, None)
            else:
                self.streams[key] = stream
        released = []
        for sink in delta.sinks:
            log = self.log_of(sink.sink, sink.sink_partition)
            released.append((log, log.commit(sink)))
        return released


def _overlay(delta: PartitionDelta) -> dict[str, dict[int, StateTable]]:
    overlay: dict[str, dict[int, StateTable]] = {}
    for stage in delta.stages:
        for rows in stage.rows:
            add_rows(overlay.setdefault(stage.stage, {}), rows)
    return overlay


def _columns(tables: dict[int, StateTable]) -> Iterable[RowColumns]:
    """Yield committed rows as columns of at most SNAPSHOT_ROWS_MAX."""
    for state, table in tables.items():
        rows = [(key, b"", row) for key, row in table.plain.items()]
        for key, entries in table.maps.items():
            rows += [(key, entry, row) for entry, row in entries.items()]
        for start in range(0, len(rows), SNAPSHOT_ROWS_MAX):
            part = rows[start : start + SNAPSHOT_ROWS_MAX]
            pairs = [r if isinstance(r, tuple) else (0, r or b"") for _, _, r in part]
            yield RowColumns(
                keys=[key for key, _, _ in part],
                values=[value for _, value in pairs],
                states=[state] * len(part) if state else (),
                entries=[e for _, e, _ in part] if any(e for _, e, _ in part) else (),
                versions=[v for v, _ in pairs] if any(v for v, _ in pairs) else (),
            )


def _timer_columns(timers: dict[tuple[bytes, int, str], int]) -> TimerColumns:
    return TimerColumns(
        keys=[key for key, _, _ in timers],
        names=[name for _, _, name in timers],
        kinds=[kind for _, kind, _ in timers],
        due_us=list(timers.values()),
    )
