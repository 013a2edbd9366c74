"""Holds coordination records in memory, and decides whether guards hold."""

from collections.abc import Mapping, Sequence

from bettong_engine.store.interface import Conflict, Versioned


class Records:
    """Invariant: `revision` is the highest that was ever given."""

    def __init__(
        self, revision: int = 0, records: Mapping[str, Versioned] | None = None
    ) -> None:
        self.revision = revision
        self._records = dict(records or {})

    def copy(self) -> "Records":
        """Return an equal one, to be changed."""
        return Records(self.revision, self._records)

    def get(self, keys: Sequence[str]) -> dict[str, Versioned]:
        """Return the records of those keys that exist."""
        return {key: self._records[key] for key in keys if key in self._records}

    def conflict_with(self, guards: Mapping[str, int]) -> Conflict | None:
        """Return what is there instead of what the guards expect, or None."""
        current = self.get(list(guards))
        for key, revision in guards.items():
            found = current.get(key)
            if (found.revision if found else 0) != revision:
                return Conflict(current)
        return None

    def put(self, puts: Mapping[str, bytes]) -> int:
        """Write all of `puts`; return their revision."""
        self.revision += 1
        for key, value in puts.items():
            self._records[key] = Versioned(value, self.revision)
        return self.revision
