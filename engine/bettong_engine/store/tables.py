"""The tables of a `single` store: what is in them, known without asking, and sealed.

Relies on: the caller is in a transaction, and keeps the changed Tables only once
that has succeeded. ValueError means that a row is not what was written.
"""

import sqlite3
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from struct import Struct
from zlib import crc32

from bettong_engine.core.delta import StoredDelta
from bettong_engine.store import segments
from bettong_engine.store.interface import Meta, StoredSnapshot, Versioned
from bettong_engine.store.packing import seal, sum_seals
from bettong_engine.store.records import Records

SCHEMA = (
    "CREATE TABLE meta (name TEXT PRIMARY KEY, value BLOB, seal BLOB) WITHOUT ROWID",
    "CREATE TABLE record (key TEXT PRIMARY KEY, revision INTEGER NOT NULL,"
    " value BLOB NOT NULL, seal BLOB NOT NULL) WITHOUT ROWID",
    segments.SCHEMA,
    "CREATE TABLE snapshot (partition INTEGER PRIMARY KEY, epoch INTEGER NOT NULL,"
    " digest BLOB NOT NULL, crc INTEGER NOT NULL, seal BLOB NOT NULL,"
    " body BLOB NOT NULL)",
)

# Its row in the records' table.
_SUMMARY_KEY = ""
# Sum of the seals of segments, their count, sum of all other seals.
_SUMMARY = Struct("<QQQ")
# The one row of meta that is no field of Meta.
_IN_MEMORY = "is_state_in_memory"


class Tables:
    """Invariant: `seals` holds the seal of each row that is not a segment."""

    def __init__(self) -> None:
        self.meta: Meta | None = None
        # The application has committed something that is not in this file.
        self.is_state_in_memory = False
        self.records = Records()
        self.snapshot_epochs: dict[int, int] = {}
        self.segments = segments.SegmentsState()
        self._seals: dict[str, bytes] = {}
        self._seals_sum = 0

    def copy(self) -> "Tables":
        """Return an equal one, to be changed."""
        other = Tables()
        other.meta = self.meta
        other.is_state_in_memory = self.is_state_in_memory
        other.records = self.records.copy()
        other.snapshot_epochs = dict(self.snapshot_epochs)
        other.segments = self.segments
        other._seals = dict(self._seals)
        other._seals_sum = self._seals_sum
        return other

    # Reading, at start.

    @classmethod
    def read(cls, connection: sqlite3.Connection) -> "Tables":
        """Read all but deltas and the bodies of snapshots.

        Raises:
            ValueError: the file is not as it was written.
        """
        tables = cls()
        summary = tables._read_records(connection)
        tables._read_meta(connection)
        for partition, epoch, digest, crc, mark in connection.execute(
            "SELECT partition, epoch, digest, crc, seal FROM snapshot"
        ):
            expected = seal("snapshot", partition, epoch, digest, crc)
            tables._seal(f"snapshot {partition}", expected, found=mark)
            tables.snapshot_epochs[partition] = epoch
        seals, count, others = _SUMMARY.unpack(summary)
        if others != tables._seals_sum:
            raise ValueError("records or snapshots are missing, or of another time")
        last = connection.execute(
            "SELECT id, epoch FROM segment ORDER BY id DESC LIMIT 1"
        ).fetchone()
        last_id, last_epoch = last or (0, 0)
        tables.segments = segments.SegmentsState(
            seals, count, next_id=last_id + 1, last_epoch=last_epoch
        )
        return tables

    def load_deltas(
        self, connection: sqlite3.Connection
    ) -> dict[int, list[StoredDelta]]:
        """Return the deltas that no snapshot covers, by partition, ascending.

        Raises:
            ValueError: one is not what was written, or is missing.
        """
        total, count, last_epoch = 0, 0, 0
        deltas: dict[int, list[StoredDelta]] = {}
        for segment in segments.read(connection):
            total = sum_seals(total, added=[segment.seal])
            count += 1
            if segment.epoch < last_epoch:
                raise ValueError(f"deltas of epoch {segment.epoch} are out of order")
            last_epoch = segment.epoch
            live = segment.live(self.snapshot_epochs)
            body = segments.read_body(connection, segment) if live else b""
            for entry in live:
                part = body[entry.begin : entry.begin + entry.length]
                if not entry.is_intact(part):
                    raise ValueError(
                        f"the delta of partition {entry.partition}, epoch"
                        f" {segment.epoch} fails its checksum"
                    )
                delta = entry.delta(segment.epoch, part)
                deltas.setdefault(entry.partition, []).append(delta)
        if (total, count) != (self.segments.seals, self.segments.count):
            raise ValueError(
                f"{self.segments.count} rows of deltas were written, and other"
                f" {count} are there"
            )
        return deltas

    def load_snapshot(
        self, connection: sqlite3.Connection, partition: int
    ) -> StoredSnapshot | None:
        """Return a partition's snapshot. Raises ValueError: it is damaged."""
        if partition not in self.snapshot_epochs:
            return None
        epoch, digest, crc, body = connection.execute(
            "SELECT epoch, digest, crc, body FROM snapshot WHERE partition = ?",
            (partition,),
        ).fetchone()
        if crc32(body) != crc:
            raise ValueError(
                f"the snapshot of partition {partition}, epoch {epoch} fails its"
                " checksum"
            )
        return StoredSnapshot(partition, epoch, digest, body)

    # Writing.

    def put_meta(self, connection: sqlite3.Connection, meta: Meta) -> None:
        """Write what the application is."""
        for name, value in asdict(meta).items():
            self._put_meta_row(connection, name, value)
        self.meta = meta

    def mark_state_in_memory(self, connection: sqlite3.Connection) -> None:
        """Write that the state is not in this file."""
        self._put_meta_row(connection, _IN_MEMORY, 1)
        self.is_state_in_memory = True

    def put_records(
        self, connection: sqlite3.Connection, puts: Mapping[str, bytes]
    ) -> int:
        """Write records; return their revision."""
        revision = self.records.put(puts)
        for key, value in puts.items():
            assert key != _SUMMARY_KEY, "a record has a name"
            mark = seal("record", key, revision, value)
            self._seal(f"record {key}", mark)
            connection.execute(
                "INSERT OR REPLACE INTO record VALUES (?, ?, ?, ?)",
                (key, revision, value, mark),
            )
        return revision

    def put_snapshot(
        self, connection: sqlite3.Connection, snapshot: StoredSnapshot
    ) -> None:
        """Write a snapshot; deltas that it covers are of no use from now on."""
        partition, epoch = snapshot.partition, snapshot.epoch
        crc = crc32(snapshot.body)
        mark = seal("snapshot", partition, epoch, snapshot.digest, crc)
        self._seal(f"snapshot {partition}", mark)
        self.snapshot_epochs[partition] = epoch
        connection.execute(
            "INSERT OR REPLACE INTO snapshot VALUES (?, ?, ?, ?, ?, ?)",
            (partition, epoch, snapshot.digest, crc, mark, snapshot.body),
        )

    def add_deltas(
        self, connection: sqlite3.Connection, deltas: Sequence[StoredDelta]
    ) -> None:
        """Write deltas of ascending epochs."""
        self.segments = segments.add(connection, self.segments, deltas)

    def write_summary(self, connection: sqlite3.Connection) -> None:
        """Write the sums of all seals, last in each transaction."""
        value = _SUMMARY.pack(self.segments.seals, self.segments.count, self._seals_sum)
        revision = self.records.revision
        mark = seal("summary", revision, value)
        connection.execute(
            "INSERT OR REPLACE INTO record VALUES (?, ?, ?, ?)",
            (_SUMMARY_KEY, revision, value, mark),
        )

    # Inside.

    def _read_records(self, connection: sqlite3.Connection) -> bytes:
        records: dict[str, Versioned] = {}
        summary, newest = b"", 0
        for key, revision, value, mark in connection.execute(
            "SELECT key, revision, value, seal FROM record"
        ):
            if key == _SUMMARY_KEY:
                summary, newest = value, revision
                if mark != seal("summary", revision, value):
                    raise ValueError("the summary fails its seal")
                continue
            self._seal(
                f"record {key}", seal("record", key, revision, value), found=mark
            )
            records[key] = Versioned(value, revision)
        if not summary:
            raise ValueError("the summary is missing")
        self.records = Records(newest, records)
        return summary

    def _read_meta(self, connection: sqlite3.Connection) -> None:
        rows = {}
        for name, value, mark in connection.execute(
            "SELECT name, value, seal FROM meta"
        ):
            self._seal(f"meta {name}", seal("meta", name, value), found=mark)
            rows[name] = value
        self.is_state_in_memory = bool(rows.pop(_IN_MEMORY, 0))
        if rows:
            self.meta = Meta(**rows)

    def _put_meta_row(
        self, connection: sqlite3.Connection, name: str, value: bytes | str | int
    ) -> None:
        mark = seal("meta", name, value)
        self._seal(f"meta {name}", mark)
        connection.execute(
            "INSERT OR REPLACE INTO meta VALUES (?, ?, ?)", (name, value, mark)
        )

    def _seal(self, row: str, mark: bytes, *, found: bytes | None = None) -> None:
        """Count the seal of a row, in place of the one that it had.

        found: what the file says it is. Raises ValueError: it is not.
        """
        if found is not None and found != mark:
            raise ValueError(f"{row} fails its seal")
        old = [self._seals[row]] if row in self._seals else []
        self._seals_sum = sum_seals(self._seals_sum, added=[mark], removed=old)
        self._seals[row] = mark
