"""Which plugins are attached to a worker, and what each offers."""

from dataclasses import dataclass, field

from bettong_engine.core.ids import InstanceId


@dataclass(slots=True)
class SourceSession:
    """An attached source. `found`: streams that it has named, in order."""

    instance: InstanceId
    is_local: bool
    found: dict[str, None] = field(default_factory=dict)
    # The first list of streams has come.
    is_listed: bool = False
    is_complete: bool = False


@dataclass(slots=True)
class ComputeSession:
    """An attached computation, with the stages that it offers."""

    instance: InstanceId
    stages: tuple[int, ...]


class Sessions:
    """Invariant: a source or a sink has one plugin; the newest one wins."""

    def __init__(self) -> None:
        self.computes: dict[InstanceId, ComputeSession] = {}
        self.sources: dict[str, SourceSession] = {}
        self.sinks: dict[int, InstanceId] = {}

    def source_of(self, instance: InstanceId) -> str | None:
        """Return the name of the source that an instance serves now."""
        for name, session in self.sources.items():
            if session.instance == instance:
                return name
        return None

    def sink_of(self, instance: InstanceId) -> int | None:
        """Return the sink that an instance serves now."""
        for sink, owner in self.sinks.items():
            if owner == instance:
                return sink
        return None

    def missing_stages(self, count: int) -> list[int]:
        """Return the stages that nobody offers."""
        offered = {s for c in self.computes.values() for s in c.stages}
        return [stage for stage in range(count) if stage not in offered]

    def compute_hosts(self) -> list[tuple[InstanceId, tuple[int, ...]]]:
        """Return the computations in order of arrival, with their stages."""
        return [(c.instance, c.stages) for c in self.computes.values()]
