"""Whole plans on all machines, with faults: the output is that of an even run."""

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.sdk.runtime.engine_double import EngineDouble
from tests.sdk.runtime.engine_records import Options
from tests.sdk.runtime.memory_connectors import ListSink, ListSource

import bettong as bt
from bettong.plan import Plan

FAULTS = ("reset", "crash_compute", "crash_source", "crash_sink")
WORDS_A_STREAM = 40


@dataclass
class Count:
    count: int = 0


@dataclass
class Ring:
    last: list[int] = field(default_factory=lambda: [0, 0, 0, 0])


def count(
    key: str, word: str, state: Count, context: bt.Context[str, Count]
) -> Iterator[str]:
    """Count a word; begin anew after five, so that states are deleted too."""
    state.count += 1
    yield f"{key}={state.count}"
    if state.count == 5:
        context.delete_state()


def ring(key: str, text: str, state: Ring) -> str:
    """Keep the last four counts: loss, repetition and disorder all show."""
    state.last = [*state.last[1:], int(text.split("=")[1])]
    return f"{key}:{state.last}"


def lines_of(stream: str) -> list[str]:
    """Return lines of words that no other stream has, some often, some seldom."""
    words = [f"{stream}{(i * i) % 11}" for i in range(WORDS_A_STREAM)]
    return [" ".join(words[i : i + 3]) for i in range(0, len(words), 3)]


def make_plan(
    sink: ListSink, on_error: Any = "fail", **source: Any
) -> tuple[Plan, ListSource]:
    lines = ListSource({name: lines_of(name) for name in ("a", "b")}, **source)
    app = bt.App("recovery", partitions=8, on_error=on_error)
    (
        app.source("lines", lines)
        .flat_map(str.split, name="split")
        .key_by(lambda word: word, key=str, name="by_word")
        .stateful(count, state=Count, name="count")
        .key_by(lambda text: text.split("=")[0], key=str, name="by_word_again")
        .stateful(ring, state=Ring, name="ring")
        .sink("out", sink)
    )
    return app.plan(), lines


def expected_by_key() -> dict[str, list[str]]:
    """Return what a plain loop gives."""
    found: dict[str, list[str]] = defaultdict(list)
    counts: dict[str, int] = {}
    rings: dict[str, list[int]] = {}
    for stream in ("a", "b"):
        for line in lines_of(stream):
            for word in line.split():
                counts[word] = counts.get(word, 0) % 5 + 1
                rings[word] = [*rings.get(word, [0] * 4)[1:], counts[word]]
                found[word].append(f"{word}:{rings[word]}")
    return dict(found)


def by_key(records: list[str]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = defaultdict(list)
    for record in records:
        found[record.split(":")[0]].append(record)
    return dict(found)


@pytest.mark.parametrize("seed", range(5))
def test_run_without_faults_gives_what_a_plain_loop_gives(seed: int) -> None:
    sink = ListSink(partitions=3)
    plan, _ = make_plan(sink)

    engine = EngineDouble(plan, seed)
    engine.run()

    assert by_key(sink.records) == expected_by_key()
    assert not engine.errors


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    faults=st.dictionaries(st.integers(0, 1500), st.sampled_from(FAULTS), max_size=6),
    credit=st.sampled_from([1, 5, 40, 1000]),
    batch_records=st.sampled_from([1, 4, 100]),
    cut_ratio=st.sampled_from([0.02, 0.2, 0.5]),
    has_two_targets=st.booleans(),
)
def test_faults_at_any_step_change_no_output(
    seed: int,
    faults: dict[int, str],
    credit: int,
    batch_records: int,
    cut_ratio: float,
    has_two_targets: bool,
) -> None:
    sink = ListSink(partitions=2)
    plan, source = make_plan(sink)
    options = Options(
        credit_records=credit,
        batch_records=batch_records,
        cut_ratio=cut_ratio,
        has_two_targets=has_two_targets,
    )

    engine = EngineDouble(plan, seed, options)
    engine.run(crash_at=faults)

    assert by_key(sink.records) == expected_by_key()
    assert not engine.errors
    for offsets in source.committed.values():
        assert offsets == sorted(offsets)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**32), faults=st.sets(st.integers(0, 1000), max_size=4))
def test_local_streams_survive_resets_from_memory(seed: int, faults: set[int]) -> None:
    sink = ListSink()
    plan, source = make_plan(sink, kind=bt.StreamKind.LOCAL)

    engine = EngineDouble(plan, seed)
    engine.run(crash_at=dict.fromkeys(faults, "reset"))

    assert by_key(sink.records) == expected_by_key()
    assert sorted(source.opened) == [("a", None), ("b", None)]


def test_trouble_of_a_sink_neither_loses_nor_repeats() -> None:
    sink = ListSink()
    plan, _ = make_plan(sink)

    engine = EngineDouble(plan, 3)
    for call in ("open", "write", "flush", "write", "flush"):
        sink.faults[call] = bt.SinkError("gone")
        for _ in range(150):
            engine.step()
    engine.run()

    assert by_key(sink.records) == expected_by_key()
    assert {int(error.code) for error in engine.errors} == {
        int(bt.ErrorCode.SINK_UNAVAILABLE)
    }


def test_trouble_of_a_source_neither_loses_nor_repeats() -> None:
    sink = ListSink()
    plan, source = make_plan(sink)

    engine = EngineDouble(plan, 4)
    for _ in range(4):
        source.fault = bt.SourceError("gone")
        for _ in range(100):
            engine.step()
    engine.run()

    assert by_key(sink.records) == expected_by_key()
    assert {int(error.code) for error in engine.errors} == {
        int(bt.ErrorCode.SOURCE_UNAVAILABLE)
    }


def test_refused_output_is_skipped_and_nothing_else() -> None:
    sink = ListSink()
    plan, _ = make_plan(sink)
    refused = expected_by_key()["a0"][0]
    sink.refuses.add(refused)

    engine = EngineDouble(plan, 5)
    engine.run(crash_at={200: "crash_sink"})

    expected = expected_by_key()
    expected["a0"].remove(refused)
    assert by_key(sink.records) == expected
