"""The engine's clock: wall time that never steps back."""

import time


class Clock:
    """Wall-clock time at start, and monotonic time since."""

    def __init__(self) -> None:
        self._offset_ns = time.time_ns() - time.monotonic_ns()

    def now_ms(self) -> int:
        """Return milliseconds since the Unix epoch, never falling."""
        return (time.monotonic_ns() + self._offset_ns) // 1_000_000
