"""Runs one stage: its input in order, its barriers, its outputs as credit allows.

What it does next depends on nothing but the messages it got, in their order.
"""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from bettong.dead_letter import build_dead_letter
from bettong.errors import BettongError, CodecError, ErrorCode, ProtocolError
from bettong.plan import FailurePolicy, Plan, StagePlan
from bettong.program.columns import Columns, SizeLimits, too_large
from bettong.program.failure import RecordFailedError, SkippedRecord
from bettong.program.stage import Keys, StageProgram, Work
from bettong.runtime import limits
from bettong.runtime.batches import (
    OutputRoute,
    Router,
    make_batches,
    spread_times,
)
from bettong.runtime.cache import StageCache, StateCodecError
from bettong.runtime.credit import Channel, CreditLedger
from bettong.runtime.delta import delta_frames
from bettong.runtime.timers import Due, StageTimers, TimerName
from bettong.runtime.wire_errors import fatal_error, record_error
from bettong_proto.plugin.v1 import batch_pb2, compute_pb2

QueueItem = compute_pb2.StageInput | compute_pb2.TimersDue | compute_pb2.Barrier
# CPU time of this thread in seconds, as `time.thread_time`.
CpuClock = Callable[[], float]

# Of a stage without a keyed step, whose loop does not look at them.
_NO_KEYS = Keys(get=lambda _: None, miss=lambda _: None, touch=lambda _: None, mark=0)


class StageState(Enum):
    """What a stage is waiting for, if anything."""

    READY = "ready"
    WAITING_FOR_STATE = "waiting for state"
    STOPPED = "stopped"


@dataclass(slots=True)
class _BarrierProgress:
    """A barrier under way. `is_firing`: timers may still be left to fire."""

    message: compute_pb2.Barrier
    is_firing: bool = True
    cpu_s: float = 0.0
    # Timers taken whose states had to be asked for.
    taken: list[Due] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Consumption:
    """An input batch that is done, outputs included."""

    channel: int
    records: int
    size: int


class StageRunner:
    """One stage of a plan.

    Invariants: at most one of a batch and a barrier is under way. While an output is
    kept back for lack of credit, nothing more is taken from the queue.
    """

    def __init__(
        self,
        plan: Plan,
        stage: StagePlan,
        *,
        sizes: SizeLimits,
        cpu_clock: CpuClock,
        next_request: Callable[[], int],
        batch_records: int = limits.BATCH_RECORDS_TARGET,
    ) -> None:
        self._stage = stage
        self._policy = plan.on_error
        self._sizes = sizes
        self._cpu_clock = cpu_clock
        self._next_request = next_request
        self._batch_records = batch_records
        self._dead_letters = plan.dead_letter_outputs.get(stage.name)
        sink_partitions = {sink.name: sink.connector.partitions for sink in plan.sinks}
        self._program = StageProgram(
            stage,
            policy=plan.on_error,
            sink_partitions=sink_partitions,
            limits=sizes,
            on_timers=lambda entry, changes: self._timers.on_changes(
                entry.key_bytes, changes
            ),
        )
        self._cache = self._new_cache(plan.partitions)
        self._router = Router(stage.outputs, sink_partitions)
        self._routes: list[OutputRoute] = []
        self._credit = CreditLedger()
        self._timers = StageTimers()
        self._queue: deque[QueueItem] = deque()
        self._kept: dict[Channel, deque[batch_pb2.Batch]] = {}
        self._work: Work | None = None
        self._consuming: Consumption | None = None
        self._barrier: _BarrierProgress | None = None
        self._asked: int | None = None
        self._state = StageState.STOPPED
        self._generation = 0
        self._open_epoch = 1
        self._skipped: list[SkippedRecord] = []
        self._skipped_in_epoch = 0
        # The record that stopped the stage last; for callers in this process.
        self.failure: RecordFailedError | None = None

    @property
    def cache(self) -> StageCache | None:
        """The keys of the keyed step, if there is one."""
        return self._cache

    @property
    def state(self) -> StageState:
        """What the stage waits for."""
        return self._state

    @property
    def name(self) -> str:
        """Name of the stage."""
        return self._stage.name

    def on_reset(
        self,
        *,
        generation: int,
        committed_epoch: int,
        assignment: compute_pb2.StageAssignment | None,
        credit: tuple[int, int],
        processing_time_us: int,
    ) -> None:
        """Drop what is under way and go back to a committed epoch.

        Args:
            generation: the new one.
            committed_epoch: the epoch that state goes back to.
            assignment: None: this stage gets no input.
            credit: first grant of every output channel, records and bytes.
            processing_time_us: of the committed epoch.
        """
        self._generation = generation
        self._open_epoch = committed_epoch + 1
        self._queue.clear()
        self._kept.clear()
        self._work = self._consuming = self._barrier = self._asked = None
        self._timers.reset()
        self._skipped.clear()
        self._skipped_in_epoch = 0
        self._credit.reset(records=credit[0], size=credit[1])
        partitions = assignment.partitions if assignment is not None else ()
        fresh = assignment.fresh_partitions if assignment is not None else ()
        if self._cache is not None:
            self._cache.reset(
                committed_epoch=committed_epoch, partitions=partitions, fresh=fresh
            )
        if assignment is None:
            self._state = StageState.STOPPED
            return
        self._state = StageState.READY
        self._router.on_reset(assignment.routes)
        self._routes = self._router.resolve()
        context = self._program.context
        context.processing_time_us = processing_time_us
        context.watermark_us = (
            assignment.watermark_us if assignment.HasField("watermark_us") else None
        )

    def enqueue(self, item: QueueItem) -> None:
        """Take a message that is in force after all before it."""
        if self._state is not StageState.STOPPED:
            self._queue.append(item)

    def is_runnable(self) -> bool:
        """Return whether `step` would do something."""
        if self._state is not StageState.READY or self._kept:
            return False
        return bool(self._work or self._barrier or self._queue)

    def on_credit(self, credit: batch_pb2.Credit) -> list[compute_pb2.ComputeRequest]:
        """Take a grant; send what it frees, in order."""
        self._credit.on_credit(credit)
        channel = (credit.output, credit.target)
        kept = self._kept.get(channel)
        sent = []
        while kept and self._credit.may_send(channel):
            sent.append(self._send(kept.popleft()))
        if kept is not None and not kept:
            del self._kept[channel]
        return sent

    def on_state_values(self, message: compute_pb2.StateValues) -> bool:
        """Take rows that were asked for; return whether the stage asked for them.

        Raises:
            RecordFailedError: a row cannot be read.
        """
        if message.request != self._asked or self._cache is None:
            return False
        rows = message.rows
        self._check_versions(rows)
        try:
            self._cache.install(rows.keys, rows.values, rows.absent)
        except BettongError as error:
            raise RecordFailedError(error, step=f"state of {self.name}") from error
        if not message.more:
            self._asked = None
            self._state = StageState.READY
        return True

    def take_consumed(self) -> Consumption | None:
        """Return the input that has become consumed since the last call."""
        if self._consuming is None or self._kept or self._work is not None:
            return None
        consumed, self._consuming = self._consuming, None
        return consumed

    def step(self) -> list[compute_pb2.ComputeRequest]:
        """Do one unit of work: a batch, a part of a barrier, or its end."""
        assert self.is_runnable(), f"stage {self.name!r} has nothing to do"
        try:
            if self._work is not None:
                return self._run_work(self._work)
            if self._barrier is not None:
                return self._run_barrier(self._barrier)
            return self._take(self._queue.popleft())
        except RecordFailedError as failure:
            return [self.stop(failure)]

    def stop(self, failure: RecordFailedError) -> compute_pb2.ComputeRequest:
        """Take no more input until the next reset; say why."""
        self._state = StageState.STOPPED
        self.failure = failure
        self._queue.clear()
        self._kept.clear()
        self._work = self._consuming = self._barrier = self._asked = None
        error = record_error(failure, owner=self.name)
        if failure.code is ErrorCode.STATE_SCHEMA:
            error = fatal_error(failure.cause, where=f"state of {self.name!r}")
        return compute_pb2.ComputeRequest(
            error=compute_pb2.ComputeError(
                generation=self._generation, stage=self._stage.index, error=error
            )
        )

    def _take(self, item: QueueItem) -> list[compute_pb2.ComputeRequest]:
        match item:
            case compute_pb2.StageInput():
                return self._begin_input(item)
            case compute_pb2.TimersDue():
                self._timers.on_due(item.timers)
                return []
            case compute_pb2.Barrier():
                return self._begin_barrier(item)

    def _begin_input(
        self, message: compute_pb2.StageInput
    ) -> list[compute_pb2.ComputeRequest]:
        records = batch_pb2.Records.FromString(message.records)
        self._check_columns(records, message)
        self._consuming = Consumption(
            message.channel, message.count, len(message.records)
        )
        keys = records.keys[:] or None
        times = spread_times(records.event_time_us, message.count)
        values: list[Any] | None = None
        if not records.value_is_key:
            column = records.values[:]
            values = self._decode_fast(keys, column, records.nulls, message.input)
            if values is None:
                good, values = self._decode_each(
                    keys, column, records.nulls, message.input
                )
                keys = None if keys is None else [keys[i] for i in good]
                times = None if times is None else [times[i] for i in good]
        self._work = self._program.begin(keys, values, times)
        return self._run_work(self._work)

    def _decode_fast(
        self,
        keys: list[bytes] | None,
        column: list[bytes],
        nulls: Sequence[int],
        input_number: int,
    ) -> list[Any] | None:
        """Return all values, or None if they have to be looked at one by one."""
        if nulls:
            return None
        try:
            return self._program.decode(keys, column, input_number)
        except RecordFailedError:
            if self._policy is FailurePolicy.FAIL:
                raise
            return None

    def _decode_each(
        self,
        keys: list[bytes] | None,
        column: list[bytes],
        nulls: Sequence[int],
        input_number: int,
    ) -> tuple[list[int], list[Any]]:
        """Return indices and values of the records that a policy leaves in."""
        null_indices = set(nulls)
        good: list[int] = []
        values: list[Any] = []
        for index, data in enumerate(column):
            key = keys[index : index + 1] if keys else None
            try:
                value = None
                if index not in null_indices:
                    (value,) = self._program.decode(key, [data], input_number)
            except RecordFailedError as failure:
                if self._policy is FailurePolicy.FAIL:
                    raise
                self._on_skip(
                    SkippedRecord(failure.step, failure.key, data, failure.cause)
                )
                continue
            good.append(index)
            values.append(value)
        return good, values

    def _run_work(self, work: Work) -> list[compute_pb2.ComputeRequest]:
        assert self._cache is not None or self._stage.keyed is None, "keyed: a cache"
        keys = self._cache.keys if self._cache is not None else _NO_KEYS
        if not self._program.run(work, keys, self._on_skip):
            assert work.keys is not None, "only keyed stages miss keys"
            return self._ask(work.keys[work.begin :])
        self._work = None
        return self._emit(self._program.finish(work))

    def _ask(self, keys: Sequence[bytes]) -> list[compute_pb2.ComputeRequest]:
        assert self._cache is not None, "only keyed stages have state"
        missing = self._cache.missing(keys)
        self._asked = self._next_request()
        self._state = StageState.WAITING_FOR_STATE
        return [
            compute_pb2.ComputeRequest(
                state_get=compute_pb2.StateGet(
                    generation=self._generation,
                    request=self._asked,
                    stage=self._stage.index,
                    keys=missing,
                )
            )
        ]

    def _begin_barrier(
        self, message: compute_pb2.Barrier
    ) -> list[compute_pb2.ComputeRequest]:
        if message.epoch != self._open_epoch:
            raise ProtocolError(
                f"barrier {message.epoch} at stage {self.name!r}, whose open epoch is"
                f" {self._open_epoch}"
            )
        context = self._program.context
        if message.HasField("watermark_us"):
            context.watermark_us = message.watermark_us
        context.processing_time_us = message.processing_time_us
        self._timers.begin_barrier(
            watermark_us=context.watermark_us,
            processing_time_us=message.processing_time_us,
        )
        self._barrier = _BarrierProgress(message)
        return self._run_barrier(self._barrier)

    def _run_barrier(
        self, barrier: _BarrierProgress
    ) -> list[compute_pb2.ComputeRequest]:
        begun = self._cpu_clock()
        sent: list[compute_pb2.ComputeRequest] = []
        if barrier.is_firing:
            sent = self._fire(barrier)
        # There is no step while an output is kept: those of the timers are all sent.
        if not barrier.is_firing:
            sent += self._end_barrier(barrier, begun)
        barrier.cpu_s += self._cpu_clock() - begun
        return sent

    def _fire(self, barrier: _BarrierProgress) -> list[compute_pb2.ComputeRequest]:
        taken = barrier.taken or self._timers.take()
        if not taken:
            barrier.is_firing = False
            return []
        keyed = self._stage.keyed
        if keyed is None or keyed.on_timer is None or self._cache is None:
            # Set by an older version of the step, which has no on_timer any more.
            for _ in self._timers.fire(taken):
                pass
            return []
        keys = [due.timer[0] for due in taken]
        if self._cache.missing(keys):
            barrier.taken = taken
            return self._ask(keys)
        barrier.taken = []
        columns = self._program.fire(
            self._timers.fire(taken), self._cache.keys, self._on_skip
        )
        return self._emit(columns)

    def _end_barrier(
        self, barrier: _BarrierProgress, begun: float
    ) -> list[compute_pb2.ComputeRequest]:
        epoch = barrier.message.epoch
        sent = [
            compute_pb2.ComputeRequest(
                delta=compute_pb2.Delta(
                    generation=self._generation,
                    epoch=epoch,
                    stage=self._stage.index,
                    partitions=frame,
                )
            )
            for frame in self._flush(epoch)
        ]
        cpu_s = barrier.cpu_s + self._cpu_clock() - begun
        sent.append(
            compute_pb2.ComputeRequest(
                barrier_ack=compute_pb2.BarrierAck(
                    generation=self._generation,
                    epoch=epoch,
                    stage=self._stage.index,
                    flush_cpu_us=int(cpu_s * 1_000_000),
                    records_skipped=self._skipped_in_epoch,
                    cached_keys=len(self._cache) if self._cache is not None else 0,
                )
            )
        )
        self._skipped_in_epoch = 0
        self._open_epoch = epoch + 1
        self._barrier = None
        return sent

    def _flush(self, epoch: int) -> Iterator[list[compute_pb2.PartitionRows]]:
        if self._cache is None:
            return iter(())
        timers = self._timers_by_partition(self._cache)
        try:
            rows = self._cache.flush(epoch)
        except StateCodecError as error:
            raise RecordFailedError(
                error, step=f"state of {self.name}", key=error.key
            ) from error
        for dirty in rows:
            self._check_state_sizes(dirty.keys, dirty.values)
        state = self._stage.keyed.state if self._stage.keyed is not None else None
        version = state.schema_version if state is not None else 0
        return delta_frames(rows, timers, schema_version=version)

    def _timers_by_partition(
        self, cache: StageCache
    ) -> list[tuple[int, dict[TimerName, int | None]]]:
        groups: dict[int, dict[TimerName, int | None]] = {}
        for timer, due_us in self._timers.drain().items():
            partition = cache.partition_of(timer[0])
            groups.setdefault(partition, {})[timer] = due_us
        return sorted(groups.items())

    def _emit(self, columns: list[Columns]) -> list[compute_pb2.ComputeRequest]:
        if self._skipped:
            self._add_dead_letters(columns)
        sent: list[compute_pb2.ComputeRequest] = []
        for route, column in zip(self._routes, columns, strict=True):
            batches = make_batches(column, route, self._sizes, self._batch_records)
            for batch in batches:
                channel = (batch.output, batch.target)
                kept = self._kept.get(channel)
                if kept is None and self._credit.may_send(channel):
                    sent.append(self._send(batch))
                elif kept is None:
                    self._kept[channel] = deque([batch])
                else:
                    kept.append(batch)
        return sent

    def _send(self, batch: batch_pb2.Batch) -> compute_pb2.ComputeRequest:
        self._credit.spend(batch)
        return compute_pb2.ComputeRequest(
            output=compute_pb2.StageOutput(
                generation=self._generation, stage=self._stage.index, batch=batch
            )
        )

    def _on_skip(self, record: SkippedRecord) -> None:
        if self._policy is FailurePolicy.DEAD_LETTER:
            self._skipped.append(record)
        else:
            self._skipped_in_epoch += 1

    def _add_dead_letters(self, columns: list[Columns]) -> None:
        assert self._dead_letters is not None, "the policy needs a dead-letter output"
        column = columns[self._dead_letters]
        add_dead_letters(
            column, self._skipped, self._stage.outputs[self._dead_letters].codec.encode
        )
        self._skipped.clear()

    def _check_columns(
        self, records: batch_pb2.Records, message: compute_pb2.StageInput
    ) -> None:
        count = message.count
        has_keys = len(records.keys) == count
        has_values = len(records.values) == count and not records.value_is_key
        is_whole = has_values or (
            records.value_is_key and not records.values and has_keys
        )
        if (
            not is_whole
            or len(records.keys) not in (0, count)
            or len(records.event_time_us) not in (0, 1, count)
            or (self._stage.key_codec is not None and not has_keys)
            or message.input >= len(self._stage.inputs)
        ):
            raise ProtocolError(
                f"a batch of {count} for input {message.input} of stage {self.name!r}"
                f" has {len(records.keys)} keys, {len(records.values)} values,"
                f" {len(records.event_time_us)} times"
            )

    def _check_versions(self, rows: batch_pb2.StateRows) -> None:
        state = self._stage.keyed.state if self._stage.keyed is not None else None
        known = state.schema_version if state is not None else 0
        highest = max(rows.schema_versions, default=0)
        if highest > known:
            error = SchemaError(
                f"a row of {self.name!r} has schema version {highest}, this program"
                f" knows {known}: start the newer program"
            )
            raise RecordFailedError(error, step=f"state of {self.name}") from error

    def _check_state_sizes(self, keys: list[bytes], values: list[bytes]) -> None:
        limit = self._sizes.state
        if values and max(map(len, values)) > limit:
            index = max(range(len(values)), key=lambda i: len(values[i]))
            error = too_large("state", len(values[index]), limit)
            raise RecordFailedError(
                error, step=f"state of {self.name}", key=keys[index]
            )

    def _new_cache(self, partitions: int) -> StageCache | None:
        keyed, key_codec = self._stage.keyed, self._stage.key_codec
        if keyed is None or key_codec is None:
            return None
        return StageCache(
            partitions=partitions,
            key_codec=key_codec,
            state=keyed.state,
            keeps_saved=self._policy is not FailurePolicy.FAIL,
        )


class SchemaError(CodecError):
    """A row of a schema version that this program does not know."""

    code = ErrorCode.STATE_SCHEMA


def add_dead_letters(
    column: Columns,
    skipped: Sequence[SkippedRecord],
    encode: Callable[[object], bytes],
    *,
    stream: str = "",
    position: bytes = b"",
) -> None:
    """Append the dead letters of skipped records to their output."""
    for record in skipped:
        letter = build_dead_letter(
            step=record.step,
            key=record.key,
            value=record.value,
            error=record.error,
            stream=stream,
            position=position,
        )
        if column.values is None:
            column.values = []
        column.values.append(encode(letter))
        if column.keys is not None:
            column.keys.append(record.key or b"")
