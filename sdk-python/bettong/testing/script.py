"""What a test feeds to a pipeline: records, and what happens between them."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

Victim = Literal["all", "sources", "compute", "sinks"]

_VICTIMS = ("all", "sources", "compute", "sinks")


@dataclass(frozen=True, slots=True)
class Crash:
    """Processes die here, like by `kill -9`, and are started again.

    The records before it are processed by then. What is after the last end of an
    epoch is undone and done again; what is before it stands.

    of: "sources", "compute" or "sinks" loses the memory of these alone: the others
        are told to go back, which is another path through the SDK.
    """

    of: Victim = "all"

    def __post_init__(self) -> None:
        if self.of not in _VICTIMS:
            raise ValueError(f"Crash({self.of!r}): of is one of {', '.join(_VICTIMS)}")


@dataclass(frozen=True, slots=True)
class EndOfEpoch:
    """Everything before it is committed here: due timers fire, sinks get outputs."""


@dataclass(frozen=True, slots=True)
class Advance:
    """Processing time passes: first the open epoch ends, then timers fire in turn.

    Each fires at its own time, as it would while an application waits; what is before
    this item is committed, and so is what the timers did. A source without records
    for its `idle_after_ms` counts as idle.
    """

    seconds: float

    def __post_init__(self) -> None:
        if not self.seconds >= 0:
            raise ValueError(f"Advance({self.seconds!r}): time goes forward only")


@dataclass(frozen=True, slots=True)
class Feed:
    """Records of one source, one after the other."""

    source: str
    records: list[Any]


Control = Crash | EndOfEpoch | Advance
Inputs = Mapping[str, Iterable[Any]] | Iterable[tuple[str, Any] | Control]


def build_script(inputs: Inputs, sources: Sequence[str]) -> list[Feed | Control]:
    """Put all inputs in one order.

    Args:
        inputs: items by source: one of each source in turn, in the order of the
            mapping. Or one sequence of (source, record) and control items.
        sources: of the application.

    Raises:
        ValueError: a source that the application does not have, or no pair.
    """
    if isinstance(inputs, Mapping):
        # Also those without an item: nobody sees a typo in a name otherwise.
        for source in inputs:
            _check_known(source, sources)
        items: Iterable[Any] = _interleave(inputs)
    else:
        items = inputs
    script: list[Feed | Control] = []
    for item in items:
        if isinstance(item, Crash | EndOfEpoch | Advance):
            script.append(item)
            continue
        source, record = _pair(item)
        _check_known(source, sources)
        last = script[-1] if script else None
        if isinstance(last, Feed) and last.source == source:
            last.records.append(record)
        else:
            script.append(Feed(source, [record]))
    return script


def _check_known(source: str, sources: Sequence[str]) -> None:
    if source not in sources:
        known = ", ".join(map(repr, sources))
        raise ValueError(f"the application has no source {source!r}, only {known}")


def _pair(item: Any) -> tuple[str, Any]:
    if isinstance(item, tuple) and len(item) == 2 and isinstance(item[0], str):
        return item[0], item[1]
    raise ValueError(
        f"{item!r} is no (source, record), Crash(), EndOfEpoch() or Advance(seconds);"
        " for items by source give a mapping, {source: [...]}"
    )


def _interleave(
    inputs: Mapping[str, Iterable[Any]],
) -> list[tuple[str, Any] | Control]:
    """Take one item of each source in turn; a control item stands for itself."""
    waiting = {name: iter(items) for name, items in inputs.items()}
    found: list[tuple[str, Any] | Control] = []
    while waiting:
        for name, items in list(waiting.items()):
            try:
                item = next(items)
            except StopIteration:
                del waiting[name]
                continue
            is_control = isinstance(item, Crash | EndOfEpoch | Advance)
            found.append(item if is_control else (name, item))
    return found
