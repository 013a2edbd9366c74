"""A compute machine on a bench, and the plans that its tests run."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from tests.sdk.runtime.memory_connectors import ListSink, ListSource

import bettong as bt
from bettong.codecs import msgpack
from bettong.plan import Plan
from bettong.program.columns import SizeLimits
from bettong.runtime.compute import ComputeMachine
from bettong_proto.plugin.v1 import batch_pb2, compute_pb2, error_pb2

PARTITIONS = 4
NO_STATE: Any = None
ENOUGH = (1_000_000, 1_000_000_000)


@dataclass
class Count:
    count: int = 0


def count(key: str, word: str, state: Count) -> str:
    if word == "bad":
        raise ValueError("a bad word")
    state.count += 1
    return f"{key}{state.count}"


def plan_of(function: Any = count, *, second: bool = False, **how: Any) -> Plan:
    """One stage that counts words; with `second`, one more behind it."""
    on_error = how.pop("on_error", "fail")
    letters = ListSink(codec=bt.json) if on_error == "dead_letter" else None
    app = bt.App("words", partitions=PARTITIONS, on_error=on_error, dead_letter=letters)
    stream = (
        app.source("lines", ListSource({}))
        .key_by(lambda word: word, key=str, name="by_word")
        .stateful(function, state=Count, name="count", **how)
    )
    if second:
        stream = stream.key_by(lambda text: text[0], key=str, name="again").stateful(
            count, state=Count, name="count2"
        )
    stream.sink("out", ListSink())
    return app.plan()


class Bench:
    """A machine after its first reset, and what it sent."""

    def __init__(
        self,
        plan: Plan,
        *,
        credit: tuple[int, int] = ENOUGH,
        is_fresh: bool = True,
        sizes: SizeLimits | None = None,
    ) -> None:
        self.plan = plan
        self.machine = ComputeMachine(
            plan, sizes=sizes or SizeLimits(), cpu_clock=lambda: 0.0
        )
        self.generation = 0
        self.sent: list[compute_pb2.ComputeRequest] = []
        self.reset(credit=credit, is_fresh=is_fresh)
        self.sent.clear()

    def reset(
        self,
        *,
        epoch: int = 0,
        credit: tuple[int, int] = ENOUGH,
        is_fresh: bool = False,
    ) -> None:
        self.generation += 1
        stages = []
        for stage in self.plan.stages:
            routes = [
                batch_pb2.Route(output=edge.number, targets=[0] * PARTITIONS)
                if edge.to_stage
                else batch_pb2.Route(output=edge.number, sink_partitions=1)
                for edge in stage.outputs
            ]
            stages.append(
                compute_pb2.StageAssignment(
                    stage=stage.index,
                    partitions=range(PARTITIONS),
                    fresh_partitions=range(PARTITIONS) if is_fresh else (),
                    routes=routes,
                )
            )
        self.tell(
            reset=compute_pb2.ComputeReset(
                generation=self.generation,
                committed_epoch=epoch,
                stages=stages,
                credit_records=credit[0],
                credit_bytes=credit[1],
            )
        )

    def tell(self, **message: Any) -> None:
        self.sent += self.machine.on_message(compute_pb2.ComputeResponse(**message))

    def give(
        self, *words: str, stage: int = 0, channel: int = 1, values: Any = None
    ) -> None:
        keys = [word.encode() for word in words]
        records = batch_pb2.Records(
            keys=keys, values=values, value_is_key=values is None
        )
        self.tell(
            input=compute_pb2.StageInput(
                generation=self.generation,
                stage=stage,
                channel=channel,
                count=len(words),
                records=records.SerializeToString(),
            )
        )

    def barrier(self, epoch: int, *, stage: int = 0, **times: int) -> None:
        self.tell(
            barrier=compute_pb2.Barrier(
                generation=self.generation, epoch=epoch, stage=stage, **times
            )
        )

    def credit(self, records: int, *, stage: int = 0) -> None:
        self.tell(
            credits=[
                compute_pb2.StageCredit(
                    stage=stage,
                    credit=batch_pb2.Credit(records=records, bytes=1_000_000),
                )
            ]
        )

    def work(self) -> list[str]:
        """Do all work; return the kinds of what was sent, and clear it."""
        for _ in range(10_000):
            if not self.machine.has_work():
                return self.kinds()
            self.sent += self.machine.step()
        raise AssertionError("work without end")

    def kinds(self) -> list[str]:
        return [message.WhichOneof("message") or "" for message in self.sent]

    def outputs(self) -> list[str]:
        found: list[str] = []
        for message in self.sent:
            if message.HasField("output"):
                records = batch_pb2.Records.FromString(message.output.batch.records)
                found += [value.decode() for value in records.values]
        return found

    def rows(self) -> dict[str, int | None]:
        found: dict[str, int | None] = {}
        for message in self.sent:
            for part in message.delta.partitions:
                rows = batch_pb2.StateRows.FromString(part.rows)
                for index, key in enumerate(rows.keys):
                    value = None
                    if index not in rows.absent:
                        value = msgpack(Count).decode(rows.values[index]).count
                    found[key.decode()] = value
        return found

    def timers(self) -> dict[tuple[str, str], int | None]:
        found: dict[tuple[str, str], int | None] = {}
        for message in self.sent:
            for part in message.delta.partitions:
                timers = batch_pb2.Timers.FromString(part.timers)
                for index, key in enumerate(timers.keys):
                    due = None if index in timers.deleted else timers.due_us[index]
                    found[key.decode(), timers.names[index]] = due
        return found

    def errors(self) -> list[error_pb2.Error]:
        return [m.error.error for m in self.sent if m.HasField("error")]


def timed(
    key: str, word: str, state: Count, context: bt.Context[str, Count]
) -> Iterator[str]:
    state.count += 1
    command, *numbers = word.split()
    if command == "at":
        context.set_timer("t", int(numbers[0]))
    elif command == "clock":
        context.set_timer("p", int(numbers[0]), "processing")
    elif command == "forget":
        context.delete_timer("t")
    yield f"{key} {word}"


def on_timer(
    key: str, name: str, state: Count, context: bt.Context[str, Count]
) -> Iterator[str]:
    state.count += 100
    yield f"{key} {name} {context.timestamp_us} {state.count}"
    if name == "chain" and context.timestamp_us is not None:
        context.set_timer("chain", context.timestamp_us + 1)
    if name == "killer":
        context.delete_timer("victim")
    if name == "bad":
        raise ValueError("bad timer")


def timer_plan(on_error: str = "fail") -> Plan:
    return plan_of(timed, on_timer=on_timer, on_error=on_error)
