"""Decides whether an application may take the place of the one that is stored.

State, positions and outputs are known by name. A registration that would lose or
misread some is refused, naming it, until the operator consents. An application
never starts empty by accident.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from bettong_engine.core.topology import SourceSpec, StageSpec, Topology
from bettong_engine.errors import ProtocolError


@dataclass(frozen=True, slots=True)
class Consent:
    """What the operator agreed to. drop: names. rename: old name to new."""

    drop: frozenset[str] = frozenset()
    rename: Mapping[str, str] | None = None

    @classmethod
    def of(cls, drop: Sequence[str], rename: Sequence[str]) -> "Consent":
        """Read the options. Raises `ProtocolError`: one is not OLD=NEW."""
        pairs: dict[str, str] = {}
        for item in rename:
            old, equals, new = item.partition("=")
            if not (old and equals and new):
                raise ProtocolError(
                    "APPLICATION_INVALID", f"--rename {item!r} is not OLD=NEW"
                )
            pairs[old] = new
        return cls(frozenset(drop), pairs)

    def needed(self, stored: Topology, offered: Topology) -> "Consent":
        """Return what of it still means something, so that options may stay.

        A name is carried over once: while it is stored, and not used anew.
        """
        known, used = _names(stored), _names(offered)
        renames = self.rename or {}
        return Consent(
            self.drop & known,
            {old: new for old, new in renames.items() if old in known - used},
        )


def check_change(stored: Topology, offered: Topology, consent: Consent) -> None:
    """Refuse what would lose or misread stored data.

    Raises:
        ProtocolError: APPLICATION_CHANGED, naming every fault and the remedy.
    """
    faults: list[str] = []
    if offered.name != stored.name:
        faults.append(f"it is called {offered.name!r}, the stored one {stored.name!r}")
    if offered.partitions != stored.partitions:
        faults.append(
            f"it has {offered.partitions} partitions, the stored one"
            f" {stored.partitions}: the number is fixed at creation"
        )
    stateful = [stage for stage in stored.stages if stage.states]
    for kind, old, new in (
        (
            "source",
            _values_of_sources(stored.sources),
            _values_of_sources(offered.sources),
        ),
        ("stage", _values_of_stages(stateful), _values_of_stages(offered.stages)),
        ("sink", _values_of_sinks(stored), _values_of_sinks(offered)),
    ):
        faults += _compare(kind, old, new, consent)
    if faults:
        raise ProtocolError(
            "APPLICATION_CHANGED",
            f"application {stored.name!r} does not fit what is stored: "
            + "; ".join(faults),
        )


def _names(topology: Topology) -> frozenset[str]:
    parts = (topology.sources, topology.stages, topology.sinks)
    return frozenset(item.name for part in parts for item in part)


# What must not change, in words for people, by name.
_Values = dict[str, dict[str, str]]


def _values_of_sources(sources: Sequence[SourceSpec]) -> _Values:
    return {
        source.name: {"streams": "local" if source.is_local else "shared"}
        for source in sources
    }


def _values_of_stages(stages: Sequence[StageSpec]) -> _Values:
    """Name states by their place: rows are stored by it, so states are only added."""
    values: _Values = {}
    for stage in stages:
        values[stage.name] = {"key codec": stage.key_codec}
        for place, state in enumerate(stage.states, start=1):
            kind = "map" if state.is_map else "value"
            values[stage.name][f"state {place}"] = f"{kind} with codec {state.codec}"
    return values


def _values_of_sinks(topology: Topology) -> _Values:
    """Name the codec of each input: outputs wait in the log, encoded by it."""
    values: _Values = {
        sink.name: {"partitions": str(sink.partitions)} for sink in topology.sinks
    }
    outputs = [o for source in topology.sources for o in source.outputs]
    outputs += [o for stage in topology.stages for o in stage.outputs]
    for output in outputs:
        if output.sink is not None:
            sink = values[topology.sinks[output.sink].name]
            sink[f"codec of input {output.input}"] = output.value_codec
    return values


def _compare(kind: str, old: _Values, new: _Values, consent: Consent) -> list[str]:
    renames = consent.rename or {}
    faults: list[str] = []
    for name, values in old.items():
        if name in consent.drop:
            continue
        found = new.get(renames.get(name, name))
        if found is None:
            faults.append(
                f"{kind} {name!r} is gone; its data would be lost: bring it back, or"
                f" say --drop {name} or --rename {name}=NEW"
            )
            continue
        for what, value in values.items():
            if found.get(what) != value:
                faults.append(
                    f"{kind} {name!r} was stored with {what} {value!r}, now it is"
                    f" {found.get(what, 'gone')!r}; change it back, or say"
                    f" --drop {name} to start it anew"
                )
    return faults
