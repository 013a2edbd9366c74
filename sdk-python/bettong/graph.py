"""Builds the `Plan` of a described pipeline, and its form on the wire.

Stages are cut where records change place: at a stateful step, and at a `key_by` that
stateless steps follow directly. Everything else is fused into the owner before it, a
source or a stage. A merge is no place of its own: what follows it is fused into each
of the streams that it joins, so that records wait for nobody.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeGuard

from bettong.codec import Codec, KeyCodec
from bettong.codecs import json
from bettong.connector import Sink, StreamKind
from bettong.errors import GraphError
from bettong.nodes import (
    ArmNode,
    BranchNode,
    Graph,
    KeyByNode,
    MergeNode,
    Node,
    SinkNode,
    SourceNode,
    StatefulNode,
    StepNode,
    StreamNode,
    parents_of,
)
from bettong.plan import (
    Chain,
    Edge,
    FailurePolicy,
    Plan,
    SinkPlan,
    SourcePlan,
    StageInput,
    StagePlan,
    Step,
)

if TYPE_CHECKING:
    from bettong_proto.plugin.v1 import application_pb2

Owner = SourceNode | StatefulNode | KeyByNode

# A merge copies what follows it into each stream; nested ones multiply.
CHAIN_LEAVES_MAX = 10_000


def build_plan(
    graph: Graph,
    *,
    partitions: int,
    on_error: FailurePolicy,
    dead_letter: Sink | None,
    dead_letter_name: str,
) -> Plan:
    """Return the plan of all nodes of `graph`.

    Raises:
        GraphError: no source, a step that leads nowhere, values without a codec.
    """
    consumers = _consumers(graph)
    _check(graph, consumers)
    has_dead_letters = on_error is FailurePolicy.DEAD_LETTER
    owners: list[Owner] = [node for node in graph.nodes if _is_owner(node, consumers)]
    inputs = _Inputs()
    built = {
        owner.name: _OwnerBuilder(owner, consumers, inputs).build() for owner in owners
    }
    dead_letter_outputs: dict[str, int] = {}
    if has_dead_letters:
        for name, parts in built.items():
            number = dead_letter_outputs[name] = len(parts.outputs)
            parts.outputs.append(
                Edge(
                    number=number,
                    to_stage=None,
                    to_sink=dead_letter_name,
                    input=0,
                    codec=json,
                )
            )
    sinks = [
        SinkPlan(node.name, node.connector, (node.connector.codec,))
        for node in graph.nodes
        if isinstance(node, SinkNode)
    ]
    if dead_letter is not None:
        sinks.append(SinkPlan(dead_letter_name, dead_letter, (json,)))
    stage_owners: list[StatefulNode | KeyByNode] = [
        owner for owner in owners if not isinstance(owner, SourceNode)
    ]
    return Plan(
        name=graph.application,
        sources=tuple(
            _source_plan(owner, built[owner.name])
            for owner in owners
            if isinstance(owner, SourceNode)
        ),
        stages=tuple(
            _stage_plan(index, owner, built[owner.name], inputs)
            for index, owner in enumerate(stage_owners)
        ),
        sinks=tuple(sinks),
        partitions=partitions,
        on_error=on_error,
        dead_letter_sink="" if dead_letter is None else dead_letter_name,
        dead_letter_outputs=dead_letter_outputs,
    )


def to_application(plan: Plan) -> "application_pb2.Application":
    """Return the message that registers the plan with an engine."""
    from bettong_proto.plugin.v1 import application_pb2 as pb

    kinds = {
        StreamKind.SHARED: pb.STREAM_KIND_SHARED,
        StreamKind.LOCAL: pb.STREAM_KIND_LOCAL,
    }

    def outputs(edges: tuple[Edge, ...]) -> "list[application_pb2.Output]":
        found = []
        for edge in edges:
            output = pb.Output(input=edge.input, value_codec=edge.codec.name)
            if edge.to_stage is not None:
                output.stage = edge.to_stage
            elif edge.to_sink is not None:
                output.sink = edge.to_sink
            found.append(output)
        return found

    def states(stage: StagePlan) -> "list[application_pb2.State]":
        state = stage.keyed.state if stage.keyed else None
        if state is None:
            return []
        return [
            pb.State(
                name=state.name,
                codec=state.codec.name,
                schema_version=state.schema_version,
                kind=pb.STATE_KIND_VALUE,
            )
        ]

    return pb.Application(
        name=plan.name,
        partitions=plan.partitions,
        sources=[
            pb.Source(
                name=source.name,
                kind=kinds[source.connector.kind],
                outputs=outputs(source.outputs),
                steps=source.steps,
            )
            for source in plan.sources
        ],
        stages=[
            pb.Stage(
                name=stage.name,
                states=states(stage),
                outputs=outputs(stage.outputs),
                keyed=stage.key_codec is not None,
                steps=stage.steps,
                key_codec=stage.key_codec.name if stage.key_codec else "",
            )
            for stage in plan.stages
        ],
        sinks=[
            pb.Sink(name=sink.name, partitions=sink.connector.partitions)
            for sink in plan.sinks
        ],
        dead_letter_sink=plan.dead_letter_sink,
    )


def _consumers(graph: Graph) -> dict[int, list[Node]]:
    """Return what each node feeds, by id of the node, in the order of making."""
    consumers: dict[int, list[Node]] = {id(node): [] for node in graph.nodes}
    for node in graph.nodes:
        for parent in parents_of(node):
            consumers[id(parent)].append(node)
    return consumers


def _check(graph: Graph, consumers: dict[int, list[Node]]) -> None:
    if not any(isinstance(node, SourceNode) for node in graph.nodes):
        raise GraphError(
            f"application {graph.application!r} has no source: begin with"
            " app.source(name, connector)"
        )
    for node in graph.nodes:
        if not consumers[id(node)] and not isinstance(node, SinkNode):
            raise GraphError(
                "leads nowhere: end it with .sink(name, connector), or remove it",
                step=node.name,
            )


def _is_owner(node: Node, consumers: dict[int, list[Node]]) -> TypeGuard[Owner]:
    """Return whether `node` begins a source or a stage of its own."""
    if isinstance(node, KeyByNode):
        return any(
            isinstance(consumer, StepNode | BranchNode)
            for consumer in _through_merges(node, consumers)
        )
    return isinstance(node, SourceNode | StatefulNode)


def _through_merges(node: Node, consumers: dict[int, list[Node]]) -> list[Node]:
    """Return what `node` feeds, seeing merges as transparent."""
    found: list[Node] = []
    for consumer in consumers[id(node)]:
        if isinstance(consumer, MergeNode):
            found += _through_merges(consumer, consumers)
        else:
            found.append(consumer)
    return found


class _Inputs:
    """Numbers the inputs of each stage: one for each node that it reads from."""

    def __init__(self) -> None:
        self._numbers: dict[str, dict[int, int]] = {}
        self._codecs: dict[str, list[Codec]] = {}
        self._fed_by: dict[str, list[list[str]]] = {}

    def number(self, stage: str, entry: StreamNode, codec: Codec, owner: str) -> int:
        numbers = self._numbers.setdefault(stage, {})
        fed_by = self._fed_by.setdefault(stage, [])
        number = numbers.get(id(entry))
        if number is None:
            number = numbers[id(entry)] = len(numbers)
            self._codecs.setdefault(stage, []).append(codec)
            fed_by.append([])
        if owner not in fed_by[number]:
            fed_by[number].append(owner)
        return number

    def of(self, stage: str) -> tuple[StageInput, ...]:
        codecs = self._codecs.get(stage, [])
        fed_by = self._fed_by.get(stage, [])
        return tuple(
            StageInput(codec, ", ".join(owners))
            for codec, owners in zip(codecs, fed_by, strict=True)
        )


@dataclass(slots=True)
class _Parts:
    chain: Chain
    outputs: list[Edge]
    steps: tuple[str, ...]


@dataclass(slots=True)
class _Leaf:
    """What a chain does at its end, while it is gathered."""

    edges: list[Edge] = field(default_factory=list)
    branches: list[Chain] = field(default_factory=list)
    choices: list[Chain] = field(default_factory=list)

    def close(self, steps: list[Step]) -> Chain:
        edges, branches = tuple(self.edges), tuple(self.branches)
        if len(self.choices) == 1 and not edges and not branches:
            choice = self.choices[0]
            return Chain(
                steps=tuple(steps),
                choose=choice.choose,
                choose_step=choice.choose_step,
                choices=choice.choices,
            )
        return Chain(
            steps=tuple(steps), edges=edges, branches=(*branches, *self.choices)
        )


class _OwnerBuilder:
    """Gathers the chain and the outputs of one source or stage."""

    def __init__(
        self, owner: Owner, consumers: dict[int, list[Node]], inputs: _Inputs
    ) -> None:
        self._owner = owner
        self._consumers = consumers
        self._inputs = inputs
        self._outputs: list[Edge] = []
        self._edge_of: dict[tuple[str, int], Edge] = {}
        self._steps: dict[str, None] = {}
        self._leaves = 0

    def build(self) -> _Parts:
        if not isinstance(self._owner, SourceNode):
            self._steps[self._owner.name] = None
        chain = self._chain(self._owner, [])
        return _Parts(chain, self._outputs, tuple(self._steps))

    def _chain(self, node: StreamNode, steps: list[Step]) -> Chain:
        followers = self._followers(node)
        while len(followers) == 1 and isinstance(followers[0], StepNode):
            node = followers[0]
            steps.append(node.step)
            self._steps[node.name] = None
            followers = self._followers(node)
        self._leaves += 1
        if self._leaves > CHAIN_LEAVES_MAX:
            raise GraphError(
                "merges that are split and merged again have multiplied it to more"
                f" than {CHAIN_LEAVES_MAX:,} paths: put a key_by after a merge",
                step=self._owner.name,
            )
        leaf = _Leaf()
        for follower in followers:
            self._follow(node, follower, leaf)
        return leaf.close(steps)

    def _followers(self, node: StreamNode) -> list[Node]:
        followers = _through_merges(node, self._consumers)
        if isinstance(node, KeyByNode):
            # The rest of what it feeds is reached from before the exchange.
            return [f for f in followers if isinstance(f, StepNode | BranchNode)]
        return followers

    def _follow(self, node: StreamNode, follower: Node, leaf: _Leaf) -> None:
        match follower:
            case StepNode():
                self._steps[follower.name] = None
                leaf.branches.append(self._chain(follower, [follower.step]))
            case BranchNode():
                leaf.choices.append(self._choice(follower))
            case SinkNode() | StatefulNode():
                leaf.edges.append(self._edge(follower, node, None))
            case KeyByNode():
                self._follow_key_by(follower, leaf)
            case _:
                raise AssertionError(f"{follower} cannot follow a step")

    def _follow_key_by(self, key_by: KeyByNode, leaf: _Leaf) -> None:
        followers = _through_merges(key_by, self._consumers)
        if any(isinstance(f, StepNode | BranchNode) for f in followers):
            leaf.edges.append(self._edge(key_by, key_by, key_by))
        for follower in followers:
            if isinstance(follower, KeyByNode):
                self._follow_key_by(follower, leaf)  # The first key is never used.
            elif isinstance(follower, SinkNode | StatefulNode):
                leaf.edges.append(self._edge(follower, key_by, key_by))

    def _choice(self, branch: BranchNode) -> Chain:
        self._steps[branch.name] = None
        return Chain(
            choose=branch.choose,
            choose_step=branch.name,
            choices={
                arm.arm: self._chain(arm, [])
                for arm in self._consumers[id(branch)]
                if isinstance(arm, ArmNode)
            },
        )

    def _edge(
        self,
        receiver: SinkNode | StatefulNode | KeyByNode,
        entry: StreamNode,
        key_by: KeyByNode | None,
    ) -> Edge:
        """Return the edge to `receiver`; paths that meet again share one.

        entry: the node that the receiver reads from, merges not counted.
        """
        to_sink = isinstance(receiver, SinkNode)
        known = (receiver.name, id(key_by) if to_sink else id(entry))
        edge = self._edge_of.get(known)
        if edge is not None:
            return edge
        key: Callable[[Any], Any] | None = None
        key_codec: KeyCodec | None = None
        if key_by is not None:
            self._steps[key_by.name] = None
            key, key_codec = key_by.function, key_by.key_codec
        if isinstance(receiver, SinkNode):
            codec, number = receiver.connector.codec, 0
        else:
            codec = entry.values.codec_for(entry.name)
            number = self._inputs.number(receiver.name, entry, codec, self._owner.name)
        edge = Edge(
            number=len(self._outputs),
            to_stage=None if to_sink else receiver.name,
            to_sink=receiver.name if to_sink else None,
            input=number,
            codec=codec,
            key=key,
            key_step=key_by.name if key_by is not None else "",
            key_codec=key_codec,
        )
        self._outputs.append(edge)
        self._edge_of[known] = edge
        return edge


def _source_plan(node: SourceNode, parts: _Parts) -> SourcePlan:
    return SourcePlan(
        name=node.name,
        connector=node.connector,
        chain=parts.chain,
        outputs=tuple(parts.outputs),
        steps=parts.steps,
        event_time=node.event_time,
        out_of_order_us=node.out_of_order_us,
        idle_after_ms=node.idle_after_ms,
    )


def _stage_plan(
    index: int, node: StatefulNode | KeyByNode, parts: _Parts, inputs: _Inputs
) -> StagePlan:
    return StagePlan(
        index=index,
        name=node.name,
        key_codec=node.key_codec,
        inputs=inputs.of(node.name),
        keyed=node.step if isinstance(node, StatefulNode) else None,
        chain=parts.chain,
        outputs=tuple(parts.outputs),
        steps=parts.steps,
    )
