"""An engine in memory that drives the machines of one plan, by seed.

It keeps the rules of the protocol itself (epochs, deltas, credits, sequences) in the
simplest way that can be right, delivers messages in any order that streams allow, and
takes everything back to the last committed epoch when told to reset. It checks what
the machines send: credit, numbers, generations, the order at barriers.
"""

import random
from collections import deque
from typing import Any

from tests.sdk.runtime.engine_records import (
    Channel,
    OpenEpoch,
    Options,
    StageLink,
    TimerName,
    state_values,
)
from tests.sdk.runtime.sink_side import SinkSide

from bettong.connector import StreamKind
from bettong.keys import partition_of
from bettong.plan import Plan
from bettong.program.columns import SizeLimits
from bettong.runtime.compute import ComputeMachine
from bettong.runtime.source import SourceMachine
from bettong_proto.plugin.v1 import (
    batch_pb2,
    compute_pb2,
    source_pb2,
)

TARGETS = (7, 9)


class EngineDouble:
    """Runs a plan to its end; `committed_epoch` counts up, `generation` too."""

    def __init__(self, plan: Plan, seed: int, options: Options | None = None) -> None:
        self.plan = plan
        self.rng = random.Random(seed)
        self.options = options or Options()
        self.now_ms = 0
        self.generation = 0
        self.committed_epoch = 0
        self.rows: dict[tuple[int, bytes], bytes] = {}
        self.timers: dict[tuple[int, TimerName], int] = {}
        self.positions: dict[tuple[str, str], source_pb2.StreamPosition] = {}
        self.watermarks: dict[tuple[str, str], int] = {}
        self.sinks = SinkSide(plan, self.rng, self.options.window_bytes)
        self.errors = self.sinks.errors
        self.sources = {
            source.name: self._new_source(source) for source in plan.sources
        }
        self.compute = self._new_compute()
        self._to_source: dict[str, deque[source_pb2.SourceResponse]] = {
            name: deque() for name in self.sources
        }
        self._to_compute: deque[compute_pb2.ComputeResponse] = deque()
        self._found: dict[str, list[str]] = {name: [] for name in self.sources}
        self._complete: set[str] = set()
        self.reset()

    # Faults ----------------------------------------------------------------

    def crash_compute(self) -> None:
        """Lose the computation's memory, then go on in a new generation."""
        self.compute = self._new_compute()
        self._to_compute.clear()
        self.reset()

    def crash_source(self) -> None:
        """Lose the source processes' memory, then go on in a new generation."""
        for source in self.plan.sources:
            assert source.connector.kind is StreamKind.SHARED, "local streams are lost"
            self.sources[source.name].close()
            self.sources[source.name] = self._new_source(source)
            self._to_source[source.name].clear()
        self._complete.clear()
        self.reset()

    def crash_sink(self) -> None:
        """Lose the sink processes' memory; sinks need no generation, but get one."""
        self.sinks.crash()
        self.reset()

    def reset(self) -> None:
        """Go back to the committed epoch, with a new generation and new routes."""
        self.generation += self.rng.randint(1, 3)
        self._epochs: dict[int, OpenEpoch] = {self.committed_epoch + 1: OpenEpoch()}
        self._cut_epoch = self.committed_epoch
        self._in_read: set[tuple[str, str]] = set()
        self._frames: dict[tuple[str, str], int] = {}
        self._sent: dict[Channel, list[int]] = {}
        self._granted: dict[Channel, list[int]] = {}
        self._consumed: dict[int, list[int]] = {}
        self._channel_numbers: dict[Channel, int] = {}
        self._inputs: dict[int, list[int]] = {}
        self._reset_done: set[str] = set()
        self._targets = [
            TARGETS[self.rng.randrange(2)] if self.options.has_two_targets else 7
            for _ in range(self.plan.partitions)
        ]
        fed = {edge.to_stage for source in self.plan.sources for edge in source.outputs}
        self._stages = [
            StageLink(self.committed_epoch, self.committed_epoch, stage.name in fed)
            for stage in self.plan.stages
        ]
        for name in self.sources:
            # What was on its way arrives before the reset.
            self._to_source[name].append(self._source_reset(name))
        self._to_compute.append(self._compute_reset())
        self.sinks.reset(self.generation)

    # Running ---------------------------------------------------------------

    def run(
        self, steps_max: int = 50_000, crash_at: dict[int, str] | None = None
    ) -> None:
        """Step until the application is done, with faults at given steps."""
        for number in range(steps_max):
            fault = (crash_at or {}).get(number)
            if fault is not None:
                getattr(self, fault)()
            if self.is_done():
                return
            self.step()
        raise AssertionError(f"not done after {steps_max} steps: {self._describe()}")

    def is_done(self) -> bool:
        """Return whether all streams are committed to their end, all outputs out."""
        for name in self.sources:
            if name not in self._complete:
                return False
            for stream in self._found[name]:
                if not self.positions.get((name, stream), _NOTHING).ended:
                    return False
        return self.sinks.is_done()

    def step(self) -> None:
        """Do one thing at random of those that can be done."""
        self.now_ms += self.rng.randint(0, 3)
        moves = [self._step_sources, self._step_compute, self._step_sinks]
        if self.rng.random() < self.options.cut_ratio:
            moves = [self._cut]
        self.rng.choice(moves)()

    def _step_sources(self) -> None:
        name = self.rng.choice(list(self.sources))
        machine = self.sources[name]
        queue = self._to_source[name]
        if queue and self.rng.random() < 0.7:
            sent = machine.on_message(queue.popleft(), self.now_ms)
        else:
            sent = machine.step(self.now_ms)
        for message in sent:
            self._on_source(name, message)

    def _step_compute(self) -> None:
        if self._to_compute and self.rng.random() < 0.7:
            sent = self.compute.on_message(self._to_compute.popleft())
        elif self.compute.has_work():
            sent = self.compute.step()
        else:
            return
        for message in sent:
            self._on_compute(message)

    def _step_sinks(self) -> None:
        self.sinks.step(self.now_ms)

    # Sources ---------------------------------------------------------------

    def _on_source(self, name: str, message: source_pb2.SourceRequest) -> None:
        match message.WhichOneof("message"):
            case "streams_found":
                self._on_found(name, message.streams_found)
            case "reset_done":
                if message.reset_done.generation == self.generation:
                    self._reset_done.add(name)
            case "frame":
                if message.frame.generation == self.generation:
                    assert name in self._reset_done, "a frame before reset_done"
                    self._on_frame(name, message.frame)
            case "error":
                self.errors.append(message.error)

    def _on_found(self, name: str, found: source_pb2.StreamsFound) -> None:
        for stream in found.streams:
            if stream not in self._found[name]:
                self._found[name].append(stream)
                self._to_source[name].append(
                    source_pb2.SourceResponse(
                        open_stream=source_pb2.OpenStream(
                            generation=self.generation,
                            stream=source_pb2.StreamPosition(stream=stream),
                            targets=self._unkeyed_targets(name),
                        )
                    )
                )
        if found.complete:
            self._complete.add(name)

    def _on_frame(self, name: str, frame: source_pb2.Frame) -> None:
        key = (name, frame.stream)
        expected = self._frames.get(key, 0) + 1
        assert frame.number == expected, f"frame {frame.number}, not {expected}"
        self._frames[key] = expected
        is_first = key not in self._in_read
        is_last_of_several = not is_first and not frame.more
        assert bool(frame.position) != frame.more or not frame.batches
        for batch in frame.batches:
            self._on_batch(name, batch, needs_credit=not is_last_of_several)
        if frame.more:
            self._in_read.add(key)
            return
        self._in_read.discard(key)
        epoch = self._epochs[self._cut_epoch + 1]
        position = source_pb2.StreamPosition(stream=frame.stream, ended=frame.end)
        before = epoch.positions.get(key) or self.positions.get(key)
        if frame.position:
            position.position = frame.position
        elif before is not None and before.HasField("position"):
            position.position = before.position
        if frame.HasField("watermark_us"):
            epoch.watermarks[key] = frame.watermark_us
            position.watermark_us = frame.watermark_us
        epoch.positions[key] = position

    def _source_reset(self, name: str) -> source_pb2.SourceResponse:
        source = next(s for s in self.plan.sources if s.name == name)
        streams = []
        for stream in self._found[name]:
            known = self.positions.get((name, stream))
            streams.append(known or source_pb2.StreamPosition(stream=stream))
        return source_pb2.SourceResponse(
            reset=source_pb2.SourceReset(
                generation=self.generation,
                committed_epoch=self.committed_epoch,
                routes=self._routes(source.outputs),
                streams=streams,
                credit_records=self.options.credit_records,
                credit_bytes=self.options.credit_bytes,
                stream_targets=self._unkeyed_targets(name) * len(streams),
            )
        )

    def _unkeyed_targets(self, name: str) -> list[int]:
        source = next(s for s in self.plan.sources if s.name == name)
        return [7 for e in source.outputs if e.to_stage is not None and e.key is None]

    # Batches and credit ----------------------------------------------------

    def _on_batch(
        self, sender: str, batch: batch_pb2.Batch, *, needs_credit: bool
    ) -> None:
        owner = self._owner(sender)
        edge = owner.outputs[batch.output]
        channel = (sender, batch.output, batch.target)
        sent = self._sent.setdefault(channel, [0, 0])
        granted = self._granted.setdefault(
            channel, [self.options.credit_records, self.options.credit_bytes]
        )
        if needs_credit:
            assert sent[0] < granted[0], "sent without credit"
            assert sent[1] < granted[1], "sent without credit"
        assert batch.count >= 1
        sent[0] += batch.count
        sent[1] += len(batch.records)
        records = batch_pb2.Records.FromString(batch.records)
        if edge.to_sink is not None:
            assert len(records.values) == batch.count
            self._take_output(sender, edge.to_sink, batch, edge.input, records)
            granted[0] += batch.count
            granted[1] += len(batch.records)
            self._grant(sender, channel)
            return
        stage = next(s for s in self.plan.stages if s.name == edge.to_stage)
        for key in records.keys if stage.key_codec is not None else ():
            target = self._targets[partition_of(key, self.plan.partitions)]
            assert batch.target == target, "a key for another target"
        number = self._channel_numbers.setdefault(
            channel, len(self._channel_numbers) + 1
        )
        inputs = self._inputs.setdefault(number, [0, 0])
        inputs[0] += batch.count
        inputs[1] += len(batch.records)
        message = compute_pb2.StageInput(
            generation=self.generation,
            stage=stage.index,
            channel=number,
            input=edge.input,
            count=batch.count,
            records=batch.records,
        )
        link = self._stages[stage.index]
        is_source = sender in self.sources
        if is_source and link.barrier_sent < self._cut_epoch:
            link.parked.append(message)
        else:
            self._to_compute.append(compute_pb2.ComputeResponse(input=message))

    def _take_output(
        self,
        sender: str,
        sink: str,
        batch: batch_pb2.Batch,
        input_number: int,
        records: batch_pb2.Records,
    ) -> None:
        epoch_number = self._cut_epoch + 1
        if sender not in self.sources:
            stage = next(s for s in self.plan.stages if s.name == sender)
            epoch_number = self._stages[stage.index].acked + 1
        outputs = self._epochs[epoch_number].outputs
        log = outputs.setdefault((sink, batch.target), [])
        log += [(value, input_number) for value in records.values]

    def _grant(self, sender: str, channel: Channel) -> None:
        records, size = self._granted[channel]
        credit = batch_pb2.Credit(
            output=channel[1], target=channel[2], records=records, bytes=size
        )
        if sender in self.sources:
            self._to_source[sender].append(source_pb2.SourceResponse(credits=[credit]))
            return
        stage = next(s for s in self.plan.stages if s.name == sender)
        self._to_compute.append(
            compute_pb2.ComputeResponse(
                credits=[compute_pb2.StageCredit(stage=stage.index, credit=credit)]
            )
        )

    # Computation -----------------------------------------------------------

    def _on_compute(self, message: compute_pb2.ComputeRequest) -> None:
        kind = message.WhichOneof("message")
        if kind == "reset_done":
            assert not message.consumed
            if message.reset_done.generation == self.generation:
                self._reset_done.add("compute")
            return
        if "compute" not in self._reset_done:
            return
        for consumed in message.consumed:
            self._on_consumed(consumed)
        match kind:
            case "output":
                assert message.output.generation == self.generation
                stage = self.plan.stages[message.output.stage]
                self._on_batch(stage.name, message.output.batch, needs_credit=True)
            case "state_get":
                assert message.state_get.generation == self.generation
                self._on_state_get(message.state_get)
            case "delta":
                if message.delta.generation == self.generation:
                    self._on_delta(message.delta)
            case "barrier_ack":
                self._on_ack(message.barrier_ack)
            case "error":
                self.errors.append(message.error.error)

    def _on_consumed(self, consumed: batch_pb2.Consumed) -> None:
        before = self._consumed.get(consumed.channel, [0, 0])
        inputs = self._inputs[consumed.channel]
        assert before[0] < consumed.records <= inputs[0]
        assert before[1] < consumed.bytes <= inputs[1]
        self._consumed[consumed.channel] = [consumed.records, consumed.bytes]
        channel = next(
            c for c, n in self._channel_numbers.items() if n == consumed.channel
        )
        granted = self._granted[channel]
        granted[0] += consumed.records - before[0]
        granted[1] += consumed.bytes - before[1]
        self._grant(channel[0], channel)

    def _on_state_get(self, request: compute_pb2.StateGet) -> None:
        assert request.keys, "an empty request"
        assert len(set(request.keys)) == len(request.keys)
        rows = [self._row(request.stage, key) for key in request.keys]
        self._to_compute += state_values(request, rows)

    def _row(self, stage: int, key: bytes) -> bytes | None:
        for number in sorted(self._epochs, reverse=True):
            rows = self._epochs[number].rows
            if (stage, key) in rows:
                return rows[stage, key]
        return self.rows.get((stage, key))

    def _on_delta(self, delta: compute_pb2.Delta) -> None:
        assert delta.epoch == self._stages[delta.stage].acked + 1
        epoch = self._epochs[delta.epoch]
        for part in delta.partitions:
            rows = batch_pb2.StateRows.FromString(part.rows)
            absent = set(rows.absent)
            for index, (key, value) in enumerate(
                zip(rows.keys, rows.values, strict=True)
            ):
                assert partition_of(key, self.plan.partitions) == part.partition
                epoch.rows[delta.stage, key] = None if index in absent else value
            timers = batch_pb2.Timers.FromString(part.timers)
            deleted = set(timers.deleted)
            for index, key in enumerate(timers.keys):
                name = (key, int(timers.kinds[index]), timers.names[index])
                due_us = None if index in deleted else timers.due_us[index]
                epoch.timers[delta.stage, name] = due_us

    def _on_ack(self, ack: compute_pb2.BarrierAck) -> None:
        if ack.generation != self.generation:
            return
        stage = self._stages[ack.stage]
        assert ack.epoch == stage.acked + 1 == stage.barrier_sent
        stage.acked = ack.epoch
        self._send_barriers()
        if all(link.acked == ack.epoch for link in self._stages):
            self._commit(ack.epoch)

    def _compute_reset(self) -> compute_pb2.ComputeResponse:
        assignments = []
        for stage in self.plan.stages:
            used = {
                partition_of(key, self.plan.partitions)
                for number, key in self.rows
                if number == stage.index
            }
            every = range(self.plan.partitions) if stage.key_codec else ()
            assignments.append(
                compute_pb2.StageAssignment(
                    stage=stage.index,
                    partitions=every,
                    fresh_partitions=[p for p in every if p not in used],
                    routes=self._routes(stage.outputs),
                )
            )
        return compute_pb2.ComputeResponse(
            reset=compute_pb2.ComputeReset(
                generation=self.generation,
                committed_epoch=self.committed_epoch,
                stages=assignments,
                credit_records=self.options.credit_records,
                credit_bytes=self.options.credit_bytes,
            )
        )

    def _routes(self, outputs: Any) -> list[batch_pb2.Route]:
        routes = []
        for edge in outputs:
            route = batch_pb2.Route(output=edge.number)
            if edge.to_sink is not None:
                sink = next(s for s in self.plan.sinks if s.name == edge.to_sink)
                route.sink_partitions = sink.connector.partitions
            else:
                stage = next(s for s in self.plan.stages if s.name == edge.to_stage)
                if stage.key_codec is not None:
                    route.targets.extend(self._targets)
            routes.append(route)
        return routes

    # Epochs ----------------------------------------------------------------

    def _cut(self) -> None:
        if self._in_read or self._cut_epoch > self.committed_epoch:
            return
        if self._reset_done < {*self.sources, "compute"}:
            return
        self._cut_epoch += 1
        self._epochs[self._cut_epoch + 1] = OpenEpoch()
        if not self._stages:
            self._commit(self._cut_epoch)
            return
        self._send_barriers()

    def _send_barriers(self) -> None:
        """Send the barrier of the cut epoch to stages whose feeders have acked it."""
        for stage, link in zip(self.plan.stages, self._stages, strict=True):
            if link.barrier_sent == self._cut_epoch:
                continue
            feeders = [
                self._stages[other.index]
                for other in self.plan.stages
                if any(edge.to_stage == stage.name for edge in other.outputs)
            ]
            if any(feeder.acked < self._cut_epoch for feeder in feeders):
                continue
            self._send_timers(stage.index)
            link.barrier_sent = self._cut_epoch
            barrier = compute_pb2.Barrier(
                generation=self.generation,
                epoch=self._cut_epoch,
                stage=stage.index,
                processing_time_us=self._cut_epoch * 1000,
            )
            watermark = self._watermark()
            if watermark is not None:
                barrier.watermark_us = watermark
            self._to_compute.append(compute_pb2.ComputeResponse(barrier=barrier))
            for message in link.parked:
                self._to_compute.append(compute_pb2.ComputeResponse(input=message))
            link.parked.clear()

    def _watermark(self) -> int | None:
        known = dict(self.watermarks)
        known.update(self._epochs[self._cut_epoch].watermarks)
        streams = [(s, stream) for s in self.sources for stream in self._found[s]]
        if not streams or any(stream not in known for stream in streams):
            return None
        return min(known[stream] for stream in streams)

    def _send_timers(self, stage: int) -> None:
        watermark = self._watermark()
        due = []
        for (number, (key, kind, name)), due_us in self.timers.items():
            limit = watermark if kind == 1 else self._cut_epoch * 1000
            if number == stage and limit is not None and due_us <= limit:
                due.append((key, kind, name, due_us))
        if due:
            self.rng.shuffle(due)
            self._to_compute.append(
                compute_pb2.ComputeResponse(
                    timers_due=compute_pb2.TimersDue(
                        generation=self.generation,
                        epoch=self._cut_epoch,
                        stage=stage,
                        timers=batch_pb2.Timers(
                            keys=[d[0] for d in due],
                            kinds=[d[1] for d in due],
                            names=[d[2] for d in due],
                            due_us=[d[3] for d in due],
                        ),
                    )
                )
            )

    def _commit(self, number: int) -> None:
        assert number == self.committed_epoch + 1
        epoch = self._epochs.pop(number)
        self.committed_epoch = number
        for row, value in epoch.rows.items():
            if value is None:
                self.rows.pop(row, None)
            else:
                self.rows[row] = value
        for timer, due_us in epoch.timers.items():
            if due_us is None:
                self.timers.pop(timer, None)
            else:
                self.timers[timer] = due_us
        self.watermarks.update(epoch.watermarks)
        for home, outputs in epoch.outputs.items():
            self.sinks.logs.setdefault(home, []).extend(outputs)
        self.positions.update(epoch.positions)
        for name in self.sources:
            moved = [p for (s, _), p in epoch.positions.items() if s == name]
            self._to_source[name].append(
                source_pb2.SourceResponse(
                    committed=source_pb2.Committed(epoch=number, streams=moved)
                )
            )

    # Making ----------------------------------------------------------------

    def _new_source(self, source: Any) -> SourceMachine:
        machine = SourceMachine(
            self.plan,
            source,
            sizes=SizeLimits(),
            uncommitted_bytes_max=self.options.uncommitted_bytes_max,
            batch_records=self.options.batch_records,
        )
        machine.attach(b"session")
        return machine

    def _new_compute(self) -> ComputeMachine:
        return ComputeMachine(
            self.plan,
            sizes=SizeLimits(),
            cpu_clock=lambda: 0.0,
            batch_records=self.options.batch_records,
        )

    def _owner(self, name: str) -> Any:
        owners = (*self.plan.sources, *self.plan.stages)
        return next(owner for owner in owners if owner.name == name)

    def _describe(self) -> str:
        return (
            f"epoch {self.committed_epoch}, cut {self._cut_epoch}, positions"
            f" {self.positions}, stages {[s.state for s in self.compute.stages]},"
            f" durable {self.sinks.durable},"
            f" errors {self.errors}"
        )


_NOTHING = source_pb2.StreamPosition()
