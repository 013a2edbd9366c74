"""Tells user code that hangs on one input from user code that was slow once.

The engine cannot see which record a plugin is at. The same input comes again soon
after each restart, so timeouts of one plugin that follow each other closely are those
of one input; between two of them, epochs of other inputs may well be committed.
"""

HANGS_MAX = 3
# A timeout is forgotten after so many times the limit.
FORGOTTEN_AFTER = 10


class HangWatch:
    """Invariant: a plugin has fewer than HANGS_MAX timeouts that are remembered."""

    def __init__(self, batch_timeout_ms: int) -> None:
        self._memory_ms = batch_timeout_ms * FORGOTTEN_AFTER
        self._hangs: dict[str, list[int]] = {}

    def on_timeout(self, plugin: str, now_ms: int) -> bool:
        """Return whether this is one too many: a person has to look."""
        recent = [
            t for t in self._hangs.get(plugin, ()) if now_ms - t < self._memory_ms
        ]
        recent.append(now_ms)
        if len(recent) < HANGS_MAX:
            self._hangs[plugin] = recent
            return False
        self._hangs.pop(plugin, None)
        return True
