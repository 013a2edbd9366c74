"""Rows of one keyed state in one partition: committed ones, or those of one epoch.

A row is its value's bytes, or (schema version, bytes) where the version is not 0.
An overlay, the rows that an epoch wrote, says None for a row that it deleted.
"""

from dataclasses import dataclass, field

from bettong_engine.core.delta import RowColumns

Row = bytes | tuple[int, bytes]


@dataclass(slots=True)
class StateTable:
    """Values by key, and for maps entries by key."""

    plain: dict[bytes, Row | None] = field(default_factory=dict)
    maps: dict[bytes, dict[bytes, Row | None]] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.plain) + sum(map(len, self.maps.values()))


def add_rows(tables: dict[int, StateTable], rows: RowColumns) -> None:
    """Put columns into overlay tables, by state; the last write of a key wins.

    Cost: one dict update for the usual case of one plain state, version 0.
    """
    if not (rows.states or rows.entries or any(rows.versions)):
        plain = tables.setdefault(0, StateTable()).plain
        plain.update(zip(rows.keys, rows.values, strict=True))
        for index in rows.absent:
            plain[rows.keys[index]] = None
        return
    absent = frozenset(rows.absent)
    versions = rows.versions
    for i, key in enumerate(rows.keys):
        version = versions[i if len(versions) > 1 else 0] if versions else 0
        row: Row | None = (version, rows.values[i]) if version else rows.values[i]
        if i in absent:
            row = None
        table = tables.setdefault(rows.states[i] if rows.states else 0, StateTable())
        entry = rows.entries[i] if rows.entries else b""
        if entry:
            table.maps.setdefault(key, {})[entry] = row
        else:
            table.plain[key] = row


def merge(table: StateTable, overlay: StateTable) -> None:
    """Bring a committed table up to date with what an epoch wrote."""
    table.plain.update(overlay.plain)
    for key, row in overlay.plain.items():
        if row is None:
            del table.plain[key]
    for key, entries in overlay.maps.items():
        kept = table.maps.setdefault(key, {})
        kept.update(entries)
        for entry, row in entries.items():
            if row is None:
                del kept[entry]
        if not kept:
            del table.maps[key]
