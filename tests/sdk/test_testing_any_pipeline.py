"""Any pipeline, any input, crashes anywhere: what comes out is what it would be."""

from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from tests.sdk.shapes import Lines, Target

import bettong as bt
from bettong.testing import Advance, Crash, EndOfEpoch, Result, run_in_memory

KEYS = 4
SECOND = 1_000_000


@dataclass(frozen=True)
class Value:
    """`number` is what steps look at; `path` tells all that happened to it."""

    number: int
    path: str = ""

    def via(self, step: str, number: int | None = None) -> "Value":
        return Value(self.number if number is None else number, f"{self.path}/{step}")


@dataclass
class Sum:
    total: int = 0
    count: int = 0


def add(
    key: int, value: Value, state: Sum, context: bt.Context[int, Sum]
) -> Iterator[Value]:
    """Sum up; put out none, one or two; forget at times; set and delete timers."""
    state.total += value.number
    state.count += 1
    for copy in range(state.count % 3):
        yield value.via(f"sum{state.total}.{copy}")
    due_us = context.processing_time_us + (1 + value.number % 3) * SECOND
    context.set_timer(f"t{value.number % 2}", due_us, "processing")
    if value.number % 5 == 0:
        context.delete_timer("t0", "processing")
    if state.count == 4:
        context.delete_state()


def remind(
    key: int, name: str, state: Sum, context: bt.Context[int, Sum]
) -> Iterator[Value]:
    state.count += 1
    yield Value(key, f"{name}@{context.processing_time_us}:{state.total}")


def last(key: int, value: Value, state: Sum, context: bt.Context[int, Sum]) -> Value:
    """Keep the last number; the state is deleted by a number of its own."""
    before, state.total = state.total, value.number
    if value.number == 7:
        context.state = None
    return value.via(f"after{before}")


Stream = bt.Stream[Value]


def by_number(stream: Stream) -> "bt.KeyedStream[int, Value]":
    return stream.key_by(lambda value: value.number % KEYS, key=int)


class Builder:
    """Adds steps to a stream, each with a name of its own."""

    def __init__(self) -> None:
        self._count = 0

    def _name(self, kind: str) -> str:
        self._count += 1
        return f"{kind}{self._count}"

    def map(self, stream: Stream) -> Stream:
        def increase(value: Value) -> Value:
            return value.via("m", value.number + 1)

        return stream.map(increase)

    def filter(self, stream: Stream) -> Stream:
        return stream.filter(lambda value: value.number % 3)

    def flat_map(self, stream: Stream) -> Stream:
        def split(value: Value) -> list[Value]:
            return [value.via(f"f{i}", value.number + i) for i in range(2)]

        return stream.flat_map(split)

    def add(self, stream: Stream) -> Stream:
        return by_number(stream).stateful(
            add, state=Sum, on_timer=remind, name=self._name("add")
        )

    def last(self, stream: Stream) -> Stream:
        return by_number(stream).stateful(last, state=Sum, name=self._name("last"))

    def collect(self, stream: Stream) -> Stream:
        def join(values: list[Value]) -> Value:
            return values[0].via(f"c{values[1].path}")

        return by_number(stream).collect(2, name=self._name("collect")).map(join)

    def diamond(self, stream: Stream) -> Stream:
        def odd(value: Value) -> Value:
            return value.via("odd")

        arms = stream.branch(lambda v: "odd" if v.number % 2 else "even", _ARMS)
        return bt.merge(arms["odd"].map(odd), arms["even"])


_ARMS = ("odd", "even")
STEPS = ("map", "filter", "flat_map", "add", "last", "collect", "diamond")


def same(value: Value) -> Value:
    return value


def build(steps: list[str], **options: Any) -> bt.App:
    app = bt.App("any", partitions=8, **options)
    builder = Builder()
    values = bt.msgpack(Value)
    stream: Stream = bt.merge(
        *(app.source(name, Lines(values)) for name in ("left", "right"))
    ).map(same, name="head")
    for step in steps:
        add_step: Callable[[Stream], Stream] = getattr(builder, step)
        stream = add_step(stream)
    (
        stream.map(lambda value: value.via("end"), codec=values)
        .key_by(lambda value: value.number % KEYS, key=int, name="to_sink")
        .sink("out", Target(values, partitions=2))
    )
    stream.sink("copy", Target(values))
    return app


crashes = st.builds(Crash, st.sampled_from(["all", "sources", "compute", "sinks"]))
records = st.tuples(st.sampled_from(["left", "right"]), st.integers(0, 12).map(Value))
others = st.sampled_from([EndOfEpoch(), Advance(0.5), Advance(2)])
scripts = st.lists(st.one_of(records, records, others, crashes), max_size=40)


def without_crashes(script: list[Any]) -> list[Any]:
    return [item for item in script if not isinstance(item, Crash)]


def states(result: Result, app: bt.App) -> dict[str, Any]:
    named = [stage for stage in app.plan().stages if stage.keyed is not None]
    return {stage.name: result.state(stage.name) for stage in named}


@settings(max_examples=150, deadline=None)
@given(
    steps=st.lists(st.sampled_from(STEPS), max_size=5),
    script=scripts,
    computes=st.integers(1, 3),
    on_error=st.sampled_from(["fail", "skip"]),
)
def test_outputs_are_those_of_the_run_without_crashes(
    steps: list[str], script: list[Any], computes: int, on_error: str
) -> None:
    app = build(steps, on_error=on_error)

    calm = run_in_memory(app, without_crashes(script), computes=computes)
    found = run_in_memory(app, script, computes=computes)

    assert dict(found) == dict(calm)
    assert states(found, app) == states(calm, app)
    assert found.epochs == calm.epochs
    assert found.skipped == calm.skipped == 0


@settings(max_examples=50, deadline=None)
@given(script=scripts, computes=st.integers(1, 3), records_a_read=st.integers(1, 8))
def test_batches_and_computations_change_no_order_within_a_key(
    script: list[Any], computes: int, records_a_read: int
) -> None:
    # From the sources on by one key: several sources have no order between them.
    app = build(["last", "last", "map"])
    script = [("left", item[1]) if isinstance(item, tuple) else item for item in script]

    plain = run_in_memory(app, without_crashes(script))
    found = run_in_memory(app, script, computes=computes, records_a_read=records_a_read)

    assert by_key(found["copy"]) == by_key(plain["copy"])
    assert by_key(found["out"]) == by_key(plain["out"])
    assert states(found, app) == states(plain, app)


def by_key(values: list[Value]) -> dict[int, list[Value]]:
    found: dict[int, list[Value]] = defaultdict(list)
    for value in values:
        found[value.number % KEYS].append(value)
    return dict(found)
