"""Streams and positions of a worker's sources: who has which, and where they stand."""

from collections.abc import Iterable, Sequence

from bettong_engine.core.delta import StreamState
from bettong_engine.core.effects import Effect, HoldSource
from bettong_engine.core.ids import Epoch, InstanceId
from bettong_engine.core.partition import Partition
from bettong_engine.core.resets import reset_source, stream_targets
from bettong_engine.core.run import Run
from bettong_engine.core.sessions import Sessions
from bettong_engine.core.topology import SourceSpec, Topology


class SourceDesk:
    """Knows streams from two sides: what is committed, and what plugins name."""

    def __init__(
        self, topology: Topology, partitions: Sequence[Partition], sessions: Sessions
    ) -> None:
        self._topology = topology
        self._partitions = partitions
        self._sessions = sessions

    def fill_boundary(self, run: Run, source: str) -> None:
        """Tell a new boundary of a source's streams, at their committed positions."""
        session = self._sessions.sources.get(source)
        is_local = self._spec(source).is_local
        for state in self._committed(source):
            run.boundary.add_stream(state, is_local=is_local)
        if session is None:
            run.boundary.add_source(source)
            return
        for stream in session.found:
            if not run.boundary.knows(source, stream):
                run.boundary.appear(source, stream, is_local=is_local)
        run.boundary.add_source(source, is_complete=session.is_complete)

    def reset(
        self, run: Run, source: str, committed_epoch: Epoch, *, is_held: bool
    ) -> list[Effect]:
        """Reset the plugin that serves a source, and use it in this generation."""
        session = self._sessions.sources[source]
        run.source_plugins[source] = session.instance
        streams = self._committed(source)
        if session.is_local:
            # Those that the plugin does not name are gone, and end where they are.
            streams = [state for state in streams if state.stream in session.found]
        known = {state.stream for state in streams}
        streams += [StreamState(source, s) for s in session.found if s not in known]
        effects: list[Effect] = [
            reset_source(
                run.flow,
                session.instance,
                self._spec(source).outputs,
                streams,
                generation=run.generation,
                epoch=committed_epoch,
            )
        ]
        if is_held:
            effects.append(HoldSource(session.instance, True, "held"))
        return effects

    def name_streams(
        self,
        run: Run | None,
        source: str,
        streams: Iterable[str],
        *,
        is_complete: bool,
    ) -> list[tuple[InstanceId, StreamState, tuple[int, ...]]]:
        """Take the streams that a source names; return those to open.

        Each with the plugin that opens it, and the targets of its records.
        """
        session = self._sessions.sources[source]
        fresh = [stream for stream in streams if stream not in session.found]
        session.found.update(dict.fromkeys(fresh))
        session.is_complete = session.is_complete or is_complete
        if run is None or run.source_plugins.get(source) != session.instance:
            return []
        spec = self._spec(source)
        opened = []
        for stream in fresh:
            if not run.boundary.knows(source, stream):
                run.boundary.appear(source, stream, is_local=spec.is_local)
                targets = stream_targets(run.flow, spec.outputs, source, stream)
                state = StreamState(source, stream)
                opened.append((session.instance, state, targets))
        run.boundary.add_source(source, is_complete=session.is_complete)
        return opened

    def awaits_list(self, source: str) -> bool:
        """Return whether a source is not to be reset before it names its streams.

        A reset names the streams that go on, and closes all others. Of local ones
        only the plugin knows which are left.
        """
        session = self._sessions.sources.get(source)
        return session is not None and session.is_local and not session.is_listed

    def unnamed(self, run: Run, source: str) -> list[str]:
        """Return the open local streams that their source, attached anew, misses."""
        session = self._sessions.sources.get(source)
        if session is None or not (session.is_local and session.is_listed):
            return []
        return [s for s in run.boundary.open_streams(source) if s not in session.found]

    def forget(self, streams: Iterable[StreamState]) -> None:
        """Drop local streams whose end is committed from what sources named."""
        for state in streams:
            session = self._sessions.sources.get(state.source)
            if state.is_forgotten and session is not None:
                session.found.pop(state.stream, None)

    def _committed(self, source: str) -> list[StreamState]:
        return [
            state
            for partition in self._partitions
            for state in partition.streams.values()
            if state.source == source
        ]

    def _spec(self, source: str) -> SourceSpec:
        spec = self._topology.source_named(source)
        assert spec is not None, "sources are checked when they attach"
        return spec
