"""The application as the engine sees it: sources, stages and sinks, and its edges.

A value, checked once. Steps are the SDK's business and do not appear here.
"""

from dataclasses import dataclass, field

from bettong_engine.errors import ProtocolError

PARTITIONS_DEFAULT = 64
PARTITIONS_MAX = 4096


@dataclass(frozen=True, slots=True)
class OutputSpec:
    """One edge. Exactly one of `stage` and `sink` is set, both are places in lists."""

    stage: int | None
    sink: int | None
    input: int = 0
    value_codec: str = ""


@dataclass(frozen=True, slots=True)
class SourceSpec:
    """A source. `is_local`: its streams live where they appeared."""

    name: str
    is_local: bool
    outputs: tuple[OutputSpec, ...]


@dataclass(frozen=True, slots=True)
class StateSpec:
    """A state of a stage, as it is stored."""

    name: str
    codec: str
    schema_version: int = 0
    is_map: bool = False


@dataclass(frozen=True, slots=True)
class StageSpec:
    """A stage. One that is not keyed holds no state and follows streams."""

    name: str
    keyed: bool
    outputs: tuple[OutputSpec, ...]
    states: tuple[StateSpec, ...] = ()
    key_codec: str = ""


@dataclass(frozen=True, slots=True)
class SinkSpec:
    """A sink with its fixed number of sink partitions."""

    name: str
    partitions: int = 1


@dataclass(frozen=True, slots=True)
class Topology:
    """A whole application. Raises `ProtocolError` when made from a broken graph.

    Invariant: an output of stage i leads to stages j > i, so that there is no cycle.
    """

    name: str
    sources: tuple[SourceSpec, ...]
    stages: tuple[StageSpec, ...]
    sinks: tuple[SinkSpec, ...]
    partitions: int = PARTITIONS_DEFAULT
    dead_letter_sink: int | None = None
    # Stages that some source feeds, and the stages that feed each stage.
    fed_by_source: tuple[bool, ...] = field(init=False)
    fed_by_stages: tuple[tuple[int, ...], ...] = field(init=False)

    def __post_init__(self) -> None:
        _check(self)
        by_source = [False] * len(self.stages)
        by_stages: list[list[int]] = [[] for _ in self.stages]
        for source in self.sources:
            for output in source.outputs:
                if output.stage is not None:
                    by_source[output.stage] = True
        for number, stage in enumerate(self.stages):
            for target in {o.stage: None for o in stage.outputs}:
                if target is not None:
                    by_stages[target].append(number)
        object.__setattr__(self, "fed_by_source", tuple(by_source))
        object.__setattr__(self, "fed_by_stages", tuple(map(tuple, by_stages)))

    def sink_number(self, name: str) -> int | None:
        """Return the place of a sink by name, or None."""
        return next((i for i, s in enumerate(self.sinks) if s.name == name), None)

    def source_named(self, name: str) -> SourceSpec | None:
        """Return a source by name, or None."""
        return next((s for s in self.sources if s.name == name), None)

    def stage_number(self, name: str) -> int | None:
        """Return the place of a stage by name, or None."""
        return next((i for i, s in enumerate(self.stages) if s.name == name), None)


def _check(topology: Topology) -> None:
    def refuse(what: str) -> None:
        raise ProtocolError(
            "APPLICATION_INVALID", f"application {topology.name!r}: {what}"
        )

    if not topology.name:
        refuse("it has no name")
    if not 1 <= topology.partitions <= PARTITIONS_MAX:
        refuse(f"partitions must be 1 to {PARTITIONS_MAX}, got {topology.partitions}")
    if not topology.sources:
        refuse("it has no source")
    names = [source.name for source in topology.sources]
    names += [stage.name for stage in topology.stages]
    names += [sink.name for sink in topology.sinks]
    for name in names:
        if not name or names.count(name) > 1:
            refuse(f"name {name!r} is empty or used more than once")
    for sink in topology.sinks:
        if not 1 <= sink.partitions <= topology.partitions:
            refuse(f"sink {sink.name!r} has {sink.partitions} partitions")
    owners = [(-1, s.name, s.outputs) for s in topology.sources]
    owners += [(i, s.name, s.outputs) for i, s in enumerate(topology.stages)]
    for place, name, outputs in owners:
        for number, output in enumerate(outputs):
            if (output.stage is None) == (output.sink is None):
                refuse(f"output {number} of {name!r} needs one stage or one sink")
            if output.stage is not None and not (
                place < output.stage < len(topology.stages)
            ):
                refuse(f"output {number} of {name!r} leads backwards: a cycle")
            if output.sink is not None and not 0 <= output.sink < len(topology.sinks):
                refuse(f"output {number} of {name!r} leads to an unknown sink")
            if (
                output.stage is not None
                and place >= 0
                and not topology.stages[output.stage].keyed
            ):
                refuse(
                    f"output {number} of {name!r}: only sources feed stages that are"
                    " not keyed"
                )
    fed = {output.stage for _, _, outputs in owners for output in outputs}
    for number, stage in enumerate(topology.stages):
        if number not in fed:
            refuse(f"stage {stage.name!r} has no input")
        if stage.states and not stage.keyed:
            refuse(f"stage {stage.name!r} has state but is not keyed")
