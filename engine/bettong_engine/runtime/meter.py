"""What the engine counts, for status, the live view and metrics: rates, latencies."""

from bisect import insort
from collections import deque
from dataclasses import dataclass, field

WINDOW_MS = 10_000


@dataclass(slots=True)
class Meter:
    """Counts since start, and what the last ten seconds looked like.

    Per epoch, never per record.
    """

    records_in: int = 0
    records_out: int = 0
    # By the policy "skip".
    records_skipped: int = 0
    output_bytes: int = 0
    epochs: int = 0
    # (time, records in, records out, latency to commit) of committed epochs.
    _recent: deque[tuple[int, int, int, int | None]] = field(default_factory=deque)

    def on_epoch(
        self,
        now_ms: int,
        *,
        opened_ms: int | None,
        records_in: int,
        records_out: int,
        output_bytes: int,
        records_skipped: int = 0,
    ) -> None:
        """Count a committed epoch. Latency: from its first frame to its commit."""
        self.epochs += 1
        self.records_in += records_in
        self.records_out += records_out
        self.records_skipped += records_skipped
        self.output_bytes += output_bytes
        latency_ms = None if opened_ms is None else now_ms - opened_ms
        self._recent.append((now_ms, records_in, records_out, latency_ms))
        self._forget(now_ms)

    def rates(self, now_ms: int) -> tuple[float, float, float]:
        """Return records in, records out and epochs, a second, lately."""
        self._forget(now_ms)
        if not self._recent:
            return 0.0, 0.0, 0.0
        span_s = max((now_ms - self._recent[0][0]) / 1000, 1.0)
        records_in = sum(item[1] for item in self._recent)
        records_out = sum(item[2] for item in self._recent)
        return records_in / span_s, records_out / span_s, len(self._recent) / span_s

    def latency_ms(self, quantile: float) -> int | None:
        """Return a quantile of the latency to commit, lately."""
        found: list[int] = []
        for *_, latency in self._recent:
            if latency is not None:
                insort(found, latency)
        if not found:
            return None
        return found[min(int(len(found) * quantile), len(found) - 1)]

    def _forget(self, now_ms: int) -> None:
        while self._recent and self._recent[0][0] < now_ms - WINDOW_MS:
            self._recent.popleft()
