"""Checks the detector's output: every window follows the one before of its key."""

from collections.abc import Iterable


def check_continuously(lines: Iterable[str]) -> dict[int, int]:
    """Check every window against the one before of its key; return the last ones.

    A loss, a repetition, a swap, and a state that was restored to another moment all
    show at the first line that they touch.
    """
    last: dict[int, int] = {}
    for place, line in enumerate(lines):
        key_text, _, window_text = line.partition(" ")
        key = int(key_text)
        number = last.get(key, 0) + 1
        assert window_text == window_of(number), (
            f"line {place}, key {key}: {window_text} after {last.get(key)}"
        )
        last[key] = number
    return last


def window_of(number: int) -> str:
    """Return the window that a key's input `number` gives."""
    return str([max(0, number - back) for back in (3, 2, 1, 0)])


def undisturbed(count: int, keys: int) -> list[str]:
    """Return all lines of one stream through one computation."""
    return [f"{i % keys} {window_of(i // keys + 1)}" for i in range(count)]
