"""The generated loops: what they put out, and whom they blame."""

import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from tests.sdk.runtime.memory_connectors import ListSource

import bettong as bt
from bettong.codecs import msgpack, text
from bettong.keys import key_codec
from bettong.plan import (
    Chain,
    Edge,
    FailurePolicy,
    KeyedStep,
    SourcePlan,
    StageInput,
    StagePlan,
    StateSpec,
    Step,
    StepKind,
)
from bettong.program.columns import Columns, SizeLimits
from bettong.program.emitting import emitting
from bettong.program.failure import RecordFailedError, SkippedRecord
from bettong.program.source import SourceProgram
from bettong.program.stage import StageProgram
from bettong.program.state_writer import StateWriter
from bettong.runtime.cache import StageCache


@dataclass
class Count:
    count: int = 0


def identity(value: Any) -> Any:
    return value


def by_key(number: int = 0, key: Callable[[Any], Any] = identity) -> Edge:
    return Edge(
        number,
        to_stage="next",
        to_sink=None,
        input=0,
        codec=text,
        key=key,
        key_step="by_key",
        key_codec=key_codec(str),
    )


def to_sink(number: int = 0) -> Edge:
    return Edge(number, to_stage=None, to_sink="out", input=0, codec=text)


def step(kind: StepKind, function: Callable[[Any], Any], name: str = "") -> Step:
    return Step(name or kind.value, kind, function)


def source_program(
    chain: Chain,
    outputs: tuple[Edge, ...],
    policy: FailurePolicy = FailurePolicy.FAIL,
    event_time: Callable[[Any], int] | None = None,
    limits: SizeLimits | None = None,
) -> SourceProgram:
    plan = SourcePlan("lines", ListSource({}), chain, outputs, (), event_time)
    return SourceProgram(
        plan, policy=policy, sink_partitions={"out": 1}, limits=limits or SizeLimits()
    )


def run_source(program: SourceProgram, records: list[Any]) -> list[Columns]:
    return program.run(records, lambda record: None)[0]


def test_steps_run_in_order_and_branches_share_their_value() -> None:
    even = Chain((step(StepKind.FILTER, lambda n: n % 2 == 0),), (to_sink(0),))
    rest = Chain((step(StepKind.MAP, lambda n: n * 10),), (to_sink(1),))
    to_text = Edge(0, None, "out", 0, msgpack)
    chain = Chain(
        (
            step(StepKind.FLAT_MAP, str.split),
            step(StepKind.MAP, int),
        ),
        branches=(even, rest),
    )
    edges = (to_text, Edge(1, None, "out", 0, msgpack))
    even = Chain(even.steps, (edges[0],))
    chain = Chain(chain.steps, branches=(even, Chain(rest.steps, (edges[1],))))

    columns = run_source(source_program(chain, edges), ["1 2", "", "4"])

    assert [msgpack.decode(v) for v in columns[0].values or ()] == [2, 4]
    assert [msgpack.decode(v) for v in columns[1].values or ()] == [10, 20, 40]
    assert columns[0].keys is None


def test_choice_takes_one_branch_and_refuses_unknown_names() -> None:
    edges = (to_sink(0), to_sink(1))
    chain = Chain(
        choose=lambda value: {"a": "left", "b": "right"}.get(value, "nowhere"),
        choose_step="pick",
        choices={"left": Chain((), (edges[0],)), "right": Chain((), (edges[1],))},
    )
    program = source_program(chain, edges)

    columns = run_source(program, ["a", "b", "a"])
    with pytest.raises(RecordFailedError) as raised:
        run_source(program, ["a", "z"])

    assert [column.values for column in columns] == [[b"a", b"a"], [b"b"]]
    assert (raised.value.step, raised.value.index) == ("pick", 1)
    assert "left, right" in str(raised.value)


def test_value_that_is_its_key_needs_no_column_until_one_is_not() -> None:
    def key(value: str) -> str:
        return value if value != "odd" else "other"

    edge = by_key(key=key)
    program = source_program(Chain((), (edge,)), (edge,))

    same = run_source(program, ["a", "b"])[0]
    mixed = run_source(program, ["a", "odd", "b"])[0]
    after = run_source(program, ["a"])[0]

    assert (same.keys, same.values) == ([b"a", b"b"], None)
    assert mixed.keys == [b"a", b"other", b"b"]
    assert mixed.values == [b"a", b"odd", b"b"]
    assert (after.keys, after.values) == ([b"a"], [b"a"])


def test_deeply_nested_chain_gives_what_a_flat_one_gives() -> None:
    edge = by_key()
    steps = [step(StepKind.FLAT_MAP, lambda v: [v, v])] * 3
    steps += [step(StepKind.FLAT_MAP, lambda v: [v])] * 22
    steps += [step(StepKind.FILTER, bool)] * 10

    program = source_program(Chain(tuple(steps), (edge,)), (edge,))
    columns = run_source(program, ["a", "", "b"])[0]

    assert columns.keys == [b"a"] * 8 + [b"b"] * 8
    assert columns.values == columns.keys


def test_key_of_a_wrong_type_is_explained_by_its_codec() -> None:
    edge = by_key(key=len)
    program = source_program(Chain((), (edge,)), (edge,))

    with pytest.raises(RecordFailedError) as raised:
        run_source(program, ["abc"])

    assert raised.value.code is bt.ErrorCode.BAD_KEY
    assert (raised.value.step, raised.value.value) == ("by_key", "abc")
    assert "expected str" in str(raised.value.cause)


def test_failure_names_step_index_and_record_and_shows_the_generated_line() -> None:
    edge = to_sink()
    chain = Chain((step(StepKind.MAP, int, "parse"),), (edge,))
    program = source_program(chain, (edge,))

    with pytest.raises(RecordFailedError) as raised:
        run_source(program, ["1", "x", "2"])

    failure = raised.value
    assert (failure.step, failure.index, failure.value) == ("parse", 1, "x")
    stack = "".join(traceback.format_exception(failure.cause))
    assert "parse_0(v)" in stack


def test_value_that_the_codec_refuses_names_the_output() -> None:
    edge = to_sink()
    program = source_program(Chain((), (edge,)), (edge,))

    with pytest.raises(RecordFailedError) as raised:
        run_source(program, ["a", 7])

    assert raised.value.code is bt.ErrorCode.CODEC
    assert (raised.value.step, raised.value.value) == ("output to out", 7)


@pytest.mark.parametrize("bad", ["x y 1", "1 2 x"])
def test_skipped_record_leaves_none_of_its_outputs(bad: str) -> None:
    edges = (by_key(0, key=lambda n: str(n)), Edge(1, None, "out", 0, msgpack))
    edges = (edges[0], edges[1])
    chain = Chain(
        (step(StepKind.FLAT_MAP, str.split), step(StepKind.MAP, int, "parse")),
        branches=(
            Chain((), (edges[1],)),
            Chain((step(StepKind.MAP, str),), (edges[0],)),
        ),
    )
    program = source_program(chain, edges, FailurePolicy.SKIP)
    skipped: list[SkippedRecord] = []

    columns, _ = program.run(["7", bad, "8"], skipped.append)

    assert columns[0].keys == [b"7", b"8"]
    assert columns[0].values in (None, [b"7", b"8"])
    assert [msgpack.decode(v) for v in columns[1].values or ()] == [7, 8]
    assert [(s.step, s.value) for s in skipped] == [("parse", bad)]


def test_oversize_record_is_taken_out_under_skip() -> None:
    edge = to_sink()
    program = source_program(
        Chain((), (edge,)), (edge,), FailurePolicy.SKIP, limits=SizeLimits(record=4)
    )
    skipped: list[SkippedRecord] = []

    columns, _ = program.run(["abcd", "abcde"], skipped.append)

    assert columns[0].values == [b"abcd"]
    assert isinstance(skipped[0].error, bt.TooLargeError)


def test_event_times_go_with_each_output_to_a_stage() -> None:
    edge = by_key()
    chain = Chain((step(StepKind.FLAT_MAP, str.split),), (edge,))
    program = source_program(chain, (edge,), event_time=lambda line: len(line))

    columns, latest = program.run(["a b", "c"], lambda _: None)

    assert columns[0].times == [3, 3, 1]
    assert latest == 3


def test_event_time_that_is_no_int_is_refused() -> None:
    edge = by_key()
    program = source_program(
        Chain((), (edge,)),
        (edge,),
        event_time=lambda line: 1.5,  # type: ignore[arg-type,return-value]
    )

    with pytest.raises(RecordFailedError, match="must return an int"):
        run_source(program, ["a"])


# Stages --------------------------------------------------------------------


class StageRun:
    """A keyed stage with its cache, whose partitions are all fresh."""

    def __init__(
        self,
        function: Callable[..., Any],
        *,
        is_generator: bool = False,
        wants_context: bool = False,
        policy: FailurePolicy = FailurePolicy.FAIL,
        edge: Edge | None = None,
        chain: Chain | None = None,
    ) -> None:
        edge = edge or to_sink()
        state = StateSpec("s", msgpack(Count), Count)
        keyed = KeyedStep("step", function, state, wants_context, is_generator)
        self.stage = StagePlan(
            0,
            "stage",
            key_codec(str),
            (StageInput(text, "lines"),),
            keyed,
            chain or Chain((), (edge,)),
            (edge,),
            (),
        )
        self.timers: list[tuple[bytes, Any]] = []
        self.program = StageProgram(
            self.stage,
            policy=policy,
            sink_partitions={"out": 1},
            on_timers=lambda entry, changes: self.timers.append(
                (entry.key_bytes, changes)
            ),
        )
        self.cache = StageCache(
            partitions=4,
            key_codec=key_codec(str),
            state=state,
            keeps_saved=policy is not FailurePolicy.FAIL,
        )
        self.cache.reset(committed_epoch=0, partitions=range(4), fresh=range(4))
        self.skipped: list[SkippedRecord] = []

    def run(self, records: list[tuple[str, str]]) -> Columns:
        keys = [key.encode() for key, _ in records]
        work = self.program.begin(keys, [value for _, value in records], None)
        assert self.program.run(work, self.cache.keys, self.skipped.append)
        return self.program.finish(work)[0]

    def counts(self) -> dict[str, int | None]:
        entries = [self.cache.keys.get(key.encode()) for key in "abc"]
        return {
            entry.key: None if entry.state is None else entry.state.count
            for entry in entries
            if entry is not None
        }


def counting(key: str, value: str, state: Count) -> Iterator[str]:
    state.count += 1
    if value == "twice":
        yield f"{key}{state.count}!"
    yield f"{key}{state.count}"
    if value == "late":
        raise ValueError("too late")


@pytest.mark.parametrize("is_hidden", [False, True])
def test_generator_gives_the_same_whether_or_not_its_yields_are_calls(
    is_hidden: bool,
) -> None:
    function: Callable[..., Any] = counting
    if is_hidden:
        # Its source cannot be used: it is no plain function.
        class Counting:
            def __call__(self, key: str, value: str, state: Count) -> Iterator[str]:
                return counting(key, value, state)

        function = Counting()
    run = StageRun(function, is_generator=True)

    columns = run.run([("a", "x"), ("b", "twice"), ("a", "x")])

    assert columns.values == [b"a1", b"b1!", b"b1", b"a2"]
    assert run.counts() == {"a": 2, "b": 1}


def test_function_that_returns_none_puts_out_nothing() -> None:
    def second(key: str, value: str, state: Count) -> str | None:
        state.count += 1
        return value if state.count == 2 else None

    run = StageRun(second)

    assert run.run([("a", "1"), ("b", "2"), ("a", "3")]).values == [b"3"]


def test_key_without_key_by_is_inherited_by_the_outputs() -> None:
    edge = Edge(0, to_stage="next", to_sink=None, input=0, codec=text)
    run = StageRun(counting, is_generator=True, edge=edge)

    columns = run.run([("a", "x"), ("b", "twice")])

    assert columns.keys == [b"a", b"b", b"b"]


def test_chain_behind_a_keyed_step_sees_each_output() -> None:
    edge = to_sink()
    chain = Chain(
        (
            step(StepKind.FILTER, lambda v: v != "a1"),
            step(StepKind.MAP, str.upper),
        ),
        (edge,),
    )
    run = StageRun(counting, is_generator=True, edge=edge, chain=chain)

    assert run.run([("a", "x"), ("a", "twice")]).values == [b"A2!", b"A2"]


def test_missing_key_stops_the_batch_where_it_is_and_goes_on_there() -> None:
    run = StageRun(counting, is_generator=True)
    run.cache.reset(committed_epoch=0, partitions=(), fresh=())
    run.cache.reset(committed_epoch=0, partitions=range(4), fresh=())
    run.cache.install([b"a"], [b""], [0])
    work = run.program.begin([b"a", b"b", b"a"], ["x", "x", "x"], None)

    is_done = run.program.run(work, run.cache.keys, run.skipped.append)
    first = (is_done, work.begin, run.cache.missing([b"b", b"a"]))
    run.cache.install([b"b"], [msgpack(Count).encode(Count(9))], [])
    is_done = run.program.run(work, run.cache.keys, run.skipped.append)

    assert first == (False, 1, [b"b"])
    assert is_done
    assert run.program.finish(work)[0].values == [b"a1", b"b10", b"a2"]


@pytest.mark.parametrize("policy", [FailurePolicy.SKIP, FailurePolicy.DEAD_LETTER])
def test_failed_record_leaves_neither_state_nor_outputs_nor_timers(
    policy: FailurePolicy,
) -> None:
    def work(
        key: str, value: str, state: Count, context: bt.Context[str, Count]
    ) -> Iterator[str]:
        state.count += 1
        yield f"{key}{state.count}"
        if value == "delete":
            context.delete_state()
        context.set_timer("t", 5)
        if value == "bad":
            raise ValueError("bad")

    run = StageRun(work, is_generator=True, wants_context=True, policy=policy)

    columns = run.run(
        [("a", "x"), ("a", "bad"), ("a", "x"), ("b", "bad"), ("c", "delete")]
    )

    assert columns.values == [b"a1", b"a2", b"c1"]
    assert run.counts() == {"a": 2, "b": None, "c": None}
    assert [key for key, _ in run.timers] == [b"a", b"a", b"c"]
    assert [(s.step, s.key, s.value) for s in run.skipped] == [
        ("step", b"a", "bad"),
        ("step", b"b", "bad"),
    ]
    rows = {
        key: value
        for part in run.cache.flush(1)
        for key, value in zip(part.keys, part.values, strict=True)
    }
    assert rows == {b"a": msgpack(Count).encode(Count(2)), b"b": b"", b"c": b""}


def test_state_that_cannot_be_written_fails_its_own_record_under_skip() -> None:
    def spoil(key: str, value: str, state: Count) -> str:
        state.count = object() if value == "bad" else state.count + 1  # type: ignore[assignment]
        return value

    run = StageRun(spoil, policy=FailurePolicy.SKIP)

    assert run.run([("a", "x"), ("a", "bad"), ("a", "y")]).values == [b"x", b"y"]
    assert run.counts() == {"a": 2}


def test_failure_of_a_keyed_step_names_its_key() -> None:
    run = StageRun(counting, is_generator=True)

    with pytest.raises(RecordFailedError) as raised:
        run.run([("a", "x"), ("b", "late"), ("a", "x")])

    failure = raised.value
    assert (failure.step, failure.key, failure.index) == ("step", b"b", 1)
    assert failure.value == "late"


# Yields as calls -------------------------------------------------------------


def collected(function: Callable[..., Any], *arguments: Any) -> list[Any]:
    emits = emitting(function)
    assert emits is not None
    found: list[Any] = []
    emits(*arguments, found.append)
    return found


def looping(key: str, value: int, state: Any) -> Iterator[Any]:
    for i in range(value):
        if i == 3:
            return
        yield key, i
    else:
        yield
    inner = lambda: (yield 5)  # noqa: E731
    yield inner.__name__


@pytest.mark.parametrize("value", [0, 2, 7])
def test_emitting_function_gives_what_the_generator_gives(value: int) -> None:
    assert collected(looping, "k", value, None) == list(looping("k", value, None))


def test_emitting_function_keeps_closure_globals_and_lines() -> None:
    offset = 5

    def shifted(key: str, value: int, state: Any) -> Iterator[int]:
        nonlocal offset
        offset += 1
        yield value + offset + len(msgpack.name)
        raise ValueError("here")

    emits = emitting(shifted)
    assert emits is not None
    found: list[int] = []
    with pytest.raises(ValueError, match="here") as raised:
        emits("k", 1, None, found.append)

    assert found == [14]
    assert offset == 6
    last = traceback.extract_tb(raised.value.__traceback__)[-1]
    assert last.line == 'raise ValueError("here")'
    assert last.name == "shifted"


def answering(key: str, value: str, state: Any) -> Iterator[str]:
    answer = yield value
    yield str(answer)


def delegating(key: str, value: str, state: Any) -> Iterator[str]:
    yield from value


def wrapped(function: Callable[..., Any]) -> Callable[..., Any]:
    return function


@wrapped
def decorated(key: str, value: str, state: Any) -> Iterator[str]:
    yield value


@pytest.mark.parametrize("function", [answering, delegating, decorated, len])
def test_function_that_is_not_plain_has_no_emitting_one(
    function: Callable[..., Any],
) -> None:
    assert emitting(function) is None


def test_function_whose_source_is_another_has_no_emitting_one() -> None:
    namespace: dict[str, Any] = {}
    source = "def counting(key, value, state):\n    yield 1\n"
    exec(compile(source, __file__, "exec"), namespace)

    assert emitting(namespace["counting"]) is None


def test_state_writer_gives_the_bytes_of_the_codec() -> None:
    @dataclass
    class Mixed:
        name: str = "n"
        parts: tuple[int, ...] = (1, 2)
        child: Count | None = None

    codec = msgpack(Mixed)
    writer = StateWriter(StateSpec("s", codec, Mixed))
    states = [Mixed(), Mixed("é", (), Count(3))]

    assert writer.encode_many(states) == codec.encode_many(states)
    assert writer.encode(states[1]) == codec.encode(states[1])
    with pytest.raises(bt.CodecError):
        writer.encode_many([Mixed(name=object())])  # type: ignore[arg-type]
    with pytest.raises(bt.CodecError):
        writer.encode_many([Count()])
