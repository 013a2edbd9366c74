"""The table of deltas: one row, a segment, holds those of one epoch.

A snapshot makes deltas of its partition useless, but they share their rows with
other partitions. So nothing is deleted there and then: a sweep goes round the table,
oldest first, twice as fast as rows are added, deletes rows of which nothing is of
use, and rewrites those of which little is. With all partitions alike, rows die whole
and none is rewritten; a partition that hardly changes cannot keep the others' rows.

Relies on: ids and epochs rise together; the caller is in a transaction, and keeps
what it returns only once that has succeeded.
"""

import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from bettong_engine.core.delta import StoredDelta
from bettong_engine.store.packing import (
    Entry,
    pack,
    repack,
    seal,
    sum_seals,
    unpack_head,
)

SCHEMA = (
    "CREATE TABLE segment (id INTEGER PRIMARY KEY, epoch INTEGER NOT NULL,"
    " seal BLOB NOT NULL, head BLOB NOT NULL, body BLOB NOT NULL)"
)

# A row holds more only if one delta alone does. SQLite ends at 1e9.
SEGMENT_BYTES_MAX = 32 << 20
# Rows that a sweep looks at, beside twice those added since the last.
SWEEP_ROWS_MIN = 8
# A row is rewritten when at most this part of it is of use: rarely, and so that what
# is of no use stays below three times what is.
SWEEP_LIVE_RATIO_MAX = 0.25


@dataclass(frozen=True, slots=True)
class SegmentsState:
    """What is known of the table. seals: their sum. swept_id: where the sweep is.

    last_epoch: the highest of a row, or lower than any that will be added.
    """

    seals: int = 0
    count: int = 0
    next_id: int = 1
    last_epoch: int = 0
    swept_id: int = 0
    added: int = 0


@dataclass(frozen=True, slots=True)
class Segment:
    """One row, its body not read yet."""

    id: int
    epoch: int
    seal: bytes
    head: bytes

    def __post_init__(self) -> None:
        """Refuse what was not written so. The body has checksums of its own."""
        if self.seal != seal("segment", self.epoch, self.head):
            raise ValueError(f"deltas of epoch {self.epoch} fail their seal")

    def live(self, snapshot_epochs: Mapping[int, int]) -> list[Entry]:
        """Return the deltas that no snapshot covers."""
        return [
            entry
            for entry in unpack_head(self.head)
            if self.epoch > snapshot_epochs.get(entry.partition, 0)
        ]


def add(
    connection: sqlite3.Connection, state: SegmentsState, deltas: Sequence[StoredDelta]
) -> SegmentsState:
    """Add deltas, of ascending epochs."""
    for group in _groups(deltas):
        epoch = group[0].epoch
        head, body = pack(group)
        mark = seal("segment", epoch, head)
        connection.execute(
            "INSERT INTO segment VALUES (?, ?, ?, ?, ?)",
            (state.next_id, epoch, mark, head, body),
        )
        state = replace(
            state,
            seals=sum_seals(state.seals, added=[mark]),
            count=state.count + 1,
            next_id=state.next_id + 1,
            last_epoch=epoch,
            added=state.added + 1,
        )
    return state


def truncate_after(
    connection: sqlite3.Connection, state: SegmentsState, epoch: int
) -> SegmentsState:
    """Delete rows of epochs after `epoch`."""
    gone = []
    for segment in read_back(connection):
        if segment.epoch <= epoch:
            break
        gone.append(segment)
    state = _delete(connection, state, gone)
    return replace(state, last_epoch=min(state.last_epoch, epoch))


def sweep(
    connection: sqlite3.Connection,
    state: SegmentsState,
    snapshot_epochs: Mapping[int, int],
) -> SegmentsState:
    """Look at some rows, and make room where little of them is of use."""
    rows_max = 2 * state.added + SWEEP_ROWS_MIN
    rows = connection.execute(
        "SELECT id, epoch, seal, head FROM segment WHERE id > ? ORDER BY id LIMIT ?",
        (state.swept_id, rows_max),
    ).fetchall()
    is_round_over = len(rows) < rows_max
    state = replace(
        state, added=0, swept_id=0 if is_round_over or not rows else rows[-1][0]
    )
    useless = []
    for segment in (Segment(*row) for row in rows):
        live = segment.live(snapshot_epochs)
        if not live:
            useless.append(segment)
        elif _is_thin(segment, live):
            state = _rewrite(connection, state, segment, live)
    return _delete(connection, state, useless)


def read(connection: sqlite3.Connection) -> Iterator[Segment]:
    """Yield all rows, oldest first."""
    for row in connection.execute(
        "SELECT id, epoch, seal, head FROM segment ORDER BY id"
    ):
        yield Segment(*row)


def read_back(connection: sqlite3.Connection) -> Iterator[Segment]:
    """Yield all rows, newest first."""
    for row in connection.execute(
        "SELECT id, epoch, seal, head FROM segment ORDER BY id DESC"
    ):
        yield Segment(*row)


def read_body(connection: sqlite3.Connection, segment: Segment) -> bytes:
    """Return the bodies of a row's deltas."""
    (body,) = connection.execute(
        "SELECT body FROM segment WHERE id = ?", (segment.id,)
    ).fetchone()
    assert isinstance(body, bytes)
    return body


def _groups(deltas: Sequence[StoredDelta]) -> Iterator[list[StoredDelta]]:
    """Split deltas into rows: of one epoch each, and none too large."""
    group: list[StoredDelta] = []
    size = 0
    for delta in deltas:
        size += len(delta.body)
        if group and (delta.epoch != group[0].epoch or size > SEGMENT_BYTES_MAX):
            yield group
            group, size = [], len(delta.body)
        group.append(delta)
    if group:
        yield group


def _is_thin(segment: Segment, live: Sequence[Entry]) -> bool:
    entries = unpack_head(segment.head)
    total = sum(entry.length for entry in entries)
    live_bytes = sum(entry.length for entry in live)
    return len(live) < len(entries) and live_bytes <= total * SWEEP_LIVE_RATIO_MAX


def _rewrite(
    connection: sqlite3.Connection,
    state: SegmentsState,
    segment: Segment,
    live: Sequence[Entry],
) -> SegmentsState:
    head, body = repack(live, read_body(connection, segment))
    mark = seal("segment", segment.epoch, head)
    connection.execute(
        "UPDATE segment SET seal = ?, head = ?, body = ? WHERE id = ?",
        (mark, head, body, segment.id),
    )
    return replace(
        state, seals=sum_seals(state.seals, added=[mark], removed=[segment.seal])
    )


def _delete(
    connection: sqlite3.Connection, state: SegmentsState, segments: Sequence[Segment]
) -> SegmentsState:
    connection.executemany(
        "DELETE FROM segment WHERE id = ?", [(segment.id,) for segment in segments]
    )
    return replace(
        state,
        seals=sum_seals(state.seals, removed=[segment.seal for segment in segments]),
        count=state.count - len(segments),
    )
