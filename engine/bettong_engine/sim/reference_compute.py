"""A computation written on messages alone: without cache, a key at a time."""

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from zlib import crc32

from bettong_engine.core.timers import EVENT_TIME
from bettong_engine.sim.options import SimOptions
from bettong_engine.sim.port import serialized
from bettong_engine.sim.workload import (
    Outcome,
    StageShape,
    count,
    detect,
    fire,
    group_of,
    key_of,
    shape_of,
)
from bettong_proto.plugin.v1 import batch_pb2, compute_pb2

Channel = tuple[int, int]
TimerName = tuple[bytes, int, str]
Item = compute_pb2.StageInput | compute_pb2.TimersDue | compute_pb2.Barrier


@dataclass(slots=True)
class _Stage:
    number: int
    shape: StageShape
    routes: dict[int, batch_pb2.Route] = field(default_factory=dict)
    queue: deque[Item] = field(default_factory=deque)
    # Rows that this epoch wrote or asked for, and which it wrote.
    rows: dict[bytes, bytes | None] = field(default_factory=dict)
    written: dict[bytes, None] = field(default_factory=dict)
    due: dict[TimerName, int] = field(default_factory=dict)
    # Timers that this epoch set (due) or deleted and fired (None).
    timers: dict[TimerName, int | None] = field(default_factory=dict)
    granted: dict[Channel, tuple[int, int]] = field(default_factory=dict)
    sent: dict[Channel, tuple[int, int]] = field(default_factory=dict)
    kept: dict[Channel, deque[batch_pb2.Batch]] = field(default_factory=dict)
    asked: int | None = None
    # Credit of an input that is done but for kept outputs.
    owed: compute_pb2.StageInput | None = None
    barrier: compute_pb2.Barrier | None = None
    processing_time_us: int = 0
    is_assigned: bool = False


class ReferenceCompute:
    """All stages. What a stage asked for is forgotten at its barrier."""

    role = "compute"

    def __init__(self, options: SimOptions) -> None:
        self._options = options
        self._shape = shape_of(options)
        self._generation = 0
        self._initial = (0, 0)
        self._stages: list[_Stage] = []
        self._requests = 0
        self._consumed: dict[int, tuple[int, int]] = {}

    def attach(self) -> list[bytes]:
        """Begin a session, with nothing in mind."""
        self._generation = 0
        self._stages = [_Stage(n, s) for n, s in enumerate(self._shape.stages)]
        names = [stage.name for stage in self._shape.stages]
        attach = compute_pb2.ComputeAttach(stages=names)
        return serialized([compute_pb2.ComputeRequest(attach=attach)])

    def on_session_lost(self) -> None:
        """Wait for the next session."""

    def on_crash(self) -> None:
        """Leave nothing."""

    def wake_at_ms(self) -> int | None:
        """Wait for nothing but messages."""
        return None

    def on_message(self, data: bytes, now_ms: int) -> list[bytes]:
        """Take a message of the engine."""
        message = compute_pb2.ComputeResponse.FromString(data)
        sent: list[compute_pb2.ComputeRequest] = []
        kind = message.WhichOneof("message")
        if kind == "reset":
            sent = self._on_reset(message.reset)
        elif kind == "state_values":
            self._on_values(message.state_values)
        elif kind is not None:
            item: Item = getattr(message, kind)
            assert item.generation <= self._generation, "a message before its reset"
            if item.generation == self._generation:
                self._stages[item.stage].queue.append(item)
        for credit in message.credits:
            sent += self._on_credit(self._stages[credit.stage], credit.credit)
        return serialized(sent)

    def step(self, now_ms: int, *, is_more_waiting: bool) -> list[bytes] | None:
        """Do one thing of the latest stage that can."""
        for stage in reversed(self._stages):
            if stage.asked is not None or stage.kept:
                continue
            if stage.barrier is not None:
                return serialized(self._end_barrier(stage, stage.barrier))
            if stage.queue:
                return serialized(self._take(stage))
        return None

    def _on_reset(
        self, reset: compute_pb2.ComputeReset
    ) -> list[compute_pb2.ComputeRequest]:
        self._generation = reset.generation
        self._initial = (reset.credit_records, reset.credit_bytes)
        self._consumed.clear()
        self._stages = [_Stage(n, s) for n, s in enumerate(self._shape.stages)]
        for assigned in reset.stages:
            stage = self._stages[assigned.stage]
            stage.is_assigned = True
            stage.routes = {route.output: route for route in assigned.routes}
            stage.processing_time_us = reset.processing_time_us
        done = compute_pb2.ComputeResetDone(generation=reset.generation)
        return [compute_pb2.ComputeRequest(reset_done=done)]

    def _on_values(self, values: compute_pb2.StateValues) -> None:
        for stage in self._stages:
            if stage.asked == values.request and values.generation == self._generation:
                absent = set(values.rows.absent)
                for i, key in enumerate(values.rows.keys):
                    row = None if i in absent else values.rows.values[i]
                    stage.rows.setdefault(key, row)
                if not values.more:
                    stage.asked = None

    def _take(self, stage: _Stage) -> list[compute_pb2.ComputeRequest]:
        item = stage.queue[0]
        if isinstance(item, compute_pb2.StageInput):
            records = batch_pb2.Records.FromString(item.records)
            if stage.shape.kind != "head":
                asking = self._ask(stage, list(records.keys))
                if asking:
                    return asking
            stage.queue.popleft()
            stage.owed = item
            times = list(records.event_time_us) if stage.shape.kind == "head" else []
            sent = self._emit(stage, list(self._run(stage, records)), times)
            return self._with_consumed(stage, sent)
        if isinstance(item, compute_pb2.TimersDue):
            for i, key in enumerate(item.timers.keys):
                name = (key, int(item.timers.kinds[i]), item.timers.names[i])
                stage.due[name] = item.timers.due_us[i]
            stage.queue.popleft()
            return []
        stage.queue.popleft()
        stage.barrier = item
        stage.processing_time_us = item.processing_time_us
        return self._emit(stage, list(self._fire(stage, item)), [])

    def _ask(
        self, stage: _Stage, keys: list[bytes]
    ) -> list[compute_pb2.ComputeRequest]:
        missing = list(dict.fromkeys(k for k in keys if k not in stage.rows))
        if not missing:
            return []
        self._requests += 1
        stage.asked = self._requests
        get = compute_pb2.StateGet(
            generation=self._generation,
            request=self._requests,
            stage=stage.number,
            keys=missing,
        )
        return [compute_pb2.ComputeRequest(state_get=get)]

    def _run(self, stage: _Stage, records: batch_pb2.Records) -> Iterator[bytes]:
        times = records.event_time_us
        for i, value in enumerate(records.values):
            if stage.shape.kind == "head":
                yield value
                continue
            key = records.keys[i]
            time_us = times[i if len(times) > 1 else 0] if times else None
            outcome = self._call(stage, key, value, time_us)
            stage.rows[key] = outcome.state
            stage.written[key] = None
            for kind, name, due_us in outcome.timers:
                stage.timers[key, kind, name] = due_us
            yield from outcome.values

    def _call(
        self, stage: _Stage, key: bytes, value: bytes, time_us: int | None
    ) -> Outcome:
        state = stage.rows[key]
        if stage.shape.kind == "count":
            return count(key, state, value)
        return detect(
            self._options,
            stage.shape.path,
            state,
            value,
            time_us,
            stage.processing_time_us,
        )

    def _fire(self, stage: _Stage, barrier: compute_pb2.Barrier) -> Iterator[bytes]:
        timers: dict[TimerName, int | None] = {**stage.due, **stage.timers}
        has_mark = barrier.HasField("watermark_us")
        ready = []
        for (key, kind, name), due_us in timers.items():
            is_event = kind == EVENT_TIME
            until = barrier.watermark_us if is_event else barrier.processing_time_us
            if due_us is not None and due_us <= until and (has_mark or not is_event):
                ready.append((due_us, key, kind, name))
        for _, key, kind, name in sorted(ready):
            stage.timers[key, kind, name] = None
            yield fire(stage.shape.path, key, name)
        stage.due.clear()

    def _end_barrier(
        self, stage: _Stage, barrier: compute_pb2.Barrier
    ) -> list[compute_pb2.ComputeRequest]:
        parts: dict[int, tuple[list[bytes], list[TimerName]]] = {}
        for key in stage.written:
            place = crc32(key) % self._options.partitions
            parts.setdefault(place, ([], []))[0].append(key)
        for timer in stage.timers:
            place = crc32(timer[0]) % self._options.partitions
            parts.setdefault(place, ([], []))[1].append(timer)
        where = {
            "generation": self._generation,
            "epoch": barrier.epoch,
            "stage": stage.number,
        }
        sent = [
            compute_pb2.ComputeRequest(
                delta=compute_pb2.Delta(
                    **where, partitions=[self._part(stage, place, *parts[place])]
                )
            )
            for place in sorted(parts)
        ]
        ack = compute_pb2.BarrierAck(**where)
        sent.append(compute_pb2.ComputeRequest(barrier_ack=ack))
        stage.rows.clear()
        stage.written.clear()
        stage.timers.clear()
        stage.barrier = None
        return sent

    def _part(
        self, stage: _Stage, place: int, keys: list[bytes], timers: list[TimerName]
    ) -> compute_pb2.PartitionRows:
        part = compute_pb2.PartitionRows(partition=place)
        if keys:
            part.rows = batch_pb2.StateRows(
                keys=keys,
                values=[stage.rows[k] or b"" for k in keys],
                absent=[i for i, k in enumerate(keys) if stage.rows[k] is None],
            ).SerializeToString()
        if timers:
            due = [stage.timers[t] for t in timers]
            part.timers = batch_pb2.Timers(
                keys=[t[0] for t in timers],
                kinds=[batch_pb2.TimerKind.ValueType(t[1]) for t in timers],
                names=[t[2] for t in timers],
                due_us=[d or 0 for d in due],
                deleted=[i for i, d in enumerate(due) if d is None],
            ).SerializeToString()
        return part

    # Outputs.

    def _emit(
        self, stage: _Stage, values: list[bytes], times: list[int]
    ) -> list[compute_pb2.ComputeRequest]:
        """Send or keep values on every edge, with their times if they have some."""
        sent: list[compute_pb2.ComputeRequest] = []
        if len(times) == 1:
            times = times * len(values)
        for number, edge in enumerate(stage.shape.edges):
            make = group_of if edge.key == "group" else key_of
            groups: dict[int, list[int]] = {}
            for index, value in enumerate(values):
                target = self._target(stage, number, make(value))
                groups.setdefault(target, []).append(index)
            for target in sorted(groups):
                some = groups[target]
                size = self._options.batch_records
                for begin in range(0, len(some), size):
                    part = some[begin : begin + size]
                    columns = batch_pb2.Records(
                        keys=[make(values[i]) for i in part],
                        values=[values[i] for i in part],
                        event_time_us=[times[i] for i in part] if times else [],
                    )
                    batch = batch_pb2.Batch(
                        output=number,
                        target=target,
                        count=len(part),
                        records=columns.SerializeToString(),
                    )
                    sent += self._send_or_keep(stage, batch)
        return sent

    def _target(self, stage: _Stage, output: int, key: bytes) -> int:
        route = stage.routes[output]
        if route.sink_partitions:
            return crc32(key) % route.sink_partitions
        return route.targets[crc32(key) % len(route.targets)]

    def _send_or_keep(
        self, stage: _Stage, batch: batch_pb2.Batch
    ) -> list[compute_pb2.ComputeRequest]:
        channel = (batch.output, batch.target)
        if channel in stage.kept or not self._may_send(stage, channel):
            stage.kept.setdefault(channel, deque()).append(batch)
            return []
        return [self._spend(stage, batch)]

    def _may_send(self, stage: _Stage, channel: Channel) -> bool:
        granted = stage.granted.get(channel, self._initial)
        sent = stage.sent.get(channel, (0, 0))
        return sent[0] < granted[0] and sent[1] < granted[1]

    def _spend(
        self, stage: _Stage, batch: batch_pb2.Batch
    ) -> compute_pb2.ComputeRequest:
        channel = (batch.output, batch.target)
        records, size = stage.sent.get(channel, (0, 0))
        stage.sent[channel] = (records + batch.count, size + len(batch.records))
        output = compute_pb2.StageOutput(
            generation=self._generation, stage=stage.number, batch=batch
        )
        return compute_pb2.ComputeRequest(output=output)

    def _on_credit(
        self, stage: _Stage, credit: batch_pb2.Credit
    ) -> list[compute_pb2.ComputeRequest]:
        channel = (credit.output, credit.target)
        records, size = stage.granted.get(channel, self._initial)
        stage.granted[channel] = (max(records, credit.records), max(size, credit.bytes))
        sent: list[compute_pb2.ComputeRequest] = []
        kept = stage.kept.get(channel)
        while kept and self._may_send(stage, channel):
            sent.append(self._spend(stage, kept.popleft()))
        if kept is not None and not kept:
            del stage.kept[channel]
        return self._with_consumed(stage, sent)

    def _with_consumed(
        self, stage: _Stage, sent: list[compute_pb2.ComputeRequest]
    ) -> list[compute_pb2.ComputeRequest]:
        done = stage.owed
        if done is None or stage.kept:
            return sent
        stage.owed = None
        records, size = self._consumed.get(done.channel, (0, 0))
        total = (records + done.count, size + len(done.records))
        self._consumed[done.channel] = total
        consumed = batch_pb2.Consumed(
            channel=done.channel, records=total[0], bytes=total[1]
        )
        if not sent:
            sent = [compute_pb2.ComputeRequest()]
        sent[-1].consumed.append(consumed)
        return sent
