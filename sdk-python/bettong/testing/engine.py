"""An engine for one plan in memory: one epoch at a time, nothing beside it.

It drives the very machines that run in the processes of an application, with the
messages of the protocol. What it leaves out is what takes time: processes, sockets, a
disk, several epochs under way.

It always works until nobody has anything to do, in a fixed order. So one script gives
one result, on every machine.
"""

import math
from collections import deque
from collections.abc import Iterable

from bettong.errors import BettongError, UserCodeError
from bettong.keys import partition_of
from bettong.plan import Edge, Plan
from bettong.program.columns import SizeLimits
from bettong.program.failure import RecordFailedError
from bettong.runtime.compute import ComputeMachine
from bettong.runtime.sink import SinkMachine
from bettong.runtime.source import SourceMachine
from bettong.testing.ledger import (
    END_OF_TIME_US,
    Home,
    Ledger,
    Mark,
    OutputBatch,
    Progress,
    state_values,
)
from bettong.testing.memory import STREAM, MemorySource
from bettong.testing.script import Advance, Control, Crash, EndOfEpoch, Feed, Victim
from bettong_proto.plugin.v1 import (
    batch_pb2,
    compute_pb2,
    error_pb2,
    sink_pb2,
    source_pb2,
)

HISTORY = b"in-memory-engine"
# No sender ever waits for credit: what it sends is taken at once.
CREDIT = 2**62
# Times that timers may fire while time advances once, before it counts as endless.
TIMER_EPOCHS_MAX = 10_000


class MemoryEngine:
    """Runs a plan whose connectors are in memory.

    Invariant between calls: every record that was fed is processed, by all stages.
    """

    def __init__(
        self,
        plan: Plan,
        feeds: dict[str, MemorySource],
        *,
        computes: int,
        processing_time_us: int,
    ) -> None:
        self.ledger = Ledger(feeds, processing_time_us=processing_time_us)
        self._plan = plan
        self._feeds = feeds
        self._stage_numbers = {stage.name: stage.index for stage in plan.stages}
        self._generation = 0
        self._targets = [p % computes for p in range(plan.partitions)]
        self._computes = [self._new_compute() for _ in range(computes)]
        self._sources = {name: self._new_source(name) for name in feeds}
        self._sinks = {sink.name: SinkMachine(sink) for sink in plan.sinks}
        # Committed outputs by sink partition: how many, and the last batches of them
        # with their first sequence, until the sink has them.
        self._sequences: dict[Home, int] = {}
        self._undelivered: dict[Home, deque[tuple[int, OutputBatch]]] = {}
        self._acked: set[tuple[int, int]] = set()
        # What was fed in the open epoch: the source, and how many records it then had.
        self._fed: list[tuple[str, int]] = []
        self._reset()

    def perform(self, item: Feed | Control) -> None:
        """Do what a script says next.

        Raises:
            UserCodeError: a function of the application raised, under "fail".
        """
        match item:
            case Feed():
                feed = self._feeds[item.source]
                feed.records += item.records
                self._fed.append((item.source, len(feed.records)))
                self._read_all()
            case EndOfEpoch():
                self._end_epoch()
            case Advance():
                self._advance(item.seconds)
            case Crash():
                self._crash(item.of)

    def finish(self, *, ends: bool) -> None:
        """Commit what is left, with or without the end of all streams."""
        for feed in self._feeds.values():
            feed.has_ended = ends
        self._read_all()
        self._end_epoch()

    # Time, epochs and crashes.

    def _advance(self, seconds: float) -> None:
        ledger = self.ledger
        until_us = ledger.processing_time_us + math.floor(seconds * 1_000_000)
        self._end_epoch()
        for _ in range(TIMER_EPOCHS_MAX):
            due_us = ledger.next_due_us()
            if due_us is None or due_us > until_us:
                break
            ledger.processing_time_us = max(ledger.processing_time_us, due_us)
            self._end_epoch()
        else:
            raise BettongError(
                f"timers fired at {TIMER_EPOCHS_MAX:,} times within"
                f" Advance({seconds}), and others are due: does on_timer set its own"
                " timer again for a time that has passed?"
            )
        ledger.processing_time_us = until_us
        self._read_all()
        self._end_epoch()

    def _end_epoch(self) -> None:
        """Take a barrier through all stages, commit, and deliver."""
        marks: dict[int, Mark] = {}
        for stage in self._plan.stages:
            marks[stage.index] = self._pass_barrier(stage.index, stage.name, marks)
        committed = self.ledger.commit()
        self._fed.clear()
        for home, batches in committed.outputs.items():
            self._number(home, batches)
        for name, progress in committed.progress.items():
            message = source_pb2.Committed(
                epoch=self.ledger.epoch, streams=[_position(progress)]
            )
            self._tell_source(name, source_pb2.SourceResponse(committed=message))
        self._deliver()

    def _pass_barrier(self, stage: int, name: str, marks: dict[int, Mark]) -> Mark:
        """Give a stage its due timers and the barrier; return the mark it carries."""
        ledger = self.ledger
        mark = _least(self._marks_into(name, marks))
        known = ledger.watermark_of(stage)
        watermark_us = max(
            (w for w in (mark.watermark_us, known) if w is not None), default=None
        )
        if watermark_us is not None:
            ledger.open.watermarks[stage] = watermark_us
        self._send_due_timers(stage, watermark_us)
        barrier = compute_pb2.Barrier(
            generation=self._generation,
            epoch=ledger.epoch + 1,
            stage=stage,
            idle=mark.is_idle,
            processing_time_us=ledger.processing_time_us,
        )
        if watermark_us is not None:
            barrier.watermark_us = watermark_us
        self._acked.clear()
        for number in range(len(self._computes)):
            self._tell_compute(number, compute_pb2.ComputeResponse(barrier=barrier))
        self._work()
        expected = {(number, stage) for number in range(len(self._computes))}
        assert self._acked == expected, f"stage {name!r} did not finish the epoch"
        is_idle = mark.is_idle and watermark_us != END_OF_TIME_US
        return Mark(watermark_us, is_idle)

    def _marks_into(self, stage: str, marks: dict[int, Mark]) -> Iterable[Mark]:
        """Give the mark of each input of a stage: all sources count as one."""
        fed_by = [
            self.ledger.progress_of(source.name)
            for source in self._plan.sources
            if any(edge.to_stage == stage for edge in source.outputs)
        ]
        if fed_by and all(progress.has_ended for progress in fed_by):
            yield Mark(END_OF_TIME_US)
        elif fed_by:
            yield _least(p.mark() for p in fed_by if not p.has_ended)
        for feeder in self._plan.stages:
            if any(edge.to_stage == stage for edge in feeder.outputs):
                yield marks[feeder.index]

    def _send_due_timers(self, stage: int, watermark_us: int | None) -> None:
        by_target: dict[int, batch_pb2.Timers] = {}
        for (_, key, kind, name), due_us in self.ledger.due(stage, watermark_us):
            target = self._targets[partition_of(key, self._plan.partitions)]
            timers = by_target.setdefault(target, batch_pb2.Timers())
            timers.keys.append(key)
            timers.kinds.append(kind)  # type: ignore[arg-type]
            timers.names.append(name)
            timers.due_us.append(due_us)
        for target, timers in by_target.items():
            message = compute_pb2.TimersDue(
                generation=self._generation,
                epoch=self.ledger.epoch + 1,
                stage=stage,
                timers=timers,
            )
            self._tell_compute(target, compute_pb2.ComputeResponse(timers_due=message))

    def _crash(self, of: Victim) -> None:
        """Lose the memory of processes, and go back to the committed epoch."""
        if of in ("all", "compute"):
            self._computes = [self._new_compute() for _ in self._computes]
        if of in ("all", "sources"):
            for name, source in self._sources.items():
                source.close()
                self._sources[name] = self._new_source(name)
        if of in ("all", "sinks"):
            self._sinks = {sink.name: SinkMachine(sink) for sink in self._plan.sinks}
        self.ledger.undo()
        self._reset()

    def _reset(self) -> None:
        """Begin a generation at the committed epoch, and redo what came after."""
        self._generation += 1
        for number in range(len(self._computes)):
            self._tell_compute(
                number, compute_pb2.ComputeResponse(reset=self._compute_reset(number))
            )
        for name in self._sources:
            reset = self._source_reset(name)
            self._tell_source(name, source_pb2.SourceResponse(reset=reset))
        for sink in self._plan.sinks:
            for partition in range(max(1, sink.connector.partitions)):
                message = sink_pb2.OpenSink(
                    partition=partition, history=HISTORY, generation=self._generation
                )
                self._tell_sink(sink.name, sink_pb2.SinkResponse(open=message))
        self._deliver()
        self._redo()

    def _redo(self) -> None:
        """Read again what was fed since the last commit, in the same order."""
        for name, count in self._fed:
            while int(self.ledger.progress_of(name).position or b"0") < count:
                if not self._step_source(name):
                    break
        self._read_all()

    def _compute_reset(self, number: int) -> compute_pb2.ComputeReset:
        partitions = self._plan.partitions
        owned = [p for p in range(partitions) if self._targets[p] == number]
        used: dict[int, set[int]] = {}
        for stage_number, key in self.ledger.rows:
            used.setdefault(stage_number, set()).add(partition_of(key, partitions))
        assignments = []
        for stage in self._plan.stages:
            held = used.get(stage.index, set())
            assignment = compute_pb2.StageAssignment(
                stage=stage.index,
                partitions=owned,
                fresh_partitions=[p for p in owned if p not in held],
                routes=self._routes(stage.outputs),
            )
            watermark_us = self.ledger.watermark_of(stage.index)
            if watermark_us is not None:
                assignment.watermark_us = watermark_us
            assignments.append(assignment)
        return compute_pb2.ComputeReset(
            generation=self._generation,
            committed_epoch=self.ledger.epoch,
            stages=assignments,
            credit_records=CREDIT,
            credit_bytes=CREDIT,
            processing_time_us=self.ledger.processing_time_us,
        )

    def _source_reset(self, name: str) -> source_pb2.SourceReset:
        (source,) = (s for s in self._plan.sources if s.name == name)
        return source_pb2.SourceReset(
            generation=self._generation,
            committed_epoch=self.ledger.epoch,
            routes=self._routes(source.outputs),
            streams=[_position(self.ledger.progress[name])],
            credit_records=CREDIT,
            credit_bytes=CREDIT,
        )

    def _routes(self, edges: Iterable[Edge]) -> list[batch_pb2.Route]:
        return [
            batch_pb2.Route(output=edge.number, targets=self._targets)
            for edge in edges
            if edge.to_stage is not None
        ]

    # Records.

    def _read_all(self) -> None:
        """Let the sources read what there is, each read through all stages."""
        for name in self._sources:
            while self._step_source(name):
                pass

    def _step_source(self, name: str) -> bool:
        """Return whether there was something to do."""
        sent = self._sources[name].step(self._now_ms())
        self._on_source(name, sent)
        return bool(sent)

    def _tell_source(self, name: str, message: source_pb2.SourceResponse) -> None:
        self._on_source(name, self._sources[name].on_message(message, self._now_ms()))

    def _on_source(self, name: str, sent: list[source_pb2.SourceRequest]) -> None:
        for request in sent:
            match request.WhichOneof("message"):
                case "frame":
                    self._on_frame(name, request.frame)
                case "error":
                    raise self._failure(self._sources[name].failure, request.error)

    def _on_frame(self, name: str, frame: source_pb2.Frame) -> None:
        (source,) = (s for s in self._plan.sources if s.name == name)
        for batch in frame.batches:
            self._route(source.outputs[batch.output], batch)
        self.ledger.open.skipped += frame.records_skipped
        if not frame.more:
            known = self.ledger.progress_of(name)
            watermark_us = known.watermark_us
            if frame.HasField("watermark_us"):
                watermark_us = frame.watermark_us
            self.ledger.open.progress[name] = Progress(
                frame.position or known.position, watermark_us, frame.idle, frame.end
            )
        self._work()

    def _route(self, edge: Edge, batch: batch_pb2.Batch) -> None:
        if edge.to_sink is not None:
            outputs = self.ledger.open.outputs.setdefault(
                (edge.to_sink, batch.target), []
            )
            outputs.append(OutputBatch(edge.input, batch.count, batch.records))
            return
        assert edge.to_stage is not None, "an edge leads to a stage or a sink"
        message = compute_pb2.StageInput(
            generation=self._generation,
            stage=self._stage_numbers[edge.to_stage],
            input=edge.input,
            count=batch.count,
            records=batch.records,
        )
        self._tell_compute(batch.target, compute_pb2.ComputeResponse(input=message))

    def _work(self) -> None:
        """Let the computations work until none has anything to do."""
        is_busy = True
        while is_busy:
            is_busy = False
            for number, compute in enumerate(self._computes):
                while compute.has_work():
                    is_busy = True
                    self._on_compute(number, compute.step())

    def _tell_compute(self, number: int, message: compute_pb2.ComputeResponse) -> None:
        self._on_compute(number, self._computes[number].on_message(message))

    def _on_compute(self, number: int, sent: list[compute_pb2.ComputeRequest]) -> None:
        ledger = self.ledger
        for request in sent:
            match request.WhichOneof("message"):
                case "output":
                    outputs = self._plan.stages[request.output.stage].outputs
                    batch = request.output.batch
                    self._route(outputs[batch.output], batch)
                case "state_get":
                    rows = state_values(ledger, request.state_get)
                    self._tell_compute(
                        number, compute_pb2.ComputeResponse(state_values=rows)
                    )
                case "delta":
                    self._on_delta(request.delta)
                case "barrier_ack":
                    self._acked.add((number, request.barrier_ack.stage))
                    ledger.open.skipped += request.barrier_ack.records_skipped
                case "error":
                    stage = self._computes[number].stages[request.error.stage]
                    raise self._failure(stage.failure, request.error.error)

    def _on_delta(self, delta: compute_pb2.Delta) -> None:
        for part in delta.partitions:
            rows = batch_pb2.StateRows.FromString(part.rows)
            self.ledger.on_rows(delta.stage, rows)
            timers = batch_pb2.Timers.FromString(part.timers)
            self.ledger.on_timers(delta.stage, timers)

    # Outputs.

    def _number(self, home: Home, batches: list[OutputBatch]) -> None:
        """Give committed outputs the sequences that they keep."""
        waiting = self._undelivered.setdefault(home, deque())
        for batch in batches:
            first = self._sequences.get(home, 0) + 1
            self._sequences[home] = first + batch.count - 1
            waiting.append((first, batch))

    def _deliver(self) -> None:
        """Give the sinks what is committed; they make it durable."""
        for (sink, partition), waiting in self._undelivered.items():
            while waiting:
                first, batch = waiting.popleft()
                message = sink_pb2.SinkInput(
                    partition=partition,
                    generation=self._generation,
                    first_sequence=first,
                    count=batch.count,
                    records=batch.records,
                    epoch=self.ledger.epoch,
                    input=batch.input,
                )
                self._tell_sink(sink, sink_pb2.SinkResponse(input=message))

    def _tell_sink(self, name: str, message: sink_pb2.SinkResponse) -> None:
        machine = self._sinks[name]
        self._on_sink(machine.on_message(message, self._now_ms()))
        while machine.has_work(self._now_ms()):
            self._on_sink(machine.step(self._now_ms(), is_more_waiting=False))

    def _on_sink(self, sent: list[sink_pb2.SinkRequest]) -> None:
        for request in sent:
            match request.WhichOneof("message"):
                case "error":
                    raise self._failure(None, request.error.error)
                case "refused":
                    raise self._failure(None, request.refused.error)

    # Making.

    def _new_compute(self) -> ComputeMachine:
        return ComputeMachine(self._plan, sizes=SizeLimits(), cpu_clock=lambda: 0.0)

    def _new_source(self, name: str) -> SourceMachine:
        (source,) = (s for s in self._plan.sources if s.name == name)
        machine = SourceMachine(
            self._plan,
            source,
            sizes=SizeLimits(),
            uncommitted_bytes_max=CREDIT,
            linger_ms=0,
        )
        machine.attach(b"in-memory")
        return machine

    def _now_ms(self) -> int:
        return self.ledger.processing_time_us // 1000

    def _failure(
        self, failure: RecordFailedError | None, error: error_pb2.Error
    ) -> BettongError:
        """Return what a test is to see: the user's own exception is chained."""
        if failure is None:
            return BettongError(f"{error.message}: {error.detail}\n{error.stack}")
        cause = failure.cause
        raised = UserCodeError(
            f"{type(cause).__name__}: {cause}{_record_of(failure)}",
            step=failure.step,
            key=failure.key,
            stream=error.stream,
            position=error.position,
        )
        raised.__cause__ = cause
        return raised


def _least(marks: Iterable[Mark]) -> Mark:
    """Return the watermark of several inputs: the least of those not idle."""
    awake = [mark.watermark_us for mark in marks if not mark.is_idle]
    if not awake:
        return Mark(is_idle=True)
    known = [watermark_us for watermark_us in awake if watermark_us is not None]
    return Mark(min(known) if len(known) == len(awake) else None)


def _position(progress: Progress) -> source_pb2.StreamPosition:
    position = source_pb2.StreamPosition(stream=STREAM, ended=progress.has_ended)
    if progress.position is not None:
        position.position = progress.position
    if progress.watermark_us is not None:
        position.watermark_us = progress.watermark_us
    return position


def _record_of(failure: RecordFailedError) -> str:
    key = "" if failure.key is None else f" of key {failure.key!r}"
    try:
        value = repr(failure.value)
    except Exception as error:  # the user's own __repr__ may raise anything
        value = f"<{type(failure.value).__name__}; its repr raised {error!r}>"
    return f" (record {value}{key})"
