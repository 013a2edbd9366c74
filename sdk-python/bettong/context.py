"""What the function of a stateful step may ask for beside key, value and state.

For the runtime: one `Context` serves a whole stage and is used again for each
record, so that a call costs a few slot stores and no object.

1. Before a call, store `key`, `timestamp_us` and `state` (the live state object, or
   a fresh one of `StateSpec.factory`); once per batch or barrier, store
   `watermark_us` and `processing_time_us`.
2. After a call that returned (a generator: that is exhausted), read `state`: None
   means that the state is deleted; an object other than the one stored before
   replaces it; the same object may have been changed in place.
3. Then, if `timer_changes` is not empty, apply its entries in order and clear the
   list. After a call that raised, clear the list and apply nothing.
"""

from typing import Any, Generic, Literal, NamedTuple, TypeVar

from bettong.errors import TimerError

KeyT = TypeVar("KeyT")
StateT = TypeVar("StateT")

TimerKindName = Literal["event", "processing"]

# Names of the wire's TimerKind: EVENT_TIME and PROCESSING_TIME.
TIMER_KINDS: dict[str, int] = {"event": 1, "processing": 2}


class TimerChange(NamedTuple):
    """A timer that was set, or with `due_us` None deleted.

    kind: the number of the wire's TimerKind.
    due_us: microseconds since the Unix epoch, event or processing time.
    """

    kind: int
    name: str
    due_us: int | None


class Context(Generic[KeyT, StateT]):
    """The record at hand and what may be done with its key.

    Valid during the call only; the same object serves the next record.

    key: key of the record or timer.
    state: state of the key. Assign to replace it; None deletes it. None also after
        `delete_state`, until the next record of the key makes it anew.
    timestamp_us: event time of the record, or due time of the timer; None where
        the source has no event time. Microseconds since the Unix epoch.
    watermark_us: no record older than this will come; None: nothing known yet.
    processing_time_us: the engine's clock at the last barrier; never falls.
    timer_changes: of this call; the runtime applies it when the call has returned.
    """

    __slots__ = (
        "key",
        "processing_time_us",
        "state",
        "timer_changes",
        "timestamp_us",
        "watermark_us",
    )

    def __init__(self) -> None:
        self.key: Any = None
        self.state: Any = None
        self.timestamp_us: int | None = None
        self.watermark_us: int | None = None
        self.processing_time_us: int = 0
        self.timer_changes: list[TimerChange] = []

    def set_timer(self, name: str, due_us: int, kind: TimerKindName = "event") -> None:
        """Call `on_timer` of this step for this key when `kind` time reaches due_us.

        A timer is known by (key, kind, name): setting it again moves it. One that
        is already due fires at the next barrier.

        Raises:
            TimerError: an unknown kind, or a due time that is no int of 64 bits.
        """
        if type(due_us) is not int or not -(1 << 63) <= due_us < 1 << 63:
            raise TimerError(
                f"timer {name!r}: due_us must be an int, microseconds since the Unix"
                f" epoch, got {due_us!r}"
            )
        self.timer_changes.append(TimerChange(_kind_number(name, kind), name, due_us))

    def delete_timer(self, name: str, kind: TimerKindName = "event") -> None:
        """Forget a timer of this key; nothing happens if there is none."""
        self.timer_changes.append(TimerChange(_kind_number(name, kind), name, None))

    def delete_state(self) -> None:
        """Delete the state of this key: `state = None`. Timers stay."""
        self.state = None


def _kind_number(name: str, kind: str) -> int:
    number = TIMER_KINDS.get(kind)
    if number is None or not isinstance(name, str):
        raise TimerError(
            f"timer {name!r} of kind {kind!r}: the name must be a str, the kind"
            ' "event" or "processing"'
        )
    return number
