"""The application that is simulated, and what it must put out.

The detector: per key the state is the last four numbers seen, and input i must put
out `[i-3, i-2, i-1, i]`. Loss, repetition, disorder, corruption and wrongly restored
state all show in the outputs. Later stages number what they see, per key of theirs.

Values are text, parts between `;`. Of a record: `key:i`. Of a detector:
`path;key;ring`, of its timers `pathE;key;i` (event time) and `pathP;key;i`. A counter
adds `;owner#n`.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

from bettong_engine.core.timers import EVENT_TIME, PROCESSING_TIME
from bettong_engine.sim.options import SimOptions
from bettong_proto.plugin.v1 import application_pb2

TIMER_DELAY_US = 3_000
PROCESSING_DELAY_US = 20_000


@dataclass(frozen=True, slots=True)
class Record:
    """One record of a stream; `number` counts the records of its key from 1."""

    key: bytes
    number: int
    time_us: int

    @property
    def value(self) -> bytes:
        """As the source reads it."""
        return b"%s:%d" % (self.key, self.number)


@dataclass(frozen=True, slots=True)
class EdgeShape:
    """An output: to a stage (with the input's number) or to a sink, and its key.

    key: "key" (of the record), "group" (the counters'), or "" (none).
    """

    stage: int | None = None
    sink: int | None = None
    input: int = 0
    key: str = "key"


@dataclass(frozen=True, slots=True)
class StageShape:
    """kind: "detect", "count" or "head". path: of a detector's outputs."""

    name: str
    kind: str
    edges: tuple[EdgeShape, ...]
    path: bytes = b""
    inputs: int = 1


@dataclass(frozen=True, slots=True)
class Shape:
    """An application: all sources have the same outputs.

    expected: for each sink, the paths whose outputs it gets.
    """

    source_edges: tuple[EdgeShape, ...]
    stages: tuple[StageShape, ...]
    sinks: tuple[str, ...]
    expected: tuple[tuple[bytes, ...], ...]


_SINK0 = EdgeShape(sink=0)
_SHAPES = {
    "line": Shape(
        (EdgeShape(stage=0),),
        (StageShape("detect", "detect", (_SINK0,), b"a"),),
        ("out",),
        ((b"a",),),
    ),
    "relay": Shape(
        (EdgeShape(stage=0),),
        (
            StageShape("detect", "detect", (EdgeShape(stage=1, key="group"),), b"a"),
            StageShape("count", "count", (EdgeShape(sink=0, key="group"),)),
        ),
        ("out",),
        ((b"a",),),
    ),
    "diamond": Shape(
        (EdgeShape(stage=0), EdgeShape(stage=1)),
        (
            StageShape("left", "detect", (EdgeShape(stage=2),), b"a"),
            StageShape("right", "detect", (EdgeShape(stage=2, input=1),), b"b"),
            StageShape("join", "count", (_SINK0,), inputs=2),
        ),
        ("out",),
        ((b"a", b"b"),),
    ),
    "head": Shape(
        (EdgeShape(stage=0, key=""),),
        (
            StageShape("head", "head", (EdgeShape(stage=1),)),
            StageShape("detect", "detect", (_SINK0,), b"a"),
        ),
        ("out",),
        ((b"a",),),
    ),
    "fork": Shape(
        (EdgeShape(stage=0), EdgeShape(sink=1, key="")),
        (StageShape("detect", "detect", (_SINK0,), b"a"),),
        ("out", "raw"),
        ((b"a",), (b"s",)),
    ),
    "twin": Shape(
        (EdgeShape(stage=0),),
        (
            StageShape(
                "detect",
                "detect",
                (_SINK0, EdgeShape(stage=1, key="group")),
                b"a",
            ),
            StageShape("count", "count", (EdgeShape(sink=1, key="group"),)),
        ),
        ("out", "counts"),
        ((b"a",), (b"a",)),
    ),
}

DEAD_LETTERS = "dead"


def shape_of(options: SimOptions) -> Shape:
    """Return the graph of a schedule."""
    return _SHAPES[options.shape]


def source_names(options: SimOptions) -> list[str]:
    """Return the names of its sources."""
    return [f"source{i}" for i in range(options.sources)]


def sink_names(options: SimOptions) -> list[str]:
    """Return the names of its sinks, the dead letters' last."""
    return [*shape_of(options).sinks, DEAD_LETTERS]


def application_of(options: SimOptions) -> application_pb2.Application:
    """Return the application as a plugin registers it."""
    shape = shape_of(options)
    application = application_pb2.Application(
        name="sim", partitions=options.partitions, dead_letter_sink=DEAD_LETTERS
    )
    kind = application_pb2.STREAM_KIND_SHARED
    if options.is_local:
        kind = application_pb2.STREAM_KIND_LOCAL

    def output(edge: EdgeShape) -> application_pb2.Output:
        if edge.stage is not None:
            name = shape.stages[edge.stage].name
            return application_pb2.Output(stage=name, input=edge.input)
        assert edge.sink is not None
        return application_pb2.Output(sink=shape.sinks[edge.sink])

    for name in source_names(options):
        application.sources.add(
            name=name, kind=kind, outputs=[output(e) for e in shape.source_edges]
        )
    for stage in shape.stages:
        has_state = stage.kind != "head"
        states = [application_pb2.State(name=stage.name, codec="raw_bytes")]
        application.stages.add(
            name=stage.name,
            keyed=has_state,
            states=states if has_state else [],
            outputs=[output(e) for e in stage.edges],
        )
    for sink in shape.sinks:
        application.sinks.add(name=sink, partitions=options.sink_partitions)
    application.sinks.add(name=DEAD_LETTERS, partitions=1)
    return application


# What stages do.


@dataclass(slots=True)
class Outcome:
    """Of one call. timers: (kind, name, due or None) set or deleted."""

    state: bytes | None
    values: Sequence[bytes] = ()
    timers: list[tuple[int, str, int]] = field(default_factory=list)


def key_of(value: bytes) -> bytes:
    """Return the key of a record, or of what a detector made of it."""
    if b";" in value:
        return value.split(b";")[1]
    return value.rpartition(b":")[0]


def group_of(value: bytes) -> bytes:
    """Return the key of a counter in another exchange: a few for all keys."""
    return b"g" + key_of(value)[-1:]


def detect(
    options: SimOptions,
    path: bytes,
    state: bytes | None,
    value: bytes,
    time_us: int | None,
    processing_time_us: int,
) -> Outcome:
    """Take one number of a key."""
    key, _, text = value.rpartition(b":")
    number = int(text)
    ring = [*(state or b"0,0,0,0").split(b",")[1:], text]
    new = b",".join(ring)
    outcome = Outcome(new, (b"%s;%s;%s" % (path, key, new),))
    if options.deletes_every and number % options.deletes_every == 0:
        outcome.state = None
    if options.timers_every and number % options.timers_every == 0:
        if time_us is not None:
            due_us = time_us + TIMER_DELAY_US
            outcome.timers.append((EVENT_TIME, f"E{number}", due_us))
        due_us = processing_time_us + PROCESSING_DELAY_US
        outcome.timers.append((PROCESSING_TIME, f"P{number}", due_us))
    return outcome


def fire(path: bytes, key: bytes, name: str) -> bytes:
    """Return the output of a detector's timer."""
    return b"%s%s;%s;%s" % (path, name[:1].encode(), key, name[1:].encode())


def count(owner: bytes, state: bytes | None, value: bytes) -> Outcome:
    """Number what comes to a key of a later stage."""
    number = int(state or b"0") + 1
    return Outcome(b"%d" % number, (b"%s;%s#%d" % (value, owner, number),))


def expected_ring(number: int, deletes_every: int) -> bytes:
    """Return the ring that input `number` must put out."""
    start = (number - 1) // deletes_every * deletes_every if deletes_every else 0
    return b",".join(
        b"%d" % (i if i > start else 0) for i in range(number - 3, number + 1)
    )
