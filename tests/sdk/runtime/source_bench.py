"""A source machine on a bench."""

from collections.abc import Callable, Sequence
from typing import Any

from tests.sdk.runtime.memory_connectors import ListSink, ListSource

import bettong as bt
from bettong.plan import Plan
from bettong.program.columns import SizeLimits
from bettong.runtime.source import SourceMachine
from bettong_proto.plugin.v1 import (
    batch_pb2,
    error_pb2,
    source_pb2,
)

PARTITIONS = 4
ENOUGH = (1_000_000, 1_000_000_000)


def plan_of(
    source: ListSource,
    step: Callable[[str], Any] = str.split,
    on_error: Any = "fail",
    **how: Any,
) -> Plan:
    app = bt.App("app", partitions=PARTITIONS, on_error=on_error)
    (
        app.source("lines", source, **how)
        .flat_map(step, name="split")
        .key_by(lambda word: word, key=str, name="by_word")
        .stateful(lambda key, word, state: word, state=list, name="count")
        .sink("out", ListSink(codec=bt.msgpack))
    )
    return app.plan()


def named(stream: str, position: str | None = None, **more: Any) -> Any:
    found = source_pb2.StreamPosition(stream=stream, **more)
    if position is not None:
        found.position = position.encode()
    return found


class Bench:
    """A machine and what it sent. Time stands still unless a test moves it."""

    def __init__(self, plan: Plan, **how: Any) -> None:
        self.machine = SourceMachine(
            plan,
            plan.sources[0],
            sizes=how.pop("sizes", SizeLimits()),
            linger_ms=how.pop("linger_ms", 0),
            **how,
        )
        self.now_ms = 1000
        self.generation = 0
        self.sent: list[source_pb2.SourceRequest] = [self.machine.attach(b"s")]

    def tell(self, **message: Any) -> None:
        response = source_pb2.SourceResponse(**message)
        self.sent += self.machine.on_message(response, self.now_ms)

    def reset(
        self,
        *streams: Any,
        credit: tuple[int, int] = ENOUGH,
        targets: Sequence[int] = (0,) * PARTITIONS,
    ) -> None:
        self.generation += 1
        self.tell(
            reset=source_pb2.SourceReset(
                generation=self.generation,
                routes=[batch_pb2.Route(output=0, targets=targets)],
                streams=streams,
                credit_records=credit[0],
                credit_bytes=credit[1],
            )
        )

    def steps(self, count: int = 100) -> None:
        for _ in range(count):
            sent = self.machine.step(self.now_ms)
            if not sent:
                return
            self.sent += sent

    def credit(self, records: int, target: int = 0) -> None:
        self.tell(
            credits=[
                batch_pb2.Credit(
                    output=0, target=target, records=records, bytes=1_000_000_000
                )
            ]
        )

    def commit(self, *streams: Any) -> None:
        self.tell(committed=source_pb2.Committed(epoch=1, streams=streams))

    def take(self) -> list[source_pb2.SourceRequest]:
        sent, self.sent = self.sent, []
        return sent

    def frames(self) -> list[source_pb2.Frame]:
        return [m.frame for m in self.take() if m.HasField("frame")]

    def words(self) -> list[list[str]]:
        """Return the words of each frame that was sent, and forget them."""
        return [words_of(frame) for frame in self.frames()]

    def errors(self) -> list[error_pb2.Error]:
        return [m.error for m in self.take() if m.HasField("error")]


def words_of(frame: source_pb2.Frame) -> list[str]:
    found: list[str] = []
    for batch in frame.batches:
        records = batch_pb2.Records.FromString(batch.records)
        assert len(records.keys) == batch.count
        found += [key.decode() for key in records.keys]
    return found


def started(source: ListSource, **how: Any) -> Bench:
    bench = Bench(plan_of(source), **how)
    bench.reset(*[named(stream) for stream in source.contents])
    return bench
