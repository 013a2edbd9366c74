"""Timers of one stage in one partition: which are set, and which are due.

Committed timers are part of the partition's state. The live ones add what open
epochs have set, deleted and fired; a new generation starts from the committed.
"""

from collections.abc import Iterator
from heapq import heapify, heappop, heappush

from bettong_engine.core.delta import TimerColumns

EVENT_TIME = 1
PROCESSING_TIME = 2
# Dead entries of a heap that are left before it is built anew.
HEAP_SLACK = 64

# A timer is named by its key, its kind and its own name.
TimerName = tuple[bytes, int, str]


class TimerTable:
    """Timers by name. Invariant: every live timer has an entry in its heap."""

    def __init__(self) -> None:
        self.committed: dict[TimerName, int] = {}
        self._live: dict[TimerName, int] = {}
        self._heaps: dict[int, list[tuple[int, bytes, str]]] = {}

    def apply_live(self, columns: TimerColumns) -> None:
        """Take what an open epoch set, deleted or fired."""
        for name, due_us in _changes(columns):
            if due_us is None:
                self._live.pop(name, None)
            else:
                self._live[name] = due_us
                key, kind, label = name
                heap = self._heaps.setdefault(kind, [])
                heappush(heap, (due_us, key, label))
                if len(heap) > 2 * len(self._live) + HEAP_SLACK:
                    # Timers that are moved again and again leave dead entries.
                    self._fill_heaps()

    def commit(self, columns: TimerColumns) -> None:
        """Take what a committed epoch set, deleted or fired."""
        for name, due_us in _changes(columns):
            if due_us is None:
                self.committed.pop(name, None)
            else:
                self.committed[name] = due_us

    def reset(self) -> None:
        """Forget what open epochs did."""
        self._live = dict(self.committed)
        self._fill_heaps()

    def _fill_heaps(self) -> None:
        self._heaps = {}
        for (key, kind, label), due_us in self._live.items():
            self._heaps.setdefault(kind, []).append((due_us, key, label))
        for heap in self._heaps.values():
            heapify(heap)

    def due(self, kind: int, until_us: int) -> list[tuple[int, bytes, str]]:
        """Return (due, key, name) of the live timers due at `until_us`, in order.

        They stay set until the stage's delta says that they fired.
        """
        heap = self._heaps.get(kind)
        found: list[tuple[int, bytes, str]] = []
        while heap and heap[0][0] <= until_us:
            item = heappop(heap)
            if self._is_live(kind, item) and (not found or found[-1] != item):
                found.append(item)
        for item in found:
            heappush(self._heaps[kind], item)
        return found

    def next_due_us(self, kind: int) -> int | None:
        """Return when the first live timer of a kind is due, or None."""
        heap = self._heaps.get(kind)
        while heap and not self._is_live(kind, heap[0]):
            heappop(heap)
        return heap[0][0] if heap else None

    def _is_live(self, kind: int, item: tuple[int, bytes, str]) -> bool:
        due_us, key, label = item
        return self._live.get((key, kind, label)) == due_us


def _changes(columns: TimerColumns) -> Iterator[tuple[TimerName, int | None]]:
    deleted = frozenset(columns.deleted)
    for i, key in enumerate(columns.keys):
        name = (key, columns.kinds[i], columns.names[i])
        yield name, None if i in deleted else columns.due_us[i]
