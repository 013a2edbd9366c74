"""How a described pipeline becomes sources, stages, sinks and edges."""

import dataclasses
from collections.abc import Iterator
from typing import Any

import pytest
from tests.sdk.shapes import Lines, Target

import bettong as bt
from bettong.graph import to_application
from bettong.plan import Chain, Edge, FailurePolicy, Plan, StagePlan, StepKind
from bettong_proto.plugin.v1 import application_pb2 as pb


@dataclasses.dataclass
class WordCount:
    word: str = ""
    count: int = 0


@dataclasses.dataclass
class Order:
    symbol: str = ""


@dataclasses.dataclass
class Quote:
    symbol: str = ""


def count(key: str, word: str, state: WordCount) -> Iterator[str]:
    state.word, state.count = key, state.count + 1
    yield f"{key} => {state.count}"


def first_letter(word: str) -> str:
    return word[0]


def total(key: str, value: int, state: int, context: bt.Context[str, int]) -> int:
    context.state = state + value
    return state + value


def parse(line: str) -> Order:
    return Order(line)


def symbol(order: Order | Quote) -> str:
    return order.symbol


def match(key: str, value: Order | Quote, state: WordCount) -> str:
    return key


def targets(edges: tuple[Edge, ...]) -> list[str]:
    """Say where edges go: "stage/input codec keyed by step" or "->sink codec"."""
    described = []
    for number, edge in enumerate(edges):
        assert edge.number == number
        place = f"->{edge.to_sink}" if edge.to_sink else f"{edge.to_stage}/{edge.input}"
        key = f" key={edge.key_step}:{edge.key_codec.name}" if edge.key_codec else ""
        described.append(f"{place} {edge.codec.name}{key}")
    return described


def drawn(chain: Chain) -> str:
    """Draw a chain on one line: steps, then what follows in braces."""
    after = [f"#{edge.number}" for edge in chain.edges]
    after += [drawn(branch) for branch in chain.branches]
    if chain.choose is not None:
        arms = [f"{name}: {drawn(arm)}" for name, arm in chain.choices.items()]
        after.append(f"{chain.choose_step}? {', '.join(arms)}")
    return " ".join(
        [*(step.name for step in chain.steps), "{" + "; ".join(after) + "}"]
    )


def stage(plan: Plan, name: str) -> StagePlan:
    (found,) = [stage for stage in plan.stages if stage.name == name]
    return found


def test_word_count_is_a_source_with_fused_head_and_one_keyed_stage() -> None:
    app = bt.App("word-count")
    (
        app.source("lines", Lines())
        .flat_map(str.split, name="split")
        .key_by(lambda word: word)
        .stateful(count, state=WordCount)
        .sink("counts", Target(bt.text))
    )

    plan = app.plan()

    (source,) = plan.sources
    assert drawn(source.chain) == "split {#0}"
    assert targets(source.outputs) == ["count/0 text key=key_by-1:str"]
    assert source.steps == ("split", "key_by-1")
    (keyed,) = plan.stages
    assert (keyed.index, keyed.name, keyed.steps) == (0, "count", ("count",))
    assert keyed.key_codec is not None
    assert keyed.key_codec.name == "str"
    assert [(i.codec.name, i.fed_by) for i in keyed.inputs] == [("text", "lines")]
    assert drawn(keyed.chain) == "{#0}"
    assert targets(keyed.outputs) == ["->counts text"]
    assert keyed.keyed is not None
    assert keyed.keyed.is_generator
    assert not keyed.keyed.wants_context
    assert keyed.keyed.state is not None
    assert keyed.keyed.state.name == "count"
    assert keyed.keyed.state.codec.name == "msgpack:WordCount"
    assert keyed.keyed.state.factory() == WordCount()
    assert [(sink.name, sink.inputs) for sink in plan.sinks] == [("counts", (bt.text,))]
    assert (plan.name, plan.partitions, plan.on_error) == (
        "word-count",
        64,
        FailurePolicy.FAIL,
    )


def test_application_message_says_what_the_plan_says() -> None:
    app = bt.App(
        "orders", partitions=8, on_error="dead_letter", dead_letter=Target(bt.text)
    )
    (
        app.source("lines", Lines(kind=bt.StreamKind.LOCAL))
        .key_by(len)
        .stateful(total, state=int, schema_version=2)
        .sink("totals", Target(partitions=4))
    )

    application = to_application(app.plan())

    assert application == pb.Application(
        name="orders",
        partitions=8,
        sources=[
            pb.Source(
                name="lines",
                kind=pb.STREAM_KIND_LOCAL,
                outputs=[
                    pb.Output(stage="total", value_codec="text"),
                    pb.Output(sink="dead-letters", value_codec="json"),
                ],
                steps=["len"],
            )
        ],
        stages=[
            pb.Stage(
                name="total",
                states=[
                    pb.State(
                        name="total",
                        codec="msgpack:int",
                        schema_version=2,
                        kind=pb.STATE_KIND_VALUE,
                    )
                ],
                outputs=[
                    pb.Output(sink="totals", value_codec="json"),
                    pb.Output(sink="dead-letters", value_codec="json"),
                ],
                keyed=True,
                steps=["total"],
                key_codec="int",
            )
        ],
        sinks=[
            pb.Sink(name="totals", partitions=4),
            pb.Sink(name="dead-letters", partitions=1),
        ],
        dead_letter_sink="dead-letters",
    )


def test_every_owner_gets_a_dead_letter_output_in_json_after_its_own() -> None:
    app = bt.App("app", on_error="dead_letter", dead_letter=Target(bt.text))
    lines = app.source("lines", Lines())
    lines.sink("raw", Target()).key_by(str.lower).stateful(count, state=WordCount).sink(
        "counts", Target()
    )

    plan = app.plan()

    assert plan.dead_letter_sink == "dead-letters"
    assert plan.dead_letter_outputs == {"lines": 2, "count": 1}
    assert targets(plan.sources[0].outputs)[2] == "->dead-letters json"
    assert targets(plan.stages[0].outputs) == ["->counts json", "->dead-letters json"]
    assert plan.sinks[-1].inputs == (bt.json,)


@pytest.mark.parametrize("on_error", ["fail", "skip"])
def test_dead_letter_sink_without_the_policy_takes_what_sinks_refuse(
    on_error: Any,
) -> None:
    app = bt.App("app", on_error=on_error, dead_letter=Target(bt.text))
    app.source("lines", Lines()).sink("out", Target())

    plan = app.plan()

    assert plan.dead_letter_sink == "dead-letters"
    assert plan.dead_letter_outputs == {}
    assert targets(plan.sources[0].outputs) == ["->out json"]


def test_stateless_pipeline_is_fused_into_its_source() -> None:
    app = bt.App("app")
    (
        app.source("lines", Lines())
        .map(int, name="number")
        .filter(lambda number: number > 0)
        .map(lambda number: number * 2)
        .sink("out", Target())
    )

    plan = app.plan()

    assert plan.stages == ()
    assert drawn(plan.sources[0].chain) == "number filter-1 map-2 {#0}"
    kinds = [step.kind for step in plan.sources[0].chain.steps]
    assert kinds == [StepKind.MAP, StepKind.FILTER, StepKind.MAP]


def test_stream_used_several_times_branches_its_chain() -> None:
    app = bt.App("app")
    numbers = app.source("lines", Lines()).map(int, name="number")
    numbers.sink("all", Target())
    numbers.filter(lambda n: n % 2 == 0, name="even").sink("evens", Target())
    numbers.map(abs).map(float, name="float").sink("floats", Target())

    (source,) = app.plan().sources

    assert drawn(source.chain) == "number {#0; even {#1}; abs float {#2}}"
    assert targets(source.outputs) == ["->all json", "->evens json", "->floats json"]


def test_sink_gives_the_stream_back_to_go_on_with() -> None:
    app = bt.App("app")
    (
        app.source("lines", Lines())
        .sink("raw", Target())
        .sink("copy", Target())
        .map(str.upper)
        .sink("loud", Target())
    )

    (source,) = app.plan().sources

    assert drawn(source.chain) == "{#0; #1; upper {#2}}"


def test_branch_sends_each_record_down_one_arm() -> None:
    app = bt.App("app")

    def size(line: str) -> str:
        return "long" if len(line) > 9 else "short"

    arms = app.source("lines", Lines()).branch(size, ["long", "short"])
    arms["long"].map(len).sink("lengths", Target())
    arms["short"].sink("words", Target())

    (source,) = app.plan().sources

    assert drawn(source.chain) == "{size? long: len {#0}, short: {#1}}"
    assert source.chain.choose is size
    assert source.steps == ("size", "len")


def test_branch_beside_other_uses_becomes_a_branch_of_the_chain() -> None:
    app = bt.App("app")
    lines = app.source("lines", Lines()).map(str.strip)
    lines.sink("all", Target())
    lines.branch(first_letter, ["a"])["a"].sink("only-a", Target())

    (source,) = app.plan().sources

    assert drawn(source.chain) == "strip {#0; {first_letter? a: {#1}}}"


def test_sink_by_chooses_the_sink_of_each_record() -> None:
    app = bt.App("app")
    app.source("lines", Lines()).sink_by(
        first_letter, {"a": Target(), "b": Target(bt.text)}
    )

    plan = app.plan()

    assert drawn(plan.sources[0].chain) == "{first_letter? a: {#0}, b: {#1}}"
    assert targets(plan.sources[0].outputs) == ["->a json", "->b text"]


def test_merge_of_unkeyed_streams_is_no_place_of_its_own() -> None:
    app = bt.App("app")
    first = app.source("first", Lines())
    second = app.source("second", Lines()).map(str.lower)
    (
        first.merge(second)
        .map(str.strip)
        .key_by(first_letter)
        .stateful(count, state=WordCount)
        .sink("counts", Target())
    )

    plan = app.plan()

    assert [drawn(source.chain) for source in plan.sources] == [
        "strip {#0}",
        "lower strip {#0}",
    ]
    for source in plan.sources:
        assert targets(source.outputs) == ["count/0 text key=first_letter:str"]
    (keyed,) = plan.stages
    assert [(i.codec.name, i.fed_by) for i in keyed.inputs] == [
        ("text", "first, second")
    ]


def test_branches_merged_again_share_one_edge_so_that_order_is_kept() -> None:
    app = bt.App("app")
    arms = app.source("lines", Lines()).branch(first_letter, ["a", "b"])
    (
        bt.merge(arms["a"].map(str.upper), arms["b"])
        .key_by(first_letter, name="letter")
        .stateful(count, state=WordCount)
        .sink("counts", Target())
    )

    (source,) = app.plan().sources

    assert drawn(source.chain) == "{first_letter? a: upper {#0}, b: {#0}}"
    assert len(source.outputs) == 1


def test_merge_of_keyed_streams_gives_a_stage_one_input_for_each() -> None:
    app = bt.App("market")
    orders = app.source("orders", Lines()).map(parse).key_by(symbol)
    quotes = app.source("quotes", Lines(bt.msgpack(Quote))).key_by(symbol, name="of")
    bt.merge(orders, quotes).stateful(match, state=WordCount).sink("out", Target())

    plan = app.plan()

    assert [targets(source.outputs) for source in plan.sources] == [
        ["match/0 msgpack:Order key=symbol:str"],
        ["match/1 msgpack:Quote key=of:str"],
    ]
    (stage_,) = plan.stages
    assert [(i.codec.name, i.fed_by) for i in stage_.inputs] == [
        ("msgpack:Order", "orders"),
        ("msgpack:Quote", "quotes"),
    ]


def test_stateful_steps_in_a_row_keep_the_key() -> None:
    app = bt.App("app")

    def second(key: str, value: str) -> str:
        return value

    (
        app.source("lines", Lines())
        .key_by(first_letter)
        .stateful(count, state=WordCount)
        .map(str.upper)
        .stateful(second)
        .sink("out", Target())
    )

    plan = app.plan()

    assert drawn(plan.stages[0].chain) == "upper {#0}"
    assert targets(plan.stages[0].outputs) == ["second/0 text"]
    assert plan.stages[0].outputs[0].key is None
    last = plan.stages[1]
    assert (last.index, last.key_codec) == (1, plan.stages[0].key_codec)
    assert last.keyed is not None
    assert last.keyed.state is None


def test_steps_after_key_by_run_where_the_key_lives() -> None:
    app = bt.App("app")
    keyed = app.source("lines", Lines()).key_by(first_letter)
    keyed.map(len).stateful(total, state=int).sink("totals", Target())
    keyed.sink("words", Target(partitions=4))

    plan = app.plan()

    assert targets(plan.sources[0].outputs) == [
        "first_letter/0 text key=first_letter:str",
        "->words json key=first_letter:str",
    ]
    head = stage(plan, "first_letter")
    assert head.keyed is None
    assert head.key_codec is not None
    assert head.steps == ("first_letter", "len")
    assert drawn(head.chain) == "len {#0}"
    assert targets(head.outputs) == ["total/0 msgpack:int"]
    assert to_application(plan).stages[0].keyed
    assert [found.name for found in plan.stages] == ["first_letter", "total"]


def test_key_that_is_replaced_at_once_costs_no_exchange() -> None:
    app = bt.App("app")
    (
        app.source("lines", Lines())
        .key_by(first_letter)
        .key_by(len)
        .stateful(total, state=int)
        .sink("out", Target())
    )

    plan = app.plan()

    assert targets(plan.sources[0].outputs) == ["total/0 text key=len:int"]
    assert [found.name for found in plan.stages] == ["total"]


def test_key_by_after_a_stateful_step_exchanges_again() -> None:
    app = bt.App("app")
    (
        app.source("lines", Lines())
        .key_by(first_letter)
        .stateful(count, state=WordCount)
        .key_by(len)
        .stateful(total, state=int)
        .sink("out", Target())
    )

    plan = app.plan()

    assert targets(plan.stages[0].outputs) == ["total/0 text key=len:int"]
    assert plan.stages[1].inputs[0].fed_by == "count"


def test_one_keyed_stream_feeds_several_stateful_steps() -> None:
    app = bt.App("app")
    keyed = app.source("lines", Lines()).key_by(first_letter)
    keyed.stateful(count, state=WordCount).sink("counts", Target())
    keyed.collect(3).sink("lists", Target())

    plan = app.plan()

    assert targets(plan.sources[0].outputs) == [
        "count/0 text key=first_letter:str",
        "collect/0 text key=first_letter:str",
    ]
    assert drawn(plan.sources[0].chain) == "{#0; #1}"


def test_collect_gathers_values_into_lists_of_their_type() -> None:
    app = bt.App("app")
    (
        app.source("lines", Lines())
        .key_by(first_letter)
        .collect(2)
        .key_by(lambda words: words[0], name="again")
        .collect(2, name="pairs")
        .sink("out", Target())
    )

    plan = app.plan()

    collect = stage(plan, "collect").keyed
    assert collect is not None
    assert collect.state is not None
    assert collect.state.codec.name == "msgpack:list[str]"
    context: bt.Context[str, list[str]] = bt.Context()
    context.state = state = collect.state.factory()
    assert collect.function("k", "a", state, context) is None
    assert context.state == ["a"]
    assert collect.function("k", "b", state, context) == ["a", "b"]
    assert context.state is None
    assert plan.stages[1].inputs[0].codec.name == "msgpack:list[str]"
    pairs = stage(plan, "pairs").keyed
    assert pairs is not None
    assert pairs.state is not None
    assert pairs.state.codec.name == "msgpack:list[list[str]]"


def test_codec_of_an_exchange_follows_the_return_annotation_or_is_declared() -> None:
    def untold(line):  # type: ignore[no-untyped-def]  # noqa: ANN001
        return line

    def maybe(line: str) -> int | None:
        return len(line)

    app = bt.App("app")
    lines = app.source("lines", Lines(bt.raw_bytes))
    streams = {
        "as the source": lines,
        "Order": lines.map(parse),
        "unknown": lines.map(untold),
        "filtered": lines.map(parse).filter(bool),
        "declared": lines.map(parse, codec=bt.pickled()),
        "maybe": lines.map(maybe),
        "split": lines.flat_map(str.split),
    }
    keyed = {
        told: stream.key_by(lambda value: value) for told, stream in streams.items()
    }
    keyed["key_by"] = lines.map(len).key_by(lambda value: value, codec=bt.pickled())
    for number, stream in enumerate(keyed.values()):
        stream.collect(2, name=f"c{number}").sink(f"s{number}", Target())

    plan = app.plan()

    codecs = [stage.inputs[0].codec.name for stage in plan.stages]
    assert dict(zip(keyed, codecs, strict=True)) == {
        "as the source": "bytes",
        "Order": "msgpack:Order",
        "unknown": "msgpack",
        "filtered": "msgpack:Order",
        "declared": "pickle",
        "maybe": "msgpack:int | None",
        "split": "text",
        "key_by": "pickle",
    }


def test_values_of_unknown_type_are_left_to_the_codec() -> None:
    app = bt.App("app")
    app.source("lines", Lines(bt.msgpack)).map(lambda value: value).sink(
        "out", Target(bt.text)
    ).key_by(lambda value: value, codec=bt.text).sink("keyed", Target(bt.raw_bytes))

    (source,) = app.plan().sources

    assert targets(source.outputs) == ["->out text", "->keyed bytes key=key_by-1:str"]


def test_source_keeps_its_event_time_settings() -> None:
    app = bt.App("app")
    app.source(
        "lines", Lines(), event_time=len, out_of_order_us=5, idle_after_ms=7
    ).sink("out", Target())

    (source,) = app.plan().sources

    assert (source.event_time, source.out_of_order_us, source.idle_after_ms) == (
        len,
        5,
        7,
    )


def test_plan_is_the_same_whenever_it_is_built() -> None:
    app = bt.App("app")
    keyed = app.source("lines", Lines()).key_by(first_letter)
    bt.merge(keyed, app.source("more", Lines()).key_by(first_letter, name="f2")).map(
        len
    ).stateful(total, state=int).sink("out", Target())

    first, second = to_application(app.plan()), to_application(app.plan())

    assert first == second
    assert first.SerializeToString() == second.SerializeToString()


def test_merges_that_multiply_beyond_all_bounds_are_refused() -> None:
    app = bt.App("app")
    stream: bt.Stream[Any] = app.source("lines", Lines())
    for _ in range(20):
        stream = stream.map(str.lower).merge(stream.map(str.upper))
    stream.sink("out", Target())

    with pytest.raises(bt.GraphError, match="10,000 paths"):
        app.plan()
