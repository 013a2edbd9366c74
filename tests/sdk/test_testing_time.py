"""Time in a run in memory: timers of both kinds, watermarks, idle sources."""

from dataclasses import dataclass, field
from typing import Any

import pytest
from tests.sdk.shapes import Lines, Target

import bettong as bt
from bettong.testing import Advance, Crash, EndOfEpoch, PendingTimer, run_in_memory

SECOND = 1_000_000


@dataclass
class Count:
    count: int = 0


@dataclass
class Session:
    words: list[str] = field(default_factory=list)


def remember(
    key: str, word: str, state: Session, context: bt.Context[str, Session]
) -> None:
    state.words.append(word)
    context.set_timer("close", context.processing_time_us + 5 * SECOND, "processing")


def close_session(
    key: str, name: str, state: Session, context: bt.Context[str, Session]
) -> str:
    context.delete_state()
    second = context.processing_time_us // SECOND
    return f"{key} {name} at {second}: {' '.join(state.words)}"


def session_app() -> bt.App:
    app = bt.App("sessions")
    (
        app.source("words", Lines())
        .key_by(lambda word: word[0])
        .stateful(remember, state=Session, on_timer=close_session, name="session")
        .sink("sessions", Target(bt.text))
    )
    return app


def test_timers_of_processing_time_fire_while_it_advances() -> None:
    items = ["a1", "b1", Advance(3), "a2", Crash(), Advance(4), "c1"]

    result = run_in_memory(session_app(), {"words": items}, start_us=100 * SECOND)

    assert result["sessions"] == ["b close at 105: b1"]
    assert result.state("session") == {"a": Session(["a1", "a2"]), "c": Session(["c1"])}
    assert result.timers("session") == {
        "a": [PendingTimer("close", 108 * SECOND, "processing")],
        "c": [PendingTimer("close", 112 * SECOND, "processing")],
    }


def test_timers_fire_each_at_its_own_time_in_one_advance() -> None:
    items = ["a1", Advance(1), "b1", Advance(60)]

    result = run_in_memory(session_app(), {"words": items})

    assert result["sessions"] == ["a close at 5: a1", "b close at 6: b1"]
    assert result.state("session") == {}
    assert result.timers("session") == {}


def test_timer_that_never_stops_is_an_error() -> None:
    def again(key: str, name: str, context: bt.Context[str, Any]) -> None:
        context.set_timer(name, context.processing_time_us + 1, "processing")

    def start(key: str, word: str, context: bt.Context[str, Any]) -> None:
        again(key, "tick", context)

    app = bt.App("app")
    (
        app.source("in", Lines())
        .key_by(lambda word: word)
        .stateful(start, on_timer=again)
        .sink("out", Target())
    )

    with pytest.raises(bt.BettongError, match="10,000 times within Advance"):
        run_in_memory(app, {"in": ["a", Advance(60)]})


def wait_for(
    key: str, second: int, state: Count, context: bt.Context[str, Count]
) -> None:
    state.count += 1
    context.set_timer(f"at {second}", second * SECOND)


def tell_due(
    key: str, name: str, state: Count, context: bt.Context[str, Count]
) -> list[int]:
    assert context.watermark_us is not None
    assert context.timestamp_us is not None
    # The end of time is no number of seconds to look at.
    watermark = min(context.watermark_us // SECOND, 999)
    return [context.timestamp_us // SECOND, watermark, state.count]


def event_time_app(**options: Any) -> bt.App:
    app = bt.App("events")
    streams = [
        app.source(
            name,
            Lines(bt.msgpack),
            event_time=lambda second: second * SECOND,
            idle_after_ms=1000,
            **options,
        )
        for name in ("one", "two")
    ]
    (
        bt.merge(*streams)
        .key_by(lambda second: "k", key=str)
        .stateful(wait_for, state=Count, on_timer=tell_due, name="wait")
        .sink("due", Target())
    )
    return app


def test_timers_of_event_time_fire_when_no_older_record_can_come() -> None:
    script = [
        ("one", 10),
        ("two", 20),
        EndOfEpoch(),
        ("one", 25),
        Crash(),
        EndOfEpoch(),
        ("two", 40),
        EndOfEpoch(),
        Crash(),
        ("one", 60),
        EndOfEpoch(),
    ]

    result = run_in_memory(event_time_app(), script)

    assert result["due"] == [
        [10, 10, 2],
        [20, 20, 3],
        [25, 25, 4],
        [40, 40, 5],
        [60, 999, 5],
    ]


def test_late_records_are_allowed_for() -> None:
    items = {"one": [10, EndOfEpoch(), 12, EndOfEpoch(), 15, EndOfEpoch()]}

    result = run_in_memory(event_time_app(out_of_order_us=3 * SECOND), items)

    assert result["due"] == [[10, 12, 3], [12, 12, 3], [15, 999, 3]]


def test_end_of_the_input_is_the_end_of_time() -> None:
    items = {"one": [10, EndOfEpoch(), 20]}

    ended = run_in_memory(event_time_app(), items)
    open_still = run_in_memory(event_time_app(), items, ends=False)

    assert ended["due"] == [[10, 10, 1], [20, 999, 2]]
    assert open_still["due"] == [[10, 10, 1], [20, 20, 2]]


def test_silent_source_holds_time_back_until_it_is_idle() -> None:
    script = [("one", 10), ("two", 5), EndOfEpoch(), ("one", 30), EndOfEpoch()]

    waiting = run_in_memory(event_time_app(), script, ends=False)
    script += [Advance(1.5), ("one", 31)]
    idle = run_in_memory(event_time_app(), script, ends=False)

    assert waiting["due"] == [[5, 5, 2]]
    assert waiting.timers("wait") == {
        "k": [
            PendingTimer("at 10", 10 * SECOND, "event"),
            PendingTimer("at 30", 30 * SECOND, "event"),
        ]
    }
    assert idle["due"] == [[5, 5, 2], [10, 31, 4], [30, 31, 4], [31, 31, 4]]
