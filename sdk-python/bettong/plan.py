"""What a pipeline is once it is built: the graph that the runtime executes.

`bettong.app` builds it, `bettong.program` turns its steps into loops, and
`bettong.runtime` runs it. A plan is a value: building it does no I/O, and every
process of an application builds the same one.

The graph is cut into stages at each `key_by`: a stage is one keyed step (or a
head without key) followed by all stateless steps up to the next exchange. Steps
between a source and the first exchange are fused into the source.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from bettong.codec import Codec, KeyCodec
from bettong.connector import Sink, Source


class StepKind(Enum):
    """What a stateless step does with the value of each record."""

    MAP = "map"
    FILTER = "filter"
    FLAT_MAP = "flat_map"


class FailurePolicy(Enum):
    """What happens to a record on which user code raises."""

    FAIL = "fail"
    SKIP = "skip"
    DEAD_LETTER = "dead_letter"


@dataclass(frozen=True, slots=True)
class Step:
    """One stateless user operation on the value; the key, if any, stays."""

    name: str
    kind: StepKind
    function: Callable[[Any], Any]


@dataclass(frozen=True, slots=True)
class Edge:
    """Where the values of one leaf of a chain go: one output of a source or stage.

    `number` is the place in the owner's `outputs`; `input` the place among the
    inputs of the receiver. `key` is None for an edge without `key_by`: then the
    record keeps the key that it has (None in a source). Where branches were merged
    again, one edge ends several leaves of its owner's chain.
    """

    number: int
    to_stage: str | None
    to_sink: str | None
    input: int
    codec: Codec
    key: Callable[[Any], Any] | None = None
    key_step: str = ""
    key_codec: KeyCodec | None = None


@dataclass(frozen=True, slots=True)
class Chain:
    """A tree of stateless steps: run `steps` in order, then do what follows.

    What follows, each with every value that came out of `steps`: `edges` take it,
    `branches` go on with it. `choices` is a branch by value: the function gives
    the name of the one branch to take.
    """

    steps: tuple[Step, ...] = ()
    edges: tuple[Edge, ...] = ()
    branches: tuple["Chain", ...] = ()
    choose: Callable[[Any], str] | None = None
    choose_step: str = ""
    choices: dict[str, "Chain"] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class StateSpec:
    """One state of a keyed step: how it is made, named and written down."""

    name: str
    codec: Codec
    factory: Callable[[], Any]
    schema_version: int = 0


@dataclass(frozen=True, slots=True)
class KeyedStep:
    """The stateful operation at the head of a keyed stage.

    `function(key, value, state)` or, with `wants_context`,
    `function(key, value, state, context)`. A generator function gives any number
    of outputs; any other gives the value that it returns, or none for None.
    `on_timer(key, name, state, context)` likewise, if there is one. Without `state`
    all of them are called without that argument.
    """

    name: str
    function: Callable[..., Any]
    state: StateSpec | None
    wants_context: bool
    is_generator: bool
    on_timer: Callable[..., Any] | None = None
    on_timer_is_generator: bool = False


@dataclass(frozen=True, slots=True)
class StageInput:
    """One input of a stage: its value codec and who feeds it (for messages)."""

    codec: Codec
    fed_by: str


@dataclass(frozen=True, slots=True)
class StagePlan:
    """A stage. `keyed` is None for a head that only runs `chain` (no state)."""

    index: int
    name: str
    key_codec: KeyCodec | None
    inputs: tuple[StageInput, ...]
    keyed: KeyedStep | None
    chain: Chain
    outputs: tuple[Edge, ...]
    steps: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class SourcePlan:
    """A source with the chain that is fused into it."""

    name: str
    connector: Source
    chain: Chain
    outputs: tuple[Edge, ...]
    steps: tuple[str, ...]
    event_time: Callable[[Any], int] | None = None
    out_of_order_us: int = 0
    idle_after_ms: int = 1000


@dataclass(frozen=True, slots=True)
class SinkPlan:
    """A sink; `inputs` are the codecs of the edges that lead to it."""

    name: str
    connector: Sink
    inputs: tuple[Codec, ...]


@dataclass(frozen=True, slots=True)
class Plan:
    """A whole application. `stages` are in topological order."""

    name: str
    sources: tuple[SourcePlan, ...]
    stages: tuple[StagePlan, ...]
    sinks: tuple[SinkPlan, ...]
    partitions: int = 64
    on_error: FailurePolicy = FailurePolicy.FAIL
    # Number of the output that leads to the dead-letter sink, by owner name;
    # empty unless on_error is DEAD_LETTER.
    dead_letter_sink: str = ""
    dead_letter_outputs: dict[str, int] = field(default_factory=dict)
