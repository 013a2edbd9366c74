"""The fluent description of a pipeline: streams, and the steps that make new ones.

A stream is a value: each step returns a new one and leaves the old one as it was, so
that one stream may be used several times. Nothing runs here.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, Generic, Self, TypeVar, cast, overload

from bettong import keys
from bettong.codec import Codec, KeyCodec
from bettong.codecs import infer_codec
from bettong.collect import collector
from bettong.connector import Sink
from bettong.errors import CodecError, GraphError, KeyTypeError
from bettong.functions import (
    check_callable,
    check_timer_function,
    check_value_function,
    function_name,
    is_generator,
    wants_context,
)
from bettong.hints import (
    hint_name,
    item_hint,
    known,
    plain_types,
    return_hint,
    without_none,
)
from bettong.nodes import (
    ArmNode,
    BranchNode,
    Graph,
    KeyByNode,
    MergeNode,
    SinkNode,
    StatefulNode,
    StepNode,
    StreamNode,
    Values,
)
from bettong.plan import KeyedStep, Step, StepKind
from bettong.state import build_state, is_immutable, state_type_of

T = TypeVar("T")
U = TypeVar("U")
K = TypeVar("K")
K2 = TypeVar("K2")

_SINK_METHODS = ("open", "partitions", "guarantee", "codec", "takes_bytes")


class Stream(Generic[T]):
    """Records without a key, or whose key plays no role yet."""

    __slots__ = ("_graph", "_node")

    def __init__(self, graph: Graph, node: StreamNode) -> None:
        self._graph = graph
        self._node = node

    if not TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any:
            if name in ("stateful", "collect"):
                raise GraphError(
                    f"{name} needs a key, to know which state belongs to a record:"
                    f" write .key_by(...).{name}(...)",
                    step=self._node.name,
                )
            raise AttributeError(f"a stream has no step {name!r}")

    def map(
        self,
        function: Callable[[T], U],
        *,
        name: str | None = None,
        codec: Codec | None = None,
    ) -> "Stream[U]":
        """Replace each value by what `function(value)` returns.

        Args:
            function: called once a record.
            name: of the step; None: the function's, or one like "map-3".
            codec: of the results, where they leave the process; None: the one for
                the function's return annotation, else untyped msgpack.
        """
        return Stream(self._graph, self._step(StepKind.MAP, function, name, codec))

    def filter(
        self, function: Callable[[T], object], *, name: str | None = None
    ) -> "Stream[T]":
        """Keep the values for which `function(value)` is true."""
        return Stream(self._graph, self._step(StepKind.FILTER, function, name, None))

    def flat_map(
        self,
        function: Callable[[T], Iterable[U]],
        *,
        name: str | None = None,
        codec: Codec | None = None,
    ) -> "Stream[U]":
        """Replace each value by those that `function(value)` returns or yields."""
        return Stream(self._graph, self._step(StepKind.FLAT_MAP, function, name, codec))

    def key_by(
        self,
        function: Callable[[T], K],
        *,
        key: Any = None,
        name: str | None = None,
        codec: Codec | None = None,
    ) -> "KeyedStream[K, T]":
        """Give each record the key `function(value)`: what follows works key by key.

        Records of one key go to one place and keep the order of their stream.

        Args:
            function: gives the key: a str, bytes, int, bool, or a tuple of these.
            key: the type of the keys; None: the function's return annotation, else
                str. Keys of any other type are refused.
            name: of the step; None: the function's, or one like "key_by-1".
            codec: of the values on their way to the owner of the key.
        """
        step = self._name(name, function, "key_by")
        check_value_function(function, step)
        if codec is not None:
            _check_accepts(codec, self._node.values.hint, step)
        node = KeyByNode(
            name=step,
            parent=self._node,
            function=function,
            key_codec=_key_codec(function, key, step),
            values=Values(
                self._node.values.hint,
                self._node.values.codec if codec is None else codec,
            ),
        )
        self._graph.nodes.append(node)
        return KeyedStream(self._graph, node, node.key_codec)

    def branch(
        self,
        choose: Callable[[T], str],
        names: Iterable[str],
        *,
        name: str | None = None,
    ) -> "dict[str, Stream[T]]":
        """Split the stream: each record goes on in the one branch that is chosen.

        Args:
            choose: returns the name of the branch for a value. Any other name is an
                error of that record.
            names: of all branches; each has to lead to a sink.
            name: of the step; None: the function's, or one like "branch-1".

        Returns:
            The stream of each branch, by name.
        """
        arms = self._branch(choose, names, name)
        return {arm: Stream(self._graph, node) for arm, node in arms.items()}

    def merge(self, *others: "Stream[U]") -> "Stream[T | U]":
        """Join this stream and others into one: see `merge`."""
        return merge(cast("Stream[Any]", self), *others)

    def sink(self, name: str, connector: Sink) -> Self:
        """Send the values to a sink, in the sink's own codec.

        Returns:
            This stream, to send it elsewhere too or to go on with it.
        """
        claimed = self._graph.claim(name, "sink")
        check_connector(connector, "sink", _SINK_METHODS, claimed)
        self._add_sink(claimed, self._node, connector)
        return self

    def sink_by(
        self,
        choose: Callable[[T], str],
        sinks: Mapping[str, Sink],
        *,
        name: str | None = None,
    ) -> Self:
        """Send each value to the one sink whose name `choose(value)` returns.

        Returns:
            This stream, to send it elsewhere too or to go on with it.
        """
        arms = self._branch(choose, sinks, name)
        for sink_name, connector in sinks.items():
            claimed = self._graph.claim(sink_name, "sink")
            check_connector(connector, "sink", _SINK_METHODS, claimed)
            self._add_sink(claimed, arms[sink_name], connector)
        return self

    def _name(self, name: str | None, function: Callable[..., Any], kind: str) -> str:
        if name is not None:
            return self._graph.claim(name, kind)
        return self._graph.claim_generated(function_name(function), kind)

    def _step(
        self,
        kind: StepKind,
        function: Callable[[Any], Any],
        name: str | None,
        codec: Codec | None,
    ) -> StepNode:
        step = self._name(name, function, kind.value)
        check_value_function(function, step, may_generate=kind is StepKind.FLAT_MAP)
        if kind is StepKind.FILTER:
            values = self._node.values
        else:
            hint = return_hint(function)
            if kind is StepKind.FLAT_MAP:
                hint = item_hint(hint)
            if codec is not None:
                _check_accepts(codec, hint, step)
            values = Values(hint, codec)
        node = StepNode(
            name=step,
            parent=self._node,
            step=Step(step, kind, function),
            values=values,
        )
        self._graph.nodes.append(node)
        return node

    def _branch(
        self, choose: Callable[[Any], str], names: Iterable[str], name: str | None
    ) -> dict[str, ArmNode]:
        step = self._name(name, choose, "branch")
        check_value_function(choose, step)
        if isinstance(names, str):
            raise GraphError(f"names={names!r} is one str, not several", step=step)
        arm_names = list(names)
        if not arm_names or len({*arm_names}) < len(arm_names):
            raise GraphError(
                f"needs one or more different names, got {arm_names}", step=step
            )
        branch = BranchNode(name=step, parent=self._node, choose=choose)
        self._graph.nodes.append(branch)
        arms = {
            arm: ArmNode(
                name=f"{step}[{arm!r}]",
                parent=branch,
                arm=arm,
                values=self._node.values,
            )
            for arm in arm_names
        }
        self._graph.nodes.extend(arms.values())
        return arms

    def _add_sink(self, name: str, parent: StreamNode, connector: Sink) -> None:
        for node in self._graph.nodes:
            if isinstance(node, SinkNode) and node.connector is connector:
                raise GraphError(
                    f"its connector belongs to the sink {node.name!r} already: make"
                    " another, or merge the streams and use one sink",
                    step=name,
                )
        _check_accepts(connector.codec, parent.values.hint, name)
        self._graph.nodes.append(
            SinkNode(name=name, parent=parent, connector=connector)
        )


class KeyedStream(Stream[T], Generic[K, T]):
    """Records with a key. Stateless steps see the value only and keep the key."""

    __slots__ = ("_key_codec",)

    def __init__(self, graph: Graph, node: StreamNode, key_codec: KeyCodec) -> None:
        super().__init__(graph, node)
        self._key_codec = key_codec

    def map(
        self,
        function: Callable[[T], U],
        *,
        name: str | None = None,
        codec: Codec | None = None,
    ) -> "KeyedStream[K, U]":
        """Replace each value by what `function(value)` returns; the key stays."""
        return self._derive(self._step(StepKind.MAP, function, name, codec))

    def filter(
        self, function: Callable[[T], object], *, name: str | None = None
    ) -> "KeyedStream[K, T]":
        """Keep the values for which `function(value)` is true."""
        return self._derive(self._step(StepKind.FILTER, function, name, None))

    def flat_map(
        self,
        function: Callable[[T], Iterable[U]],
        *,
        name: str | None = None,
        codec: Codec | None = None,
    ) -> "KeyedStream[K, U]":
        """Replace each value by those of `function(value)`; they keep its key."""
        return self._derive(self._step(StepKind.FLAT_MAP, function, name, codec))

    def branch(
        self,
        choose: Callable[[T], str],
        names: Iterable[str],
        *,
        name: str | None = None,
    ) -> "dict[str, Stream[T]]":
        """Split the stream: see `Stream.branch`. The branches are keyed streams."""
        arms = self._branch(choose, names, name)
        return {arm: self._derive(node) for arm, node in arms.items()}

    def merge(self, *others: "Stream[U]") -> "KeyedStream[K, T | U]":
        """Join this stream and other keyed ones into one: see `merge`."""
        merged = merge(cast("Stream[Any]", self), *others)
        assert isinstance(merged, KeyedStream), "merge refuses a mixture"
        return merged

    def stateful(
        self,
        function: Callable[..., Any],
        *,
        state: Callable[[], Any] | None = None,
        name: str | None = None,
        codec: Codec | None = None,
        schema_version: int = 0,
        on_timer: Callable[..., Any] | None = None,
        output_codec: Codec | None = None,
    ) -> "KeyedStream[K, Any]":
        """Call `function(key, value, state[, context])`, with the state of the key.

        The function changes the state in place, or with a fourth parameter assigns
        `context.state` (which an immutable state like `state=int` needs). A state
        set to None is deleted. It yields any number of results, or returns one, or
        None for none. They keep the key.

        Args:
            function: without `state`, called as function(key, value[, context]).
            state: makes the state of a key that is first seen: a type whose fields
                all have defaults, or a function without parameters.
            name: of the step and its state and timers; None: the function's name.
            codec: of the state; None: msgpack of its type.
            schema_version: of the state, raised when its meaning changes.
            on_timer: called as on_timer(key, name, state, context) for a timer that
                is due, without `state` as on_timer(key, name, context).
            output_codec: of the results, where they leave the process; None: the
                one for the function's return annotation, else untyped msgpack.
        """
        step = self._stateful_name(name, function)
        has_state = state is not None
        with_context = wants_context(function, step, has_state=has_state)
        spec = None
        if state is not None:
            spec = build_state(
                state, step=step, codec=codec, schema_version=schema_version
            )
            if not with_context and is_immutable(state_type_of(spec)):
                raise GraphError(
                    f"its state, a {hint_name(state_type_of(spec))}, cannot be changed"
                    " in place: take a fourth parameter, context, and assign"
                    " context.state",
                    step=step,
                )
        elif codec is not None or schema_version:
            raise GraphError("codec= and schema_version= need state=", step=step)
        if on_timer is not None:
            check_timer_function(on_timer, step, has_state=has_state)
        keyed = KeyedStep(
            name=step,
            function=function,
            state=spec,
            wants_context=with_context,
            is_generator=is_generator(function),
            on_timer=on_timer,
            on_timer_is_generator=on_timer is not None and is_generator(on_timer),
        )
        hint = _result_hint(function)
        if on_timer is not None and _result_hint(on_timer) != hint:
            hint = Any
        return self._add_stateful(keyed, Values(hint, output_codec))

    def collect(
        self, max_count: int, *, name: str = "collect", codec: Codec | None = None
    ) -> "KeyedStream[K, list[T]]":
        """Gather the values of each key; emit each `max_count` of them as one list.

        What is not yet a full list waits in the state for more, across restarts and
        beyond the end of a bounded input.

        Args:
            max_count: values in each list, in their order.
            name: of the step and its state; a second `collect` needs another.
            codec: of the lists; None: msgpack of lists of the values' type.
        """
        step = self._graph.claim(name, "collect")
        if type(max_count) is not int or max_count < 1:
            raise GraphError(
                f"max_count={max_count!r} must be an int of 1 or more", step=step
            )
        values = self._node.values
        hint = values.hint
        if hint is Any:
            # What comes in is what that codec gives back.
            hint = getattr(values.codec, "value_type", Any)
        hint = _list_of(hint)
        try:
            list_codec = infer_codec(hint) if codec is None else codec
        except CodecError as error:
            raise GraphError(f"no codec for its lists: {error}", step=step) from error
        keyed = KeyedStep(
            name=step,
            function=collector(max_count),
            state=build_state(list, step=step, codec=list_codec, schema_version=0),
            wants_context=True,
            is_generator=False,
        )
        return self._add_stateful(keyed, Values(hint, codec))

    def _derive(self, node: StreamNode) -> "KeyedStream[K, Any]":
        return KeyedStream(self._graph, node, self._key_codec)

    def _add_stateful(self, keyed: KeyedStep, values: Values) -> "KeyedStream[K, Any]":
        node = StatefulNode(
            name=keyed.name,
            parent=self._node,
            step=keyed,
            key_codec=self._key_codec,
            values=values,
        )
        self._graph.nodes.append(node)
        return self._derive(node)

    def _stateful_name(self, name: str | None, function: Callable[..., Any]) -> str:
        if name is None:
            check_callable(function, self._node.name)
            name = function_name(function)
            if name is None:
                raise GraphError(
                    "a stateful lambda needs name=...: its state is stored under the"
                    " name of the step",
                    step=self._node.name,
                )
        return self._graph.claim(name, "stateful step")


@overload
def merge(
    first: KeyedStream[K, T], *others: KeyedStream[K, T]
) -> KeyedStream[K, T]: ...
@overload
def merge(first: Stream[T], *others: Stream[U]) -> Stream[T | U]: ...
def merge(first: Stream[Any], *others: Stream[Any]) -> Stream[Any]:
    """Join streams into one; each keeps its own order, between them there is none.

    Either all are keyed, by keys of one type (then records of equal keys meet at
    the same state), or none is.

    Raises:
        GraphError: fewer than two streams, one of them twice, keyed and unkeyed
            ones, different key types, or streams of two applications.
    """
    streams = (first, *others)
    graph = first._graph
    step = graph.claim_generated(None, "merge")
    names = ", ".join(stream._node.name for stream in streams)
    if any(stream._graph is not graph for stream in streams):
        raise GraphError(f"{names} belong to different applications", step=step)
    nodes = tuple(stream._node for stream in streams)
    if len({id(node) for node in nodes}) < max(2, len(nodes)):
        raise GraphError(f"needs two or more different streams, got {names}", step=step)
    keyed = [stream for stream in streams if isinstance(stream, KeyedStream)]
    if keyed and len(keyed) < len(streams):
        unkeyed = [s._node.name for s in streams if not isinstance(s, KeyedStream)]
        raise GraphError(
            f"merges keyed streams with {', '.join(unkeyed)}, which has no key: call"
            " key_by on each stream before, or on the merged one after",
            step=step,
        )
    codecs = {stream._key_codec.name for stream in keyed}
    if len(codecs) > 1:
        types = ", ".join(f"{s._node.name}: {s._key_codec.name}" for s in keyed)
        raise GraphError(
            f"merges streams with keys of different types ({types}), which are never"
            " equal: declare the same key= at their key_by",
            step=step,
        )
    node = MergeNode(name=step, parents=nodes, values=_merged_values(nodes))
    graph.nodes.append(node)
    if keyed:
        return KeyedStream(graph, node, keyed[0]._key_codec)
    return Stream(graph, node)


def check_connector(
    connector: object, kind: str, members: tuple[str, ...], name: str
) -> None:
    """Raise `GraphError` unless `connector` has the members of its contract."""
    missing = [member for member in members if not hasattr(connector, member)]
    if missing or isinstance(connector, type):
        what = f"{type(connector).__name__} {connector!r}"
        fix = (
            "make an object of the class"
            if isinstance(connector, type)
            else f"it lacks {', '.join(missing)}"
        )
        raise GraphError(f"{what} is no {kind} connector: {fix}", step=name)


def _key_codec(function: Callable[..., Any], key: Any, step: str) -> KeyCodec:
    hint = return_hint(function) if key is None else key
    try:
        return keys.key_codec(str if hint is Any else hint)
    except KeyTypeError as error:
        raise GraphError(str(error), step=step) from error


def _check_accepts(codec: Codec, hint: Any, step: str) -> None:
    """Refuse a codec that takes none of the types that the values are known to have."""
    value_type = getattr(codec, "value_type", Any)
    taken, given = plain_types(value_type), plain_types(hint)
    if taken is None or given is None:
        return
    if any(issubclass(found, tuple(taken)) for found in given):
        return
    raise GraphError(
        f'its codec "{codec.name}" takes {hint_name(value_type)}, but the values are'
        f" {hint_name(hint)}: convert them in a map, or give it another codec",
        step=step,
    )


def _result_hint(function: Callable[..., Any]) -> Any:
    hint = return_hint(function)
    return item_hint(hint) if is_generator(function) else without_none(hint)


def _list_of(hint: Any) -> Any:
    return list if hint is Any else list[hint]


def _merged_values(nodes: tuple[StreamNode, ...]) -> Values:
    all_values = [node.values for node in nodes]
    codecs = {None if v.codec is None else v.codec.name for v in all_values}
    codec = all_values[0].codec if len(codecs) == 1 else None
    hint = all_values[0].hint
    for values in all_values[1:]:
        if values.hint is Any or hint is Any:
            hint = Any
        elif values.hint != hint:
            hint = known(hint | values.hint)
    return Values(hint, codec)
