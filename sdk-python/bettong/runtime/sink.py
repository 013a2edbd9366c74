"""The sink role: writes committed outputs, makes them durable, says how far.

Messages in, messages out; the target is reached through the connector contract
(`bettong.connector.Sink`) only, and the clock comes in as an argument.
"""

import contextlib
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from bettong.connector import Fence, Guarantee, Sink, SinkPosition, Unknown, Writer
from bettong.errors import (
    CodecError,
    ErrorCode,
    ProtocolError,
    RecordRefusedError,
    SinkError,
)
from bettong.plan import SinkPlan
from bettong.runtime import limits
from bettong.runtime.wire_errors import (
    connector_error,
    fatal_error,
    stack_of,
    to_wire,
)
from bettong_proto.plugin.v1 import batch_pb2, error_pb2, sink_pb2

_GUARANTEES = {
    Guarantee.AT_LEAST_ONCE: sink_pb2.GUARANTEE_AT_LEAST_ONCE,
    Guarantee.IDEMPOTENT: sink_pb2.GUARANTEE_IDEMPOTENT,
    Guarantee.EXACTLY_ONCE: sink_pb2.GUARANTEE_EXACTLY_ONCE,
}


class PartitionState(Enum):
    """What a sink partition is doing."""

    # To be opened when its time has come; inputs are dropped, they come again.
    OPENING = "opening"
    OPEN = "open"
    # The target refused an output; nothing is written until Skip.
    REFUSED = "refused"
    CLOSED = "closed"


@dataclass(slots=True)
class _Partition:
    """One sink partition.

    next_sequence: of the output to write next; 0: the first that comes decides.
    durable: the last sequence that was reported.
    may_overrun: inputs beyond `next_sequence` were on their way; they come again.
    """

    number: int
    fence: Fence
    window_bytes: int
    state: PartitionState = PartitionState.OPENING
    writer: Writer | None = None
    next_sequence: int = 0
    durable: int = 0
    may_overrun: bool = False
    refused: int = 0
    unflushed_bytes: int = 0
    unflushed_since_ms: int | None = None
    retry_at_ms: int = 0
    retry_delay_ms: int = 0
    inputs: deque[sink_pb2.SinkInput | sink_pb2.Skip] = field(default_factory=deque)


Decode = Callable[[list[bytes]], list[Any]]


class SinkMachine:
    """One sink of a plan, all its partitions.

    Invariants: outputs are written in sequence, without gap or overlap. What is
    reported was flushed. A generation is never left for a lower one.
    """

    def __init__(self, sink: SinkPlan) -> None:
        self._plan = sink
        self._connector: Sink = sink.connector
        self._partitions: dict[int, _Partition] = {}

    @property
    def name(self) -> str:
        """Name of the sink."""
        return self._plan.name

    def attach(self, session_id: bytes) -> sink_pb2.SinkRequest:
        """Return the first message of a data stream."""
        return sink_pb2.SinkRequest(
            attach=sink_pb2.SinkAttach(
                session_id=session_id,
                sink=self._plan.name,
                guarantee=_GUARANTEES[self._connector.guarantee],
            )
        )

    def on_message(
        self, message: sink_pb2.SinkResponse, now_ms: int
    ) -> list[sink_pb2.SinkRequest]:
        """Take a message of the engine; return what is to be sent at once.

        Raises:
            ProtocolError: the engine broke the contract; the session ends.
        """
        match message.WhichOneof("message"):
            case "open":
                return self._on_open(message.open, now_ms)
            case "close":
                return self._on_close(message.close)
            case "input":
                self._enqueue(message.input)
            case "skip":
                self._enqueue(message.skip)
            case None:
                raise ProtocolError(
                    "the engine sent a message of a kind that this SDK does not know;"
                    " it may only do so for capabilities in common"
                )
        return []

    def step(self, now_ms: int, *, is_more_waiting: bool) -> list[sink_pb2.SinkRequest]:
        """Do one unit of work: open, write an input, or flush.

        Args:
            now_ms: any monotonic clock.
            is_more_waiting: messages of the engine have arrived and were not given
                to `on_message`: flushing can wait for them, up to the limits.

        Returns:
            What to send, perhaps nothing although work was done.
        """
        for partition in self._partitions.values():
            if partition.state is PartitionState.OPENING:
                if now_ms >= partition.retry_at_ms:
                    return self._open(partition, now_ms)
            elif partition.inputs:
                return self._guard(partition, now_ms, self._take_next)
        for partition in self._partitions.values():
            if self._is_flush_due(partition, now_ms, is_more_waiting=is_more_waiting):
                return self._guard(partition, now_ms, self._flush)
        return []

    def has_work(self, now_ms: int) -> bool:
        """Return whether `step` would do something if no message is waiting."""
        return any(
            partition.inputs
            or partition.unflushed_since_ms is not None
            or (
                partition.state is PartitionState.OPENING
                and now_ms >= partition.retry_at_ms
            )
            for partition in self._partitions.values()
        )

    def wake_at_ms(self) -> int | None:
        """Return when a partition is to be opened again, or None."""
        times = [
            partition.retry_at_ms
            for partition in self._partitions.values()
            if partition.state is PartitionState.OPENING
        ]
        return min(times, default=None)

    def close(self) -> None:
        """Make durable what can be, and close all writers."""
        for partition in self._partitions.values():
            if (
                partition.writer is not None
                and partition.unflushed_since_ms is not None
            ):
                # What fails here was not reported, and comes again.
                with contextlib.suppress(Exception):
                    partition.writer.flush()
            self._shut(partition)

    def stop_writing(self) -> None:
        """Close all writers at once: the session is gone, and others may write."""
        for partition in self._partitions.values():
            self._shut(partition)

    def _on_open(
        self, message: sink_pb2.OpenSink, now_ms: int
    ) -> list[sink_pb2.SinkRequest]:
        known = self._partitions.get(message.partition)
        if known is not None:
            if message.generation <= known.fence.generation:
                is_closed = known.state is PartitionState.CLOSED
                if message.generation < known.fence.generation or not is_closed:
                    return []
            self._shut(known)
        self._partitions[message.partition] = _Partition(
            number=message.partition,
            fence=Fence(message.history, message.generation),
            window_bytes=message.window_bytes,
            retry_at_ms=now_ms,
        )
        return []

    def _on_close(self, message: sink_pb2.CloseSink) -> list[sink_pb2.SinkRequest]:
        partition = self._partitions.get(message.partition)
        if partition is not None and partition.fence.generation <= message.generation:
            self._shut(partition)
        return [
            sink_pb2.SinkRequest(
                closed=sink_pb2.SinkClosed(
                    partition=message.partition, generation=message.generation
                )
            )
        ]

    def _enqueue(self, message: sink_pb2.SinkInput | sink_pb2.Skip) -> None:
        partition = self._partitions.get(message.partition)
        if partition is None or message.generation < partition.fence.generation:
            return
        if message.generation > partition.fence.generation:
            raise ProtocolError(
                f"sink {self._plan.name!r} partition {message.partition}: a message of"
                f" generation {message.generation} before its OpenSink"
            )
        if partition.state in (PartitionState.OPEN, PartitionState.REFUSED):
            partition.inputs.append(message)

    def _open(self, partition: _Partition, now_ms: int) -> list[sink_pb2.SinkRequest]:
        try:
            writer, position = self._connector.open(partition.number, partition.fence)
        except Exception as error:  # reported by class; a bug closes the partition
            return [self._on_trouble(partition, error, now_ms)]
        partition.writer = writer
        partition.state = PartitionState.OPEN
        partition.retry_delay_ms = 0
        opened = sink_pb2.SinkOpened(
            partition=partition.number, generation=partition.fence.generation
        )
        if isinstance(position, Unknown):
            opened.unknown = True
            # After trouble the engine goes on behind what was last reported.
            if partition.next_sequence:
                partition.next_sequence = partition.durable + 1
        else:
            self._set_position(partition, position, opened)
        return [sink_pb2.SinkRequest(opened=opened)]

    def _set_position(
        self,
        partition: _Partition,
        position: SinkPosition,
        opened: sink_pb2.SinkOpened,
    ) -> None:
        opened.durable.history = position.history
        opened.durable.sequence = position.sequence
        partition.durable = position.sequence
        partition.next_sequence = position.sequence + 1

    def _take_next(
        self, partition: _Partition, now_ms: int
    ) -> list[sink_pb2.SinkRequest]:
        message = partition.inputs.popleft()
        if isinstance(message, sink_pb2.Skip):
            return self._skip(partition, message, now_ms)
        if partition.state is PartitionState.OPEN:
            return self._write(partition, message, now_ms)
        return []

    def _write(
        self, partition: _Partition, message: sink_pb2.SinkInput, now_ms: int
    ) -> list[sink_pb2.SinkRequest]:
        if partition.next_sequence == 0:
            partition.next_sequence = message.first_sequence
            # The engine's own mark: after trouble it goes on from there.
            partition.durable = message.first_sequence - 1
        overlap = partition.next_sequence - message.first_sequence
        if overlap < 0:
            if partition.may_overrun:
                return []
            raise ProtocolError(
                f"sink {self._plan.name!r} partition {partition.number}: outputs from"
                f" {message.first_sequence} while {partition.next_sequence} is next"
            )
        partition.may_overrun = False
        if overlap >= message.count:
            return []
        column = list(batch_pb2.Records.FromString(message.records).values)
        if len(column) != message.count:
            raise ProtocolError(
                f"sink {self._plan.name!r}: a batch of {message.count} outputs has"
                f" {len(column)} values"
            )
        return self._write_records(partition, message, column[overlap:], now_ms)

    def _write_records(
        self,
        partition: _Partition,
        message: sink_pb2.SinkInput,
        column: list[bytes],
        now_ms: int,
    ) -> list[sink_pb2.SinkRequest]:
        assert partition.writer is not None, "an open partition has a writer"
        first = partition.next_sequence
        refusal: RecordRefusedError | None = None
        try:
            records, refusal = self._decode(column, first, message.input)
            if records:
                partition.writer.write(first, records)
                partition.next_sequence = first + len(records)
        except RecordRefusedError as error:
            if not first <= error.sequence < first + len(column):
                raise SinkError(
                    f"the writer refused output {error.sequence}, but got {first} to"
                    f" {first + len(column) - 1}",
                    is_retryable=False,
                ) from error
            refusal = error
            partition.next_sequence = error.sequence
        if partition.next_sequence > first:
            partition.unflushed_bytes += len(message.records)
            if partition.unflushed_since_ms is None:
                partition.unflushed_since_ms = now_ms
        return [] if refusal is None else self._refuse(partition, refusal, now_ms)

    def _decode(
        self, column: list[bytes], first: int, input_number: int
    ) -> tuple[list[Any], RecordRefusedError | None]:
        """Decode outputs, up to the first that cannot be."""
        if self._connector.takes_bytes:
            return column, None
        if input_number >= len(self._plan.inputs):
            # A dead letter of the engine comes on input 0, which every sink has.
            raise ProtocolError(f"sink {self._plan.name!r} has no input {input_number}")
        codec = self._plan.inputs[input_number]
        try:
            return codec.decode_many(column), None
        except CodecError as error:
            index = error.index or 0
            refusal = RecordRefusedError(first + index, str(error))
            return codec.decode_many(column[:index]), refusal

    def _refuse(
        self, partition: _Partition, refusal: RecordRefusedError, now_ms: int
    ) -> list[sink_pb2.SinkRequest]:
        """Make durable what came before the refused output, then tell of it."""
        sent = self._flush(partition, now_ms)
        partition.state = PartitionState.REFUSED
        partition.refused = refusal.sequence
        partition.may_overrun = True
        error = error_pb2.Error(
            error_class=error_pb2.ERROR_CLASS_RECORD,
            code=to_wire(ErrorCode.USER_CODE),
            message=(
                f"sink {self._plan.name!r} refuses output {refusal.sequence} for good"
            ),
            detail=refusal.reason,
            partition=partition.number,
            sequence=refusal.sequence,
        )
        refused = sink_pb2.Refused(
            partition=partition.number,
            generation=partition.fence.generation,
            sequence=refusal.sequence,
            error=error,
        )
        sent.append(sink_pb2.SinkRequest(refused=refused))
        return sent

    def _skip(
        self, partition: _Partition, message: sink_pb2.Skip, now_ms: int
    ) -> list[sink_pb2.SinkRequest]:
        """Move past a refused output, if it is the next one."""
        if message.sequence < partition.next_sequence:
            return []
        if partition.next_sequence == 0:
            partition.next_sequence = message.sequence
        if message.sequence > partition.next_sequence:
            if partition.may_overrun:
                return []
            raise ProtocolError(
                f"sink {self._plan.name!r} partition {partition.number}: Skip of"
                f" {message.sequence} while {partition.next_sequence} is next"
            )
        assert partition.writer is not None, "an open partition has a writer"
        partition.writer.skip(message.sequence)
        partition.next_sequence = message.sequence + 1
        partition.state = PartitionState.OPEN
        if partition.unflushed_since_ms is None:
            partition.unflushed_since_ms = now_ms
        return []

    def _is_flush_due(
        self, partition: _Partition, now_ms: int, *, is_more_waiting: bool
    ) -> bool:
        since_ms = partition.unflushed_since_ms
        if since_ms is None or partition.writer is None:
            return False
        if not is_more_waiting:
            return True
        bytes_max = limits.SINK_FLUSH_BYTES
        if partition.window_bytes:
            bytes_max = min(bytes_max, partition.window_bytes // 2)
        return (
            partition.unflushed_bytes >= bytes_max
            or now_ms - since_ms >= limits.SINK_FLUSH_INTERVAL_MS
        )

    def _flush(self, partition: _Partition, _now_ms: int) -> list[sink_pb2.SinkRequest]:
        assert partition.writer is not None, "an open partition has a writer"
        if partition.unflushed_since_ms is None:
            return []
        durable = partition.writer.flush()
        partition.unflushed_bytes = 0
        partition.unflushed_since_ms = None
        if durable >= partition.next_sequence:
            raise SinkError(
                f"the writer says that {durable} is durable, but only"
                f" {partition.next_sequence - 1} was written",
                is_retryable=False,
            )
        if durable <= partition.durable:
            return []
        partition.durable = durable
        progress = sink_pb2.Progress(
            partition=partition.number,
            generation=partition.fence.generation,
            sequence=durable,
        )
        return [sink_pb2.SinkRequest(progress=progress)]

    def _guard(
        self,
        partition: _Partition,
        now_ms: int,
        work: Callable[[_Partition, int], list[sink_pb2.SinkRequest]],
    ) -> list[sink_pb2.SinkRequest]:
        try:
            return work(partition, now_ms)
        except ProtocolError:
            raise
        except Exception as error:  # reported by class; a bug closes the partition
            return [self._on_trouble(partition, error, now_ms)]

    def _on_trouble(
        self, partition: _Partition, error: Exception, now_ms: int
    ) -> sink_pb2.SinkRequest:
        """Close the writer; open again later, or wait for the next OpenSink."""
        self._shut(partition)
        partition.may_overrun = True
        where = f"sink {self._plan.name!r} partition {partition.number}"
        if isinstance(error, SinkError):
            reported = connector_error(error, where=where)
            if error.is_retryable:
                partition.state = PartitionState.OPENING
                partition.retry_delay_ms = min(
                    max(limits.RETRY_DELAY_MS_MIN, 2 * partition.retry_delay_ms),
                    limits.RETRY_DELAY_MS_MAX,
                )
                partition.retry_at_ms = now_ms + partition.retry_delay_ms
        else:
            reported = fatal_error(error, where=where)
            reported.stack = stack_of(error)
        reported.partition = partition.number
        return sink_pb2.SinkRequest(
            error=sink_pb2.SinkError(
                partition=partition.number,
                generation=partition.fence.generation,
                error=reported,
            )
        )

    def _shut(self, partition: _Partition) -> None:
        """Close the writer and drop the inputs; nothing is written any more."""
        partition.state = PartitionState.CLOSED
        partition.inputs.clear()
        partition.unflushed_bytes = 0
        partition.unflushed_since_ms = None
        writer, partition.writer = partition.writer, None
        if writer is not None:
            # What it held back was not reported, and comes again.
            with contextlib.suppress(Exception):
                writer.close()
