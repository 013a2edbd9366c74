"""Decides whether an application may take the place of the one that is stored.

State, positions and outputs are known by name. A registration that would lose or
misread some is refused, naming it, until the operator consents. An application
never starts empty by accident.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from bettong_engine.core.topology import Topology
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


def check_change(stored: Topology, offered: Topology, consent: Consent) -> None:
    """Refuse what would lose or misread stored data.

    Raises:
        ProtocolError: APPLICATION_CHANGED, naming every fault and the remedy.
    """
    renames = consent.rename or {}
    faults: list[str] = []
    if offered.name != stored.name:
        faults.append(f"it is called {offered.name!r}, the stored one {stored.name!r}")
    if offered.partitions != stored.partitions:
        faults.append(
            f"it has {offered.partitions} partitions, the stored one"
            f" {stored.partitions}: the number is fixed at creation"
        )
    for kind, old, new in (
        ("source", stored.sources, offered.sources),
        ("stage", [s for s in stored.stages if s.states], offered.stages),
        ("sink", stored.sinks, offered.sinks),
    ):
        names = {item.name: item for item in new}
        for item in old:
            if item.name in consent.drop:
                continue
            name = renames.get(item.name, item.name)
            if name in names:
                faults += _differences(kind, item, replace(names[name], name=item.name))
            else:
                faults.append(
                    f"{kind} {item.name!r} is gone; its data would be lost: bring it"
                    f" back, or say --drop {item.name} or --rename {item.name}=NEW"
                )
    if faults:
        raise ProtocolError(
            "APPLICATION_CHANGED",
            f"application {stored.name!r} does not fit what is stored: "
            + "; ".join(faults),
        )


def _differences(kind: str, old: object, new: object) -> list[str]:
    watched = {
        "source": ("is_local",),
        "stage": ("key_codec", "states"),
        "sink": ("partitions",),
    }
    name = getattr(old, "name")  # noqa: B009
    return [
        f"{kind} {name!r} was stored with {field} {getattr(old, field)!r}, now it has"
        f" {getattr(new, field)!r}; say --drop {name} to start it anew"
        for field in watched[kind]
        if getattr(old, field) != getattr(new, field)
    ]
