"""Failures of user code in a run in memory, under each policy."""

from dataclasses import dataclass, field
from typing import Any

import pytest
from tests.sdk.shapes import Lines, Target

import bettong as bt
from bettong.testing import Advance, Crash, EndOfEpoch, run_in_memory

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
