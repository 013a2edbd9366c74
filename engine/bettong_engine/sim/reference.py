"""Plugins that are written on messages alone: no SDK is needed to run the world."""

from bettong_engine.sim.options import SimOptions
from bettong_engine.sim.outside import Outside
from bettong_engine.sim.reference_compute import ReferenceCompute
from bettong_engine.sim.reference_sink import ReferenceSink
from bettong_engine.sim.reference_source import ReferenceSource


class ReferencePlugins:
    """Makes reference drivers."""

    def __init__(self, options: SimOptions) -> None:
        self._options = options

    def source(self, name: str, outside: Outside, process: int) -> ReferenceSource:
        """Return a source of that process."""
        return ReferenceSource(self._options, name, outside, process)

    def compute(self) -> ReferenceCompute:
        """Return a computation that offers all stages."""
        return ReferenceCompute(self._options)

    def sink(self, name: str, outside: Outside) -> ReferenceSink:
        """Return a sink."""
        return ReferenceSink(name, outside)
