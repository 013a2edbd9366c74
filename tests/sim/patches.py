"""What mutants put in the place of methods: each takes the method, and spoils it."""

from dataclasses import replace
from typing import Any

from bettong.runtime.cache import StageCache
from bettong.runtime.sink import SinkMachine
from bettong.runtime.source_stream import SourceStream
from bettong.runtime.stage_runner import StageRunner, StageState
from bettong_engine.core import delivery
from bettong_engine.core.alignment import Forward, StageAligner
from bettong_engine.core.boundary import SourceBoundary
from bettong_engine.core.coordinator import Coordinator
from bettong_engine.core.dataflow import Dataflow
from bettong_engine.core.delivery import Delivery
from bettong_engine.core.effects import NotifyCommitted
from bettong_engine.core.ids import Epoch
from bettong_engine.core.output_log import OutputLog
from bettong_engine.core.sink_desk import SinkDesk
from bettong_engine.core.source_desk import SourceDesk
from bettong_engine.core.worker import Worker
from bettong_engine.net.outbox import Outbox


def always(value: Any) -> Any:
    """The method does nothing but to return this."""
    return lambda original: lambda *args, **kwargs: value


def with_own_generation(original: Any) -> Any:
    """The message counts as one of the generation that runs."""

    def patched(
        self: Worker, instance: Any, generation: Any, *args: Any, **rest: Any
    ) -> Any:
        return original(self, instance, self.generation, *args, **rest)

    return patched


def announce_first(original: Any) -> Any:
    def patched(self: Coordinator) -> Any:
        effects = original(self)
        if effects:
            effects = [*self._announce_commit(effects[0].commit), *effects]
        return effects

    return patched


def release_when_stored(original: Any) -> Any:
    def patched(self: Worker, generation: Any, epoch: Any, cpu_us: int) -> Any:
        effects = original(self, generation, epoch, cpu_us)
        return [*self._committed(epoch), *effects] if effects else []

    return patched


def notify_when_stored(original: Any) -> Any:
    def patched(self: Worker, generation: Any, epoch: Any, cpu_us: int) -> Any:
        effects = original(self, generation, epoch, cpu_us)
        run = self._run
        if not effects or run is None:
            return effects
        streams = run.ledger.of(epoch).streams
        told = [
            NotifyCommitted(i, epoch, tuple(s for s in streams if s.source == name))
            for name, i in run.source_plugins.items()
        ]
        return [*told, *effects]

    return patched


def without_outputs(original: Any) -> Any:
    def patched(delta: Any) -> bytes:
        bare = [replace(sink, batches=[]) for sink in delta.sinks]
        return bytes(original(replace(delta, sinks=bare)))

    return patched


def without_guards(original: Any) -> Any:
    return lambda self, guards, puts: original(self, {}, puts)


def without_fence(original: Any) -> Any:
    def patched(self: Worker, message: Any) -> Any:
        self.term, self.generation = type(self.term)(0), type(self.generation)(0)
        return original(self, message)

    return patched


def obeys_all(original: Any) -> Any:
    """A message of an older generation is obeyed like one of this."""

    def patched(self: Worker, message: Any) -> Any:
        if hasattr(message, "term"):
            return original(self, message)
        return original(self, replace(message, generation=self.generation))

    return patched


def passes_early(original: Any) -> Any:
    def patched(self: StageAligner, batch: Any, epoch: Any) -> Any:
        return [Forward(batch)]

    return patched


def cuts_inside_reads(original: Any) -> Any:
    def patched(self: SourceBoundary) -> Any:
        if self._is_cutting:
            for stream in self._streams.values():
                stream.is_mid_read = False
        return original(self)

    return patched


def grants_double(original: Any) -> Any:
    def patched(self: Dataflow, channel: Any) -> Any:
        return [replace(g, records=2 * g.records) for g in original(self, channel)]

    return patched


def keeps_touched(original: Any) -> Any:
    def patched(self: StageCache, *, committed_epoch: int, **rest: Any) -> None:
        for entry in self._entries.values():
            entry.mark = min(entry.mark, committed_epoch)
        original(self, committed_epoch=committed_epoch, **rest)

    return patched


def drops_unasked(original: Any) -> Any:
    return lambda self, entry, *, is_asked: original(self, entry, is_asked=False)


def goes_on_with_kept(original: Any) -> Any:
    def patched(self: StageRunner) -> bool:
        if self._state is not StageState.READY:
            return False
        return bool(self._work or self._barrier or self._queue)

    return patched


def replays_as_grouped(original: Any) -> Any:
    def patched(self: SourceStream, routes: Any, sizes: Any, most: int) -> None:
        self.routes = routes
        original(self, routes, sizes, most)

    return patched


def forgets_all(original: Any) -> Any:
    def patched(self: SourceStream, position: bytes) -> Any:
        forgotten = original(self, position)
        if forgotten:
            forgotten += self.memory
            self.memory.clear()
            self.unsent.clear()
            self.parts_sent = 0
        return forgotten

    return patched


def writes_overlap(original: Any) -> Any:
    def patched(self: SinkMachine, partition: Any, message: Any, now_ms: int) -> Any:
        partition.next_sequence = message.first_sequence
        return original(self, partition, message, now_ms)

    return patched


def letter_an_epoch_later(original: Any) -> Any:
    def patched(self: SinkDesk, run: Any, place: Any, target: Any, item: Any) -> Any:
        effects = original(self, run, place, target, item)
        dead = (self._topology.dead_letter_sink, 0)
        entry = run.ledger.of(run.boundary.open_epoch)
        if not effects and entry.outputs.get(dead):
            later = run.ledger.of(Epoch(entry.epoch + 1))
            later.add_output(dead, entry.outputs[dead].pop())
        return effects

    return patched


def letters_again(original: Any) -> Any:
    def patched(self: Delivery, generation: Any, sequence: int, cause: Any) -> Any:
        kept, self.log.skipped = self.log.skipped, set()
        try:
            return original(self, generation, sequence, cause)
        finally:
            self.log.skipped |= kept

    return patched


def never_skips(original: Any) -> Any:
    return lambda self, *args: [
        e for e in original(self, *args) if not isinstance(e, delivery.SkipOutput)
    ]


def tries_blindly(original: Any) -> Any:
    return lambda self, token: [self._under_way] if self._under_way else []


def believes_applied(original: Any) -> Any:
    def patched(self: Coordinator, token: int) -> Any:
        done = self._under_way
        if done is None:
            return []
        old = done.expected
        revisions = (old.generation_revision, old.commit_revision)
        return self.on_applied(token, revisions, 0)

    return patched


def trims_committed(original: Any) -> Any:
    def patched(self: OutputLog, batches: Any, skipped: Any) -> Any:
        delta = original(self, batches, skipped)
        if delta is not None:
            delta.durable_sequence = self.committed_to
        return delta

    return patched


def numbers_from_committed(original: Any) -> Any:
    def patched(self: OutputLog, batches: Any, skipped: Any) -> Any:
        self.prepared_to = self.committed_to
        return original(self, batches, skipped)

    return patched


def keeps_numbers(original: Any) -> Any:
    def patched(self: OutputLog) -> None:
        kept = self.prepared_to
        original(self)
        self.prepared_to = kept

    return patched


def uses_at_once(original: Any) -> Any:
    def patched(self: Worker, instance: Any, source: str, **rest: Any) -> Any:
        if self._run is not None:
            self._run.source_plugins.pop(source, None)
        return original(self, instance, source, **rest)

    return patched


def names_dead_connections(original: Any) -> Any:
    def patched(
        self: SourceDesk, run: Any, source: str, *rest: Any, **more: Any
    ) -> Any:
        session = self._sessions.sources[source]
        kept, session.is_local = session.is_local, False
        try:
            return original(self, run, source, *rest, **more)
        finally:
            session.is_local = kept

    return patched


def committed_rows_only(original: Any) -> Any:
    return lambda self, stage, state: original(self, stage, state)[-1:]


def takes_with_old_credit(original: Any) -> Any:
    def patched(self: Outbox) -> Any:
        message = self._queue.popleft() if self._queue else None
        if not self._grants or self._pack_credits is None:
            return message
        packed = self._pack_credits(self._grants.values())
        self._grants.clear()
        if message is None:
            return packed
        message.credits.extend(packed.credits)
        return message

    return patched


def forgets_digests(original: Any) -> Any:
    def patched(self: Coordinator, **puts: Any) -> Any:
        commit = puts.get("commit")
        if commit is not None:
            old = self._record.commit.digests
            pairs = zip(commit.digests, old, strict=True)
            puts["commit"] = replace(
                commit, digests=tuple(b"" if a == b else a for a, b in pairs)
            )
        return original(self, **puts)

    return patched


def cuts_the_open_one_only(original: Any) -> Any:
    def patched(self: SourceBoundary, epoch: Any) -> Any:
        return original(self, epoch) if epoch == self.open_epoch else []

    return patched


def consumed_before_reset(original: Any) -> Any:
    def patched(self: Worker, instance: Any, *args: Any) -> Any:
        run = self._run
        if run is None:
            return []
        unreset, run.unreset = run.unreset, set()
        try:
            return original(self, instance, *args)
        finally:
            run.unreset = unreset

    return patched
