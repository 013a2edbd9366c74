"""A sink written on messages alone."""

from collections import deque
from dataclasses import dataclass, field

from bettong_engine.sim.outside import (
    Outside,
    TargetError,
    TargetFencedError,
)
from bettong_engine.sim.port import serialized
from bettong_proto.plugin.v1 import batch_pb2, error_pb2, sink_pb2

RETRY_MS = 100


@dataclass(slots=True)
class _Partition:
    number: int
    generation: int
    history: bytes
    is_open: bool = False
    is_closed: bool = False
    is_refused: bool = False
    retry_at_ms: int = 0
    # 0: the first input decides.
    next_sequence: int = 0
    durable: int = 0
    pending: list[tuple[int, bytes]] = field(default_factory=list)
    has_unflushed: bool = False
    inputs: deque[sink_pb2.SinkInput | sink_pb2.Skip] = field(default_factory=deque)


class ReferenceSink:
    """One sink, all its partitions."""

    role = "sink"

    def __init__(self, name: str, outside: Outside) -> None:
        self._name = name
        self._outside = outside
        self._partitions: dict[int, _Partition] = {}

    def attach(self) -> list[bytes]:
        """Begin a session."""
        self._partitions = {}
        attach = sink_pb2.SinkAttach(sink=self._name)
        return serialized([sink_pb2.SinkRequest(attach=attach)])

    def on_session_lost(self) -> None:
        """Write nothing any more."""
        self._partitions = {}

    def on_crash(self) -> None:
        """Leave what was flushed."""

    def wake_at_ms(self) -> int | None:
        """Return when to open again."""
        times = [
            p.retry_at_ms
            for p in self._partitions.values()
            if not p.is_open and not p.is_closed
        ]
        return min(times, default=None)

    def on_message(self, data: bytes, now_ms: int) -> list[bytes]:
        """Take a message of the engine."""
        message = sink_pb2.SinkResponse.FromString(data)
        kind = message.WhichOneof("message")
        assert kind is not None, "an empty message"
        body = getattr(message, kind)
        known = self._partitions.get(body.partition)
        if kind == "open":
            if known is None or body.generation >= known.generation:
                self._partitions[body.partition] = _Partition(
                    body.partition, body.generation, body.history
                )
        elif kind == "close":
            if known is not None and known.generation <= body.generation:
                known.is_closed = True
                known.inputs.clear()
                known.has_unflushed = False
            closed = sink_pb2.SinkClosed(
                partition=body.partition, generation=body.generation
            )
            return serialized([sink_pb2.SinkRequest(closed=closed)])
        elif known is not None and known.is_open and not known.is_closed:
            is_current = body.generation == known.generation
            known.inputs.extend([body] if is_current else [])
        return []

    def step(self, now_ms: int, *, is_more_waiting: bool) -> list[bytes] | None:
        """Open, write an input, or flush."""
        for partition in self._partitions.values():
            if partition.is_closed:
                continue
            sent = None
            try:
                if not partition.is_open and now_ms >= partition.retry_at_ms:
                    sent = [self._open(partition)]
                elif partition.inputs:
                    sent = self._take(partition, partition.inputs.popleft())
                elif partition.has_unflushed and not is_more_waiting:
                    sent = self._flush(partition)
            except (TargetError, TargetFencedError) as error:
                sent = [self._on_trouble(partition, error, now_ms)]
            if sent is not None:
                return serialized(sent)
        return None

    def _open(self, partition: _Partition) -> sink_pb2.SinkRequest:
        found = self._outside.open(self._name, partition.number, partition.generation)
        opened = sink_pb2.SinkOpened(
            partition=partition.number, generation=partition.generation
        )
        if found is None:
            opened.unknown = True
            # After trouble what was on its way comes again, from the last report.
            if partition.next_sequence:
                partition.next_sequence = partition.durable + 1
        else:
            opened.durable.history, opened.durable.sequence = found
            partition.durable = found[1]
            partition.next_sequence = found[1] + 1
        partition.is_open = True
        partition.is_refused = False
        return sink_pb2.SinkRequest(opened=opened)

    def _take(
        self, partition: _Partition, item: sink_pb2.SinkInput | sink_pb2.Skip
    ) -> list[sink_pb2.SinkRequest]:
        if isinstance(item, sink_pb2.Skip):
            if partition.next_sequence in (0, item.sequence):
                partition.next_sequence = item.sequence + 1
                partition.is_refused = False
                partition.has_unflushed = True
            return []
        if partition.is_refused:
            return []
        if partition.next_sequence == 0:
            partition.next_sequence = item.first_sequence
            partition.durable = item.first_sequence - 1
        values = batch_pb2.Records.FromString(item.records).values
        overlap = partition.next_sequence - item.first_sequence
        if overlap < 0:
            return []
        for value in values[overlap:]:
            if self._outside.refuses(value) and self._name != "dead":
                return self._refuse(partition)
            partition.pending.append((partition.next_sequence, value))
            partition.next_sequence += 1
            partition.has_unflushed = True
        return []

    def _refuse(self, partition: _Partition) -> list[sink_pb2.SinkRequest]:
        sent = self._flush(partition)
        partition.is_refused = True
        error = error_pb2.Error(
            error_class=error_pb2.ERROR_CLASS_RECORD,
            code=error_pb2.ERROR_CODE_USER_CODE,
            message="refused",
        )
        refused = sink_pb2.Refused(
            partition=partition.number,
            generation=partition.generation,
            sequence=partition.next_sequence,
            error=error,
        )
        return [*sent, sink_pb2.SinkRequest(refused=refused)]

    def _flush(self, partition: _Partition) -> list[sink_pb2.SinkRequest]:
        sequence = partition.next_sequence - 1
        pending, partition.pending = partition.pending, []
        is_needed, partition.has_unflushed = partition.has_unflushed, False
        if not is_needed:
            return []
        self._outside.write(
            self._name,
            partition.number,
            partition.generation,
            partition.history,
            pending,
            sequence,
        )
        if sequence <= partition.durable:
            return []
        partition.durable = sequence
        progress = sink_pb2.Progress(
            partition=partition.number,
            generation=partition.generation,
            sequence=sequence,
        )
        return [sink_pb2.SinkRequest(progress=progress)]

    def _on_trouble(
        self, partition: _Partition, error: Exception, now_ms: int
    ) -> sink_pb2.SinkRequest:
        partition.is_open = False
        partition.inputs.clear()
        partition.pending.clear()
        partition.has_unflushed = False
        wire = error_pb2.Error(
            error_class=error_pb2.ERROR_CLASS_RETRYABLE,
            code=error_pb2.ERROR_CODE_SINK_UNAVAILABLE,
            message=str(error),
        )
        if isinstance(error, TargetFencedError):
            partition.is_closed = True
            wire.error_class = error_pb2.ERROR_CLASS_FENCED
            wire.code = error_pb2.ERROR_CODE_FENCED
        partition.retry_at_ms = now_ms + RETRY_MS
        trouble = sink_pb2.SinkError(
            partition=partition.number, generation=partition.generation, error=wire
        )
        return sink_pb2.SinkRequest(error=trouble)
