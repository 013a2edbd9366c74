"""Every mistake in a pipeline is found while it is built, and named with its fix."""

import dataclasses
import re
from collections.abc import Callable, Iterator
from typing import Any

import msgspec
import pytest
from tests.sdk.shapes import Lines, Target

import bettong as bt


@dataclasses.dataclass
class Count:
    count: int = 0


@dataclasses.dataclass
class NeedsName:
    name: str


@dataclasses.dataclass(frozen=True)
class Frozen:
    count: int = 0


class Plain:
    """No dataclass: msgpack does not know how to write it."""


def by_word(word: str) -> str:
    return word


def count(key: str, value: str, state: Count) -> None:
    state.count += 1


def number(line: str) -> int:
    return int(line)


def counts_lines(*, app: bt.App | None = None) -> bt.KeyedStream[str, Any]:
    app = bt.App("app") if app is None else app
    return app.source("lines", Lines()).key_by(by_word)


def stateful(function: Any, **options: Any) -> Callable[[], object]:
    return lambda: counts_lines().stateful(function, **{"name": "s", **options})


def refused(build: Callable[[], object]) -> bt.GraphError:
    with pytest.raises(bt.GraphError) as caught:
        build()
    assert caught.value.code is bt.ErrorCode.APPLICATION_INVALID
    return caught.value


def lines() -> bt.Stream[str]:
    return bt.App("app").source("lines", Lines())


async def later(line: str) -> str:
    return line


def two(first: str, second: str) -> str:
    return first


def letters(line: str) -> Iterator[str]:
    yield from line


def returns_iterator(key: str, value: str) -> Iterator[str]:
    return iter(value)


def half(line: str) -> float:
    return len(line) / 2


SHARED: list[int] = []


@pytest.mark.parametrize(
    ("build", "step", "words"),
    [
        # Names.
        (lambda: bt.App(""), "", "letters, digits"),
        (lambda: bt.App("a/b"), "", "letters, digits"),
        (lambda: bt.App("x" * 101), "", "at most 100"),
        (lambda: lines().map(by_word, name="lines"), "lines", "a source"),
        (lambda: lines().map(by_word, name=""), "", "cannot name a map"),
        (
            lambda: lines().sink("a", Target()).map(len).sink("a", Target()),
            "a",
            "merge the streams",
        ),
        (
            lambda: counts_lines().collect(2).collect(2),
            "collect",
            "another name=",
        ),
        (
            lambda: counts_lines().stateful(lambda key, value: value),
            "by_word",
            "needs name=",
        ),
        # Arguments of the application.
        (lambda: bt.App("a", partitions=0), "", "1 to 65,536"),
        (lambda: bt.App("a", on_error=typed("retry")), "", "none of fail, skip"),
        (lambda: bt.App("a", on_error="dead_letter"), "", "dead_letter=bt.FileSink"),
        # Connectors.
        (lambda: bt.App("a").source("s", typed(Target())), "s", "it lacks kind"),
        (lambda: bt.App("a").source("s", typed(Lines)), "s", "make an object"),
        (lambda: lines().sink("out", typed(Lines())), "out", "it lacks partitions"),
        (lambda: bt.App("a", dead_letter=typed(3)), "dead-letters", "no sink"),
        # Functions of stateless steps.
        (lambda: lines().map(typed("upper")), "str", "not a function"),
        (lambda: lines().map(later), "later", "async"),
        (lambda: lines().map(typed(two)), "two", "value alone.*two"),
        (lambda: lines().map(letters), "letters", "use flat_map"),
        (lambda: lines().filter(letters), "letters", "use flat_map"),
        (lambda: lines().key_by(typed(two)), "two", "value alone"),
        (
            lambda: bt.App("a").source("s", Lines(), event_time=typed(two)),
            "s",
            "value alone",
        ),
        # Keys.
        (lambda: lines().key_by(half), "half", "floats are no keys"),
        (lambda: lines().key_by(len, key=list), "len", "no key type"),
        (lambda: typed(lines()).stateful(count), "lines", r"\.key_by\(\.\.\.\)"),
        (lambda: typed(lines()).collect(2), "lines", r"\.key_by\(\.\.\.\)"),
        # Stateful functions.
        (lambda: counts_lines().stateful(typed(3)), "by_word", "not a function"),
        (stateful(count), "s", "give state="),
        (stateful(lambda key: key), "s", r"no state="),
        (stateful(lambda key: key, state=Count), "s", "key, value, state, context"),
        (stateful(later, state=Count), "s", "async"),
        (stateful(returns_iterator), "s", "yield"),
        (stateful(count, state=Count, on_timer=count), "s", "on_timer is called as"),
        # State.
        (stateful(count, state=NeedsName), "s", "NeedsName.*default"),
        (stateful(count, state=Count()), "s", "give the type"),
        (stateful(count, state=lambda: None), "s", "makes None"),
        (stateful(count, state=lambda: SHARED), "s", "same object each time"),
        (stateful(count, state=Plain), "s", "Plain.*pickled"),
        (stateful(count, state=int), "s", "context.state"),
        (stateful(count, state=Frozen), "s", "context.state"),
        (stateful(count, state=Count, codec=bt.json), "s", r"msgpack\(Count\)"),
        (stateful(count, state=Count, codec=bt.text), "s", "cannot keep a fresh one"),
        (stateful(lambda k, v: v, codec=bt.json), "s", "need state="),
        (lambda: counts_lines().collect(0), "collect", "1 or more"),
        # Codecs.
        (lambda: lines().map(number).sink("o", Target(bt.text)), "o", "takes str"),
        (
            lambda: lines().map(number).key_by(str, codec=bt.raw_bytes),
            "str",
            "takes bytes.*int",
        ),
        (lambda: lines().map(number, codec=bt.text), "number", "takes str.*int"),
        (
            lambda: lines().map(number).sink("o", Target(bt.msgpack(Count))),
            "o",
            "takes Count.*int",
        ),
        # Branches.
        (lambda: lines().branch(by_word, []), "by_word", "one or more"),
        (lambda: lines().branch(by_word, ["a", "a"]), "by_word", "different names"),
        (lambda: lines().branch(by_word, "ab"), "by_word", "one str"),
    ],
)
def test_mistake_is_refused_where_it_is_made(
    build: Callable[[], object], step: str, words: str
) -> None:
    error = refused(build)

    assert error.step == step
    assert str(error).startswith(f"step {step!r}: " if step else "")
    assert re.search(words, str(error), re.DOTALL), str(error)


def typed(value: Any) -> Any:
    """Hide from the type checker what it would refuse before the graph does."""
    return value


def test_application_without_source_is_refused() -> None:
    assert "no source" in str(refused(bt.App("empty").plan))


@pytest.mark.parametrize(
    ("build", "step"),
    [
        (lambda app: app.source("lines", Lines()), "lines"),
        (lambda app: app.source("lines", Lines()).map(by_word), "by_word"),
        (lambda app: counts_lines(app=app), "by_word"),
        (lambda app: counts_lines(app=app).stateful(count, state=Count), "count"),
        (
            lambda app: app.source("a", Lines()).merge(app.source("b", Lines())),
            "merge-1",
        ),
        (
            lambda app: (
                app.source("a", Lines())
                .branch(by_word, ["x", "y"])["x"]
                .sink("out", Target())
            ),
            "by_word['y']",
        ),
    ],
)
def test_step_that_leads_nowhere_is_refused(
    build: Callable[[bt.App], object], step: str
) -> None:
    app = bt.App("app")
    build(app)

    error = refused(app.plan)

    assert error.step == step
    assert "leads nowhere" in str(error)


def test_values_that_no_codec_carries_are_refused_by_the_plan() -> None:
    def plain(line: str) -> Plain:
        return Plain()

    app = bt.App("app")
    keyed = app.source("lines", Lines()).map(plain).key_by(str)
    keyed.stateful(lambda key, value: key, name="s").sink("o", Target())

    error = refused(app.plan)

    assert error.step == "str"
    assert "Plain" in str(error)
    assert "codec=" in str(error)


@pytest.mark.parametrize(
    ("others", "words"),
    [
        (lambda app, keyed: [], "two or more"),
        (lambda app, keyed: [keyed], "two or more different"),
        (lambda app, keyed: [app.source("x", Lines())], "x, which has no key"),
        (
            lambda app, keyed: [app.source("x", Lines()).key_by(len)],
            "by_word: str, len: int",
        ),
        (lambda app, keyed: [counts_lines()], "different applications"),
    ],
)
def test_streams_that_do_not_fit_together_are_not_merged(
    others: Callable[[bt.App, Any], list[Any]], words: str
) -> None:
    app = bt.App("app")
    keyed = counts_lines(app=app)

    error = refused(lambda: bt.merge(keyed, *others(app, keyed)))

    assert words in str(error)


def test_connector_object_serves_one_source_or_sink_only() -> None:
    app, source, sink = bt.App("app"), Lines(), Target()
    first = app.source("a", source).sink("out", sink)

    assert "'a' already" in str(refused(lambda: app.source("b", source)))
    assert "'out' already" in str(refused(lambda: first.sink("more", sink)))


def test_unnamed_steps_are_named_after_their_function_or_kind() -> None:
    app = bt.App("app")
    (
        app.source("lines", Lines())
        .map(by_word)
        .map(by_word)
        .map(lambda line: line)
        .filter(lambda line: line)
        .map(NeedsName)
        .sink("out", Target())
    )

    assert app.plan().sources[0].steps == (
        "by_word",
        "by_word-2",
        "map-3",
        "filter-1",
        "NeedsName",
    )


@pytest.mark.parametrize(
    ("function", "state", "with_context"),
    [
        (lambda key, value: value, None, False),
        (lambda key, value, context: value, None, True),
        (lambda key, value, state: value, Count, False),
        (lambda key, value, state, context: value, Count, True),
        (lambda key, value, state, limit=3: value, Count, False),
        (lambda *parts: parts, Count, False),
        (lambda key, value, state, context: value, int, True),
        (lambda key, value, state: value, list, False),
        (lambda key, value, state: value, dict[str, int], False),
        (lambda key, value, state: value, lambda: [0, 0, 0, 0], False),
        (lambda key, value, state: value, set, False),
    ],
)
def test_number_of_parameters_says_whether_a_context_is_wanted(
    function: Any, state: Any, with_context: bool
) -> None:
    app = bt.App("app")
    counts_lines(app=app).stateful(function, state=state, name="s").sink(
        "out", Target()
    )

    keyed = app.plan().stages[0].keyed

    assert keyed is not None
    assert keyed.wants_context is with_context


def test_state_may_be_a_struct_or_pickled() -> None:
    class Window(msgspec.Struct):
        numbers: list[int] = []

    app = bt.App("app")
    keyed = counts_lines(app=app)
    keyed.stateful(count, state=Window, name="struct").sink("a", Target())
    keyed.stateful(count, state=Plain, codec=bt.pickled(), name="plain").sink(
        "b", Target()
    )

    states = [stage.keyed.state for stage in app.plan().stages if stage.keyed]

    assert [state.codec.name for state in states if state] == [
        "msgpack:Window",
        "pickle",
    ]


def test_timer_function_is_kept_with_its_kind() -> None:
    def on_timer(key: str, name: str, state: Count, context: Any) -> Iterator[str]:
        yield name

    app = bt.App("app")
    counts_lines(app=app).stateful(count, state=Count, on_timer=on_timer).sink(
        "out", Target()
    )

    keyed = app.plan().stages[0].keyed

    assert keyed is not None
    assert keyed.on_timer is on_timer
    assert keyed.on_timer_is_generator
    assert not keyed.is_generator
