"""The user's description of a pipeline: nodes that point at what feeds them.

A node is made once and never changes; a cycle cannot be described. `bettong.stream`
makes nodes, `bettong.graph` turns them into a `Plan`.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from bettong.codec import Codec, KeyCodec
from bettong.codecs import infer_codec
from bettong.connector import Sink, Source
from bettong.errors import CodecError, GraphError
from bettong.plan import KeyedStep, Step

NAME_CHARS_MAX = 100
_NAME = re.compile(r"\w[\w.-]*")


@dataclass(frozen=True, slots=True, eq=False)
class Values:
    """What is known of the values that a node gives.

    hint: a type hint, or Any.
    codec: declared for them, or known from the source; None: inferred from `hint`.
    """

    hint: Any = Any
    codec: Codec | None = None

    def codec_for(self, step: str) -> Codec:
        """Return the codec that carries these values away from `step`."""
        if self.codec is not None:
            return self.codec
        try:
            return infer_codec(self.hint)
        except CodecError as error:
            raise GraphError(
                f"no codec for its values: {error}. Declare one with codec= at this"
                " step or at the key_by after it",
                step=step,
            ) from error


@dataclass(frozen=True, slots=True, eq=False)
class SourceNode:
    """Where records come from."""

    name: str
    connector: Source
    values: Values
    event_time: Callable[[Any], int] | None
    out_of_order_us: int
    idle_after_ms: int


@dataclass(frozen=True, slots=True, eq=False)
class StepNode:
    """A stateless step."""

    name: str
    parent: "Node"
    step: Step
    values: Values


@dataclass(frozen=True, slots=True, eq=False)
class KeyByNode:
    """A new key for each record."""

    name: str
    parent: "Node"
    function: Callable[[Any], Any]
    key_codec: KeyCodec
    values: Values


@dataclass(frozen=True, slots=True, eq=False)
class StatefulNode:
    """A step that works key by key, with state or without."""

    name: str
    parent: "Node"
    step: KeyedStep
    key_codec: KeyCodec
    values: Values


@dataclass(frozen=True, slots=True, eq=False)
class MergeNode:
    """The records of several streams as one."""

    name: str
    parents: tuple["Node", ...]
    values: Values


@dataclass(frozen=True, slots=True, eq=False)
class BranchNode:
    """A choice: each record goes on in one arm."""

    name: str
    parent: "Node"
    choose: Callable[[Any], str]


@dataclass(frozen=True, slots=True, eq=False)
class ArmNode:
    """One way out of a branch."""

    name: str
    parent: BranchNode
    arm: str
    values: Values


@dataclass(frozen=True, slots=True, eq=False)
class SinkNode:
    """Where records go to."""

    name: str
    parent: "Node"
    connector: Sink


StreamNode = SourceNode | StepNode | KeyByNode | StatefulNode | MergeNode | ArmNode
Node = StreamNode | BranchNode | SinkNode


def parents_of(node: Node) -> tuple[Node, ...]:
    """Return the nodes that feed `node`."""
    if isinstance(node, SourceNode):
        return ()
    if isinstance(node, MergeNode):
        return node.parents
    return (node.parent,)


@dataclass(slots=True)
class Graph:
    """All nodes of one application, in the order of their making.

    Invariant: a node stands after the nodes that feed it; names are unique.
    """

    application: str
    nodes: list[Node] = field(default_factory=list)
    _kind_of_name: dict[str, str] = field(default_factory=dict)
    _count_of_kind: dict[str, int] = field(default_factory=dict)

    def claim(self, name: str, kind: str) -> str:
        """Take a name that the user gave. Raises `GraphError`: taken, or no name."""
        check_name(name, kind)
        taken_by = self._kind_of_name.get(name)
        if taken_by is not None:
            fix = (
                "merge the streams before it, or give each its own name"
                if kind == taken_by == "sink"
                else "give one of the two another name=..."
            )
            raise GraphError(
                f"this {kind} has the name of another step, a {taken_by}; state and"
                f" positions are known by name: {fix}",
                step=name,
            )
        self._kind_of_name[name] = kind
        self._count_of_kind[kind] = self._count_of_kind.get(kind, 0) + 1
        return name

    def claim_generated(self, stem: str | None, kind: str) -> str:
        """Take a free name for a step without one: of its function, or "map-3"."""
        number = self._count_of_kind.get(kind, 0) + 1
        if stem is not None and _NAME.fullmatch(stem):
            name, number = stem, 1
        else:
            stem = kind
            name = f"{stem}-{number}"
        while name in self._kind_of_name:
            number += 1
            name = f"{stem}-{number}"
        return self.claim(name[-NAME_CHARS_MAX:], kind)


def check_name(name: object, kind: str) -> None:
    """Raise `GraphError` unless `name` can name a step in metrics, paths and logs."""
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise GraphError(
            f"{name!r} cannot name a {kind}: use letters, digits, '_', '-' and '.',"
            " beginning with a letter or digit"
        )
    if len(name) > NAME_CHARS_MAX:
        raise GraphError(
            f"the name {name[:20]!r}... of a {kind} has {len(name)} characters, at"
            f" most {NAME_CHARS_MAX} are allowed"
        )
