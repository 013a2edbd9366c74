"""Pipelines in memory: what a user's own tests rely on."""

import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from tests.sdk.shapes import Lines, Target

import bettong as bt
from bettong.testing import (
    Advance,
    Crash,
    EndOfEpoch,
    run_in_memory,
)
from bettong_engine.cli.init import write_project


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


# Uses ---------------------------------------------------------------------------


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
