"""Plugins of the simulator that are made of the SDK's own machines.

The plan is written by hand, so that its stages are the workload's; programs, caches,
timers, credits and replay are the SDK's.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import bettong as bt
from bettong.codec import Codec
from bettong.keys import BytesKeys
from bettong.plan import (
    Chain,
    Edge,
    KeyedStep,
    Plan,
    SinkPlan,
    SourcePlan,
    StagePlan,
    StateSpec,
    Step,
    StepKind,
)
from bettong.plan import StageInput as PlanInput
from bettong.program.columns import DEFAULT_SIZES
from bettong.runtime.compute import ComputeMachine
from bettong.runtime.sink import SinkMachine
from bettong.runtime.source import SourceMachine
from bettong_engine.core.timers import EVENT_TIME
from bettong_engine.sim.options import SimOptions
from bettong_engine.sim.outside import (
    Outside,
    TargetError,
    TargetFencedError,
    UpstreamError,
)
from bettong_engine.sim.workload import (
    DEAD_LETTERS,
    EdgeShape,
    Record,
    count,
    detect,
    fire,
    group_of,
    key_of,
    shape_of,
    sink_names,
    source_names,
)
from bettong_proto.plugin.v1 import compute_pb2, sink_pb2, source_pb2

KEYS = BytesKeys()


class RecordCodec:
    """A source's records: the value's bytes."""

    name = "record"

    def encode(self, value: Any) -> bytes:
        return value.value if isinstance(value, Record) else bytes(value)

    def decode(self, data: bytes) -> Any:
        return bytes(data)

    def encode_many(self, values: Sequence[Any]) -> list[bytes]:
        return [self.encode(value) for value in values]

    def decode_many(self, column: Sequence[bytes]) -> list[Any]:
        return list(column)


class Box:
    """A state: the bytes that the workload keeps, None before the first."""

    def __init__(self, data: bytes | None = None) -> None:
        self.data = data


class BoxCodec:
    """A state as its bytes."""

    name = "raw_bytes"

    def encode(self, value: Any) -> bytes:
        assert value.data is not None
        return bytes(value.data)

    def decode(self, data: bytes) -> Any:
        return Box(data)

    def encode_many(self, values: Sequence[Any]) -> list[bytes]:
        return [self.encode(value) for value in values]

    def decode_many(self, column: Sequence[bytes]) -> list[Any]:
        return [Box(data) for data in column]


RECORDS: Codec = RecordCodec()


class SimReader:
    """One open stream of the outside."""

    def __init__(self, source: "SimSource", stream: str, position: int) -> None:
        self._source = source
        self._stream = stream
        self._position = position

    def read(self) -> bt.Read | None:
        source = self._source
        try:
            records, is_end = source.outside.read(
                source.name, self._stream, self._position, process=source.process
            )
        except UpstreamError as error:
            raise bt.SourceError(str(error)) from error
        self._position += len(records)
        if not records and not is_end:
            return None
        return bt.Read(records, b"%d" % self._position, end=is_end)

    def committed(self, position: bytes) -> None:
        assert int(position) <= self._position, "committed before it was read"

    def close(self) -> None:
        self._source.outside.close(self._source.name, self._stream)


class SimSource:
    """A source of the outside, as a connector."""

    codec = RECORDS

    def __init__(
        self, options: SimOptions, name: str, outside: Outside | None, process: int
    ) -> None:
        self.kind = bt.StreamKind.LOCAL if options.is_local else bt.StreamKind.SHARED
        self.name = name
        self.process = process
        self._outside = outside

    @property
    def outside(self) -> Outside:
        assert self._outside is not None, "only sources read"
        return self._outside

    def start(self) -> None:
        pass

    def streams(self) -> tuple[Sequence[str], bool]:
        return self.outside.find(self.name, self.process)

    def open(self, stream: str, position: bytes | None) -> bt.Reader:
        if self.kind is bt.StreamKind.LOCAL:
            owner = self.outside.streams[self.name, stream].owner
            if owner != self.process:
                raise bt.SourceError("the connection is gone", is_retryable=False)
        return SimReader(self, stream, int(position or b"0"))

    def wait(self, timeout_s: float) -> None:
        raise AssertionError("the world waits")

    def stop(self) -> None:
        pass


class SimWriter:
    """One open sink partition of the outside."""

    def __init__(self, sink: "SimSink", partition: int, fence: bt.Fence) -> None:
        self._sink = sink
        self._partition = partition
        self._fence = fence
        self._pending: list[tuple[int, bytes]] = []
        self._next = 0

    def write(self, first_sequence: int, records: Sequence[Any]) -> None:
        assert self._next in (0, first_sequence), "a gap or an overlap"
        for sequence, value in enumerate(records, start=first_sequence):
            is_refused = self._sink.outside.refuses(value)
            if is_refused and self._sink.name != DEAD_LETTERS:
                self._next = sequence
                raise bt.RecordRefusedError(sequence, "not this one")
            self._pending.append((sequence, bytes(value)))
            self._next = sequence + 1

    def flush(self) -> int:
        pending, self._pending = self._pending, []
        try:
            self._sink.outside.write(
                self._sink.name,
                self._partition,
                self._fence.generation,
                self._fence.history,
                pending,
                self._next - 1,
            )
        except TargetError as error:
            raise bt.SinkError(str(error)) from error
        except TargetFencedError as error:
            raise bt.FencedError("a newer writer exists") from error
        return self._next - 1

    def skip(self, sequence: int) -> None:
        self._next = sequence + 1

    def close(self) -> None:
        self._pending.clear()


class SimSink:
    """A sink of the outside, as a connector."""

    codec = RECORDS
    takes_bytes = True
    guarantee = bt.Guarantee.EXACTLY_ONCE

    def __init__(self, options: SimOptions, name: str, outside: Outside | None) -> None:
        self.name = name
        self.partitions = 1 if name == DEAD_LETTERS else options.sink_partitions
        self._outside = outside

    @property
    def outside(self) -> Outside:
        assert self._outside is not None, "only sinks write"
        return self._outside

    def open(
        self, partition: int, fence: bt.Fence
    ) -> tuple[bt.Writer, bt.SinkPosition | bt.Unknown]:
        try:
            found = self.outside.open(self.name, partition, fence.generation)
        except TargetError as error:
            raise bt.SinkError(str(error)) from error
        except TargetFencedError as error:
            raise bt.FencedError("a newer writer exists") from error
        writer = SimWriter(self, partition, fence)
        if found is None:
            return writer, bt.UNKNOWN
        return writer, bt.SinkPosition(*found)


def plan_of(options: SimOptions, outside: Outside | None, process: int = 0) -> Plan:
    """Return the workload of a schedule as a plan."""
    shape = shape_of(options)

    def edge(number: int, item: EdgeShape) -> Edge:
        to_stage = None if item.stage is None else shape.stages[item.stage]
        is_keyed = to_stage is not None and to_stage.kind != "head"
        make_key = group_of if item.key == "group" else key_of
        return Edge(
            number,
            None if to_stage is None else to_stage.name,
            None if item.sink is None else shape.sinks[item.sink],
            item.input,
            RECORDS,
            key=(lambda value: make_key(_raw(value))) if is_keyed else None,
            key_step="key" if is_keyed else "",
            key_codec=KEYS if is_keyed else None,
        )

    def edges(items: Sequence[EdgeShape]) -> tuple[Edge, ...]:
        return tuple(edge(number, item) for number, item in enumerate(items))

    sources = []
    for name in source_names(options):
        outputs = edges(shape.source_edges)
        sources.append(
            SourcePlan(
                name,
                SimSource(options, name, outside, process),
                Chain(edges=outputs),
                outputs,
                (),
                event_time=(lambda r: r.time_us) if options.has_event_time else None,
            )
        )
    stages = []
    for index, stage in enumerate(shape.stages):
        outputs = edges(stage.edges)
        is_head = stage.kind == "head"
        steps = (Step("pass", StepKind.MAP, _raw),) if is_head else ()
        stages.append(
            StagePlan(
                index,
                stage.name,
                None if is_head else KEYS,
                tuple(PlanInput(RECORDS, "x") for _ in range(stage.inputs)),
                None
                if is_head
                else _keyed(options, stage.name, stage.kind, stage.path),
                Chain(steps, edges=outputs),
                outputs,
                (),
            )
        )
    sinks = [
        SinkPlan(name, SimSink(options, name, outside), (RECORDS, RECORDS))
        for name in sink_names(options)
    ]
    return Plan("sim", tuple(sources), tuple(stages), tuple(sinks), options.partitions)


def _raw(value: Any) -> bytes:
    return value.value if isinstance(value, Record) else bytes(value)


def _keyed(options: SimOptions, name: str, kind: str, path: bytes) -> KeyedStep:
    """Return the stateful step of a stage."""

    def on_record(
        key: bytes, value: bytes, state: Box, context: bt.Context[bytes, Box]
    ) -> Iterator[bytes]:
        if kind == "count":
            outcome = count(key, state.data, value)
        else:
            outcome = detect(
                options,
                path,
                state.data,
                value,
                context.timestamp_us,
                context.processing_time_us or 0,
            )
        for timer_kind, label, due_us in outcome.timers:
            if timer_kind == EVENT_TIME:
                context.set_timer(label, due_us)
            else:
                context.set_timer(label, due_us, kind="processing")
        yield from outcome.values
        if outcome.state is None:
            context.delete_state()
        else:
            state.data = outcome.state

    def on_timer(
        key: bytes, label: str, state: Box, context: bt.Context[bytes, Box]
    ) -> Iterator[bytes]:
        yield fire(path, key, label)
        if state.data is None:
            context.delete_state()

    return KeyedStep(
        name,
        on_record,
        StateSpec(name, BoxCodec(), Box),
        wants_context=True,
        is_generator=True,
        on_timer=on_timer,
        on_timer_is_generator=True,
    )


def _bytes(messages: Sequence[Any]) -> list[bytes]:
    return [message.SerializeToString() for message in messages]


class SdkSource:
    """A source on the SDK's machine."""

    role = "source"

    def __init__(
        self, options: SimOptions, name: str, outside: Outside, process: int
    ) -> None:
        plan = plan_of(options, outside, process)
        self._outside = outside
        self._process = process
        self._machine = SourceMachine(
            plan,
            next(s for s in plan.sources if s.name == name),
            sizes=DEFAULT_SIZES,
            uncommitted_bytes_max=options.uncommitted_bytes_max,
            batch_records=options.batch_records,
            linger_ms=options.seed % 3,
        )

    def attach(self) -> list[bytes]:
        return _bytes([self._machine.attach(b"session")])

    def on_message(self, data: bytes, now_ms: int) -> list[bytes]:
        message = source_pb2.SourceResponse.FromString(data)
        return _bytes(self._machine.on_message(message, now_ms))

    def step(self, now_ms: int, *, is_more_waiting: bool) -> list[bytes] | None:
        return _bytes(self._machine.step(now_ms)) or None

    def wake_at_ms(self) -> int | None:
        return None

    def on_session_lost(self) -> None:
        pass

    def on_crash(self) -> None:
        self._outside.on_process_gone(self._process)


class SdkCompute:
    """A computation on the SDK's machine; caches start empty in each session."""

    role = "compute"

    def __init__(self, options: SimOptions) -> None:
        self._options = options
        self._plan = plan_of(options, None)
        self._machine = self._make()

    def _make(self) -> ComputeMachine:
        machine = ComputeMachine(
            self._plan,
            sizes=DEFAULT_SIZES,
            cpu_clock=lambda: 0.0,
            batch_records=self._options.batch_records,
        )
        for stage in machine.stages:
            if stage.cache is not None and self._options.cache_keys:
                stage.cache._keys_max = self._options.cache_keys
        return machine

    def attach(self) -> list[bytes]:
        self._machine = self._make()
        return _bytes([self._machine.attach(b"session")])

    def on_message(self, data: bytes, now_ms: int) -> list[bytes]:
        message = compute_pb2.ComputeResponse.FromString(data)
        return _bytes(self._machine.on_message(message))

    def step(self, now_ms: int, *, is_more_waiting: bool) -> list[bytes] | None:
        if not self._machine.has_work():
            return None
        return _bytes(self._machine.step())

    def wake_at_ms(self) -> int | None:
        return None

    def on_session_lost(self) -> None:
        pass

    def on_crash(self) -> None:
        pass


class SdkSink:
    """A sink on the SDK's machine."""

    role = "sink"

    def __init__(self, options: SimOptions, name: str, outside: Outside) -> None:
        plan = plan_of(options, outside)
        self._sink = next(s for s in plan.sinks if s.name == name)
        self._machine = SinkMachine(self._sink)

    def attach(self) -> list[bytes]:
        self._machine = SinkMachine(self._sink)
        return _bytes([self._machine.attach(b"session")])

    def on_message(self, data: bytes, now_ms: int) -> list[bytes]:
        message = sink_pb2.SinkResponse.FromString(data)
        return _bytes(self._machine.on_message(message, now_ms))

    def step(self, now_ms: int, *, is_more_waiting: bool) -> list[bytes] | None:
        if not self._machine.has_work(now_ms):
            return None
        sent = self._machine.step(now_ms, is_more_waiting=is_more_waiting)
        if not sent and is_more_waiting:
            return None
        return _bytes(sent)

    def wake_at_ms(self) -> int | None:
        return self._machine.wake_at_ms()

    def on_session_lost(self) -> None:
        self._machine.stop_writing()

    def on_crash(self) -> None:
        pass


class SdkPlugins:
    """Makes drivers of SDK machines."""

    def __init__(self, options: SimOptions) -> None:
        self._options = options

    def source(self, name: str, outside: Outside, process: int) -> SdkSource:
        return SdkSource(self._options, name, outside, process)

    def compute(self) -> SdkCompute:
        return SdkCompute(self._options)

    def sink(self, name: str, outside: Outside) -> SdkSink:
        return SdkSink(self._options, name, outside)
