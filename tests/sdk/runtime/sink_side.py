"""The part of the engine double that delivers committed outputs to sinks."""

import random
from collections import deque
from typing import Any

from bettong.plan import Plan
from bettong.runtime.sink import SinkMachine
from bettong_proto.plugin.v1 import batch_pb2, sink_pb2

Home = tuple[str, int]


class SinkSide:
    """Committed outputs by sink partition, and how far each has been told durable."""

    def __init__(self, plan: Plan, rng: random.Random, window_bytes: int) -> None:
        self.plan = plan
        self.rng = rng
        self.window_bytes = window_bytes
        self.machines = {sink.name: SinkMachine(sink) for sink in plan.sinks}
        # Each output with the input of the sink that it is for.
        self.logs: dict[Home, list[tuple[bytes, int]]] = {}
        self.durable: dict[Home, int] = {}
        self.errors: list[Any] = []
        self.generation = 0
        self._next: dict[Home, int] = {}
        self._queues: dict[str, deque[sink_pb2.SinkResponse]] = {
            name: deque() for name in self.machines
        }

    def crash(self) -> None:
        """Lose the sink processes' memory, and what was on its way to them."""
        self.machines = {sink.name: SinkMachine(sink) for sink in self.plan.sinks}
        for queue in self._queues.values():
            queue.clear()

    def reset(self, generation: int) -> None:
        """Open all partitions anew; what was on its way arrives before."""
        self.generation = generation
        self._next.clear()
        for sink in self.plan.sinks:
            self._queues[sink.name].extend(
                sink_pb2.SinkResponse(
                    open=sink_pb2.OpenSink(
                        partition=number,
                        history=b"h" * 16,
                        generation=generation,
                        window_bytes=self.window_bytes,
                    )
                )
                for number in range(sink.connector.partitions)
            )

    def is_done(self) -> bool:
        """Return whether every committed output is durable."""
        return all(
            self.durable.get(home, 0) >= len(log) for home, log in self.logs.items()
        )

    def step(self, now_ms: int) -> None:
        """Let one sink get a message or work, then send what may be sent."""
        name = self.rng.choice(list(self.machines))
        machine, queue = self.machines[name], self._queues[name]
        if queue and self.rng.random() < 0.7:
            sent = machine.on_message(queue.popleft(), now_ms)
        else:
            is_more = bool(queue) and self.rng.random() < 0.5
            sent = machine.step(now_ms, is_more_waiting=is_more)
        for message in sent:
            self._on_sink(name, message)
        self._deliver_outputs()

    def _on_sink(self, name: str, message: sink_pb2.SinkRequest) -> None:
        match message.WhichOneof("message"):
            case "opened":
                opened = message.opened
                if opened.generation == self.generation:
                    home = (name, opened.partition)
                    durable = self.durable.get(home, 0)
                    if not opened.unknown:
                        durable = opened.durable.sequence
                        assert durable <= len(self.logs.get(home, []))
                        self.durable[home] = durable
                    self._next[home] = durable + 1
            case "progress":
                home = (name, message.progress.partition)
                if message.progress.generation < self.generation:
                    return
                assert message.progress.sequence > self.durable.get(home, 0)
                self.durable[home] = message.progress.sequence
            case "refused":
                if message.refused.generation < self.generation:
                    return
                home = (name, message.refused.partition)
                self._next.pop(home, None)
                self._queues[name].append(
                    sink_pb2.SinkResponse(
                        skip=sink_pb2.Skip(
                            partition=message.refused.partition,
                            generation=self.generation,
                            sequence=message.refused.sequence,
                        )
                    )
                )
                self._next[home] = message.refused.sequence
            case "error":
                home = (name, message.error.partition)
                if message.error.generation < self.generation:
                    return
                self._next.pop(home, None)
                self.errors.append(message.error.error)

    def _deliver_outputs(self) -> None:
        for (name, partition), log in self.logs.items():
            sequence = self._next.get((name, partition))
            if sequence is None or sequence > len(log):
                continue
            # Batches are forwarded whole: they may begin with what is known.
            first = max(1, sequence - self.rng.randint(0, 2))
            count = self.rng.randint(1, 6)
            chosen = log[first - 1 : first - 1 + count]
            input_number = chosen[0][1]
            chosen = [entry for entry in chosen if entry[1] == input_number]
            if first + len(chosen) <= sequence:
                first, chosen = sequence, log[sequence - 1 : sequence]
            self._queues[name].append(
                sink_pb2.SinkResponse(
                    input=sink_pb2.SinkInput(
                        partition=partition,
                        generation=self.generation,
                        first_sequence=first,
                        count=len(chosen),
                        input=chosen[0][1],
                        records=batch_pb2.Records(
                            values=[value for value, _ in chosen]
                        ).SerializeToString(),
                    )
                )
            )
            self._next[name, partition] = first + len(chosen)
