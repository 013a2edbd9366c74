"""Pipelines in memory: what a user's own tests rely on."""

import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from tests.sdk.shapes import Lines, Target

import bettong as bt
from bettong.testing import (
    Advance,
    Crash,
    EndOfEpoch,
    PendingTimer,
    run_in_memory,
)
from bettong_engine.cli.init import write_project

SECOND = 1_000_000


@dataclass
class Count:
    count: int = 0


def count(key: str, word: str, state: Count) -> str:
    state.count += 1
    return f"{key} => {state.count}"


def counting_app(**options: Any) -> bt.App:
    app = bt.App("counting", **options)
    (
        app.source("lines", Lines())
        .flat_map(str.split, name="split")
        .key_by(lambda word: word)
        .stateful(count, state=Count)
        .sink("counts", Target(bt.text))
    )
    return app


class Witness:
    """Notes each call of user code: what was redone shows here and nowhere else."""

    def __init__(self) -> None:
        self.seen: list[Any] = []

    def __call__(self, value: Any) -> Any:
        self.seen.append(value)
        return value


def test_outputs_and_states_are_those_of_a_plain_loop() -> None:
    result = run_in_memory(counting_app(), {"lines": ["a b a", "b a"]})

    assert result["counts"] == ["a => 1", "b => 1", "a => 2", "b => 2", "a => 3"]
    assert result.state("count") == {"a": Count(3), "b": Count(2)}
    assert result.epochs == 1


@pytest.mark.parametrize("of", ["all", "sources", "compute", "sinks"])
def test_crash_of_any_process_changes_nothing(of: Any) -> None:
    items = ["a b", EndOfEpoch(), "a", Crash(of), "b a", Crash(of), Crash(of)]

    result = run_in_memory(counting_app(), {"lines": items})

    assert result["counts"] == ["a => 1", "b => 1", "a => 2", "b => 2", "a => 3"]
    assert result.state("count") == {"a": Count(3), "b": Count(2)}


@pytest.mark.parametrize(
    ("items", "seen"),
    [
        ([1, 2, Crash(), 3], [1, 2, 1, 2, 3]),
        ([1, EndOfEpoch(), 2, Crash(), 3], [1, 2, 2, 3]),
        ([1, 2, EndOfEpoch(), Crash(), 3], [1, 2, 3]),
        ([1, Advance(0.5), 2, Crash(), 3], [1, 2, 2, 3]),
        ([Crash(), 1, 2, 3, Crash()], [1, 2, 3, 1, 2, 3]),
    ],
)
def test_crash_takes_back_what_is_not_committed_and_no_more(
    items: list[Any], seen: list[int]
) -> None:
    app, witness = bt.App("app"), Witness()
    (
        app.source("numbers", Lines(bt.msgpack))
        .key_by(lambda number: number, key=int)
        .map(witness, name="witness")
        .sink("out", Target())
    )

    result = run_in_memory(app, {"numbers": items})

    assert witness.seen == seen
    assert result["out"] == [1, 2, 3]


def test_source_that_lives_on_sends_again_without_running_its_steps_again() -> None:
    app, witness = bt.App("app"), Witness()
    app.source("in", Lines()).map(witness, name="witness").sink("out", Target())

    result = run_in_memory(app, {"in": ["a", Crash("compute"), "b", Crash("sources")]})

    assert witness.seen == ["a", "b", "a", "b"]
    assert result["out"] == ["a", "b"]


def test_several_computations_share_the_keys() -> None:
    lines = [f"w{i % 7} w{i % 3}" for i in range(60)]
    with_crashes: list[Any] = [*lines[:20], EndOfEpoch(), *lines[20:45], Crash()]
    app = counting_app(partitions=8)

    alone = run_in_memory(app, {"lines": lines})
    shared = run_in_memory(app, {"lines": lines}, computes=3)
    crashed = run_in_memory(app, {"lines": [*with_crashes, *lines[45:]]}, computes=3)
    in_batches = run_in_memory(app, {"lines": lines}, computes=3, records_a_read=16)

    assert shared["counts"] == crashed["counts"] != in_batches["counts"]
    for found in (shared, in_batches):
        assert sorted(found["counts"]) == sorted(alone["counts"])
        assert found.state("count") == alone.state("count")


# Order -----------------------------------------------------------------------


def two_sources() -> bt.App:
    app = bt.App("two")
    left = app.source("left", Lines(bt.msgpack))
    right = app.source("right", Lines(bt.msgpack))
    left.merge(right).sink("out", Target())
    return app


def test_sources_give_one_item_each_in_turn() -> None:
    result = run_in_memory(two_sources(), {"right": [1, 2, 3], "left": ["a"]})

    assert result["out"] == [1, "a", 2, 3]


def test_order_can_be_told() -> None:
    script = [("left", 1), ("left", 2), ("right", (3, "x")), Crash(), ("left", 4)]

    assert run_in_memory(two_sources(), script)["out"] == [1, 2, [3, "x"], 4]


def test_source_without_input_is_empty() -> None:
    result = run_in_memory(two_sources(), {"left": [1]})

    assert result["out"] == [1]


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({"leff": []}, "no source 'leff', only 'left', 'right'"),
        ([("leff", 1)], "no source 'leff', only 'left', 'right'"),
        (["left"], r"'left' is no \(source, record\)"),
        ([(1, 2)], r"\(1, 2\) is no \(source, record\)"),
    ],
)
def test_input_that_cannot_be_is_refused_by_name(inputs: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        run_in_memory(two_sources(), inputs)


def test_items_check_themselves() -> None:
    with pytest.raises(ValueError, match="of is one of all, sources"):
        Crash("engine")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="time goes forward only"):
        Advance(-1)
    with pytest.raises(ValueError, match="1 or more"):
        run_in_memory(two_sources(), {}, computes=0)


# What comes out ----------------------------------------------------------------


def test_outputs_are_values_also_of_sinks_that_take_bytes(tmp_path: Path) -> None:
    app = bt.App("app")
    stream = app.source("in", Lines(bt.raw_bytes))
    stream.sink("file", bt.FileSink(tmp_path / "never", framing="length4"))
    stream.map(lambda value: value.decode("latin-1")).sink(
        "text", bt.FileSink(tmp_path / "never either", framing="length4")
    )
    stream.map(lambda value: {"n": len(value)}).sink("json", Target(bt.json))
    stream.map(lambda value: (len(value), "é"), codec=bt.pickled()).sink(
        "pickled", Target(bt.pickled())
    )

    result = run_in_memory(app, {"in": [b"a", b"\xff\xfe"]})

    assert result == {
        "file": [b"a", b"\xff\xfe"],
        "text": ["a", "ÿþ"],
        "json": [{"n": 1}, {"n": 2}],
        "pickled": [(1, "é"), (2, "é")],
    }
    assert not list(tmp_path.iterdir())


def test_output_is_what_it_was_when_it_was_put_out() -> None:
    def grow(key: str, value: str, state: list[str]) -> list[str]:
        state.append(value)
        return state

    app = bt.App("app")
    (
        app.source("in", Lines())
        .key_by(lambda value: "k")
        .stateful(grow, state=list[str])
        .sink("out", Target())
    )

    assert run_in_memory(app, {"in": ["a", "b"]})["out"] == [["a"], ["a", "b"]]


def test_sink_with_partitions_keeps_the_order_of_each_key() -> None:
    app = bt.App("app")
    (
        app.source("in", Lines())
        .key_by(lambda value: value[0])
        .stateful(count, state=Count)
        .sink("out", Target(bt.text, partitions=3))
    )
    items: list[Any] = ["a", "b", EndOfEpoch(), "a", Crash(), "c", "a"]

    found = run_in_memory(app, {"in": items})["out"]

    assert sorted(found) == ["a => 1", "a => 2", "a => 3", "b => 1", "c => 1"]
    assert [value for value in found if value[0] == "a"] == [
        "a => 1",
        "a => 2",
        "a => 3",
    ]


def test_names_that_do_not_exist_are_told_with_those_that_do() -> None:
    result = run_in_memory(counting_app(), {"lines": ["a"]})

    with pytest.raises(KeyError, match="no sink 'count', only 'counts'"):
        _ = result["count"]
    with pytest.raises(KeyError, match="no stateful step 'counts'; there is: 'count'"):
        result.state("counts")
    with pytest.raises(KeyError, match="no stateful step 'x'"):
        result.timers("x")
    assert repr(result) == "Result({'counts': ['a => 1']})"


def test_stateful_steps_without_state_get_no_state() -> None:
    def shout(key: str, word: str) -> str:
        return f"{key}: {word}!"

    def time(key: str, text: str, context: bt.Context[str, Any]) -> str:
        assert context.state is None
        return f"{text} {context.processing_time_us}"

    app = bt.App("app")
    (
        app.source("in", Lines())
        .key_by(lambda word: word[0])
        .stateful(shout)
        .stateful(time)
        .sink("out", Target(bt.text))
    )

    result = run_in_memory(app, {"in": ["ab", Crash(), "cd"]}, start_us=7)

    assert result["out"] == ["a: ab! 7", "c: cd! 7"]
    with pytest.raises(KeyError, match="step 'shout' has no state="):
        result.state("shout")


def test_collected_values_are_what_they_were_also_after_a_crash() -> None:
    app = bt.App("app")
    (
        app.source("in", Lines(bt.msgpack(Count)))
        .key_by(lambda value: "k", key=str)
        .collect(2)
        .map(lambda values: [type(value).__name__ for value in values])
        .sink("out", Target())
    )

    result = run_in_memory(app, {"in": [Count(1), EndOfEpoch(), Crash(), Count(2)]})

    assert result["out"] == [["Count", "Count"]]


def test_state_that_is_deleted_is_gone() -> None:
    def close(key: str, word: str, state: Count, context: bt.Context[str, Any]) -> None:
        state.count += 1
        if state.count == 2:
            context.delete_state()

    app = bt.App("app")
    (
        app.source("in", Lines())
        .key_by(lambda word: word)
        .stateful(close, state=Count)
        .sink("out", Target())
    )
    items = ["a", "b", EndOfEpoch(), Crash("compute"), "a", Crash()]

    assert run_in_memory(app, {"in": items}).state("close") == {"b": Count(1)}


# Time --------------------------------------------------------------------------


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


# Failures ----------------------------------------------------------------------


def reciprocal(key: str, number: int, state: Count) -> float:
    state.count += 1
    return 1 / number


def dividing_app(**options: Any) -> bt.App:
    app = bt.App("dividing", **options)
    (
        app.source("texts", Lines())
        .map(int, name="parse", codec=bt.msgpack(int))
        .key_by(lambda number: "k", key=str)
        .stateful(reciprocal, state=Count)
        .sink("out", Target())
    )
    return app


def test_error_of_user_code_names_step_key_and_record_and_is_chained() -> None:
    with pytest.raises(bt.UserCodeError) as raised:
        run_in_memory(dividing_app(), {"texts": ["1", "0", "2"]})

    assert str(raised.value) == (
        "step 'reciprocal': ZeroDivisionError: division by zero (record 0 of key b'k')"
    )
    assert (raised.value.step, raised.value.key) == ("reciprocal", b"k")
    assert isinstance(raised.value.__cause__, ZeroDivisionError)


def test_error_in_a_step_of_the_source_names_stream_and_position() -> None:
    with pytest.raises(bt.UserCodeError, match=r"step 'parse'.*'two'") as raised:
        run_in_memory(dividing_app(), {"texts": ["1", EndOfEpoch(), "two"]})

    assert (raised.value.stream, raised.value.position) == ("memory", b"2")
    assert isinstance(raised.value.__cause__, ValueError)


def test_error_in_a_timer_is_one_of_its_step() -> None:
    def fail(
        key: str, name: str, state: Session, context: bt.Context[str, Session]
    ) -> None:
        raise LookupError(name)

    app = bt.App("app")
    (
        app.source("in", Lines())
        .key_by(lambda word: word)
        .stateful(remember, state=Session, on_timer=fail)
        .sink("out", Target())
    )

    with pytest.raises(bt.UserCodeError, match="LookupError: close") as raised:
        run_in_memory(app, {"in": ["a", Advance(6)]})

    assert raised.value.step == "remember.on_timer"
    assert raised.value.key == b"a"


def test_value_that_the_sink_cannot_take_is_an_error() -> None:
    app = bt.App("app")
    app.source("in", Lines()).map(lambda word: len(word)).sink("out", Target(bt.text))

    with pytest.raises(bt.UserCodeError, match="takes str, got int") as raised:
        run_in_memory(app, {"in": ["a"]})

    assert isinstance(raised.value.__cause__, bt.CodecError)


def test_skipped_records_leave_nothing_but_a_count() -> None:
    items = ["1", "x", "0", Crash(), "2", EndOfEpoch(), "0", Crash(), "4"]

    result = run_in_memory(dividing_app(on_error="skip"), {"texts": items})

    assert result["out"] == [1.0, 0.5, 0.25]
    assert result.state("reciprocal") == {"k": Count(3)}
    assert result.skipped == 3


def test_dead_letters_come_out_of_their_sink() -> None:
    app = dividing_app(on_error="dead_letter", dead_letter=Target(bt.text))
    items = ["1", "x", Crash(), "0", "2"]

    result = run_in_memory(app, {"texts": items})

    assert result["out"] == [1.0, 0.5]
    letters = [
        (letter["step"], letter["key"], letter["value"], letter["error"])
        for letter in result["dead-letters"]
    ]
    assert letters == [
        (
            "parse",
            None,
            "x",
            "ValueError: invalid literal for int() with base 10: 'x'",
        ),
        ("reciprocal", "k", 0, "ZeroDivisionError: division by zero"),
    ]
    assert result.state("reciprocal") == {"k": Count(2)}


# Any pipeline ------------------------------------------------------------------


def test_project_of_bettong_init_passes_its_own_test(tmp_path: Path) -> None:
    write_project(tmp_path / "project")

    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"],
        cwd=tmp_path / "project",
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 passed" in done.stdout


def test_app_can_be_run_again_and_again() -> None:
    app = counting_app()

    first, second = (run_in_memory(app, {"lines": ["a"]}) for _ in range(2))

    assert first == second == {"counts": ["a => 1"]}


def test_many_outputs_of_one_record_come_in_order() -> None:
    def spread(key: str, word: str, state: Count) -> Iterator[str]:
        for letter in word:
            state.count += 1
            yield f"{letter}{state.count}"

    app = bt.App("app")
    (
        app.source("in", Lines())
        .key_by(lambda word: "k")
        .stateful(spread, state=Count)
        .key_by(lambda text: text[0])
        .stateful(count, state=Count)
        .sink("out", Target(bt.text))
    )

    result = run_in_memory(app, {"in": ["aba", Crash(), "b"]}, computes=2)

    assert result["out"] == ["a => 1", "b => 1", "a => 2", "b => 2"]
