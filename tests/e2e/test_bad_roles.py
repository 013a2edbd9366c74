"""A source, computation or sink breaks the contract: it is told, and nothing is lost.

Each misdeed is one message of an otherwise good plugin. The engine must name it, end
that session, go back to the last commit, and be done right by the next plugin.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import pytest
from tests.e2e.bad_plugin import Peer, Tamper
from tests.e2e.raw_roles import (
    APPLICATION,
    PARTITIONS,
    RawCompute,
    RawSink,
    RawSource,
    expected,
    once,
)
from tests.e2e.yard import Run, Yard

from bettong_proto.plugin.v1 import (
    batch_pb2,
    compute_pb2,
    error_pb2,
    sink_pb2,
    source_pb2,
)

pytestmark = pytest.mark.e2e

FRAMES, RECORDS = 12, 40
TOKEN = "raw"


@dataclass(frozen=True)
class Misdeed:
    """What a plugin does wrong once, and what the engine must say of it."""

    name: str
    role: str
    # The kind of message, and which one of that kind.
    kind: str
    number: int
    tamper: Tamper
    says: str
    code: str = "PROTOCOL"


def changed(change: Callable[[Any], None]) -> Tamper:
    """Return a tamper that changes a message in place."""

    def apply(message: Any) -> Iterable[Any]:
        change(message)
        return (message,)

    return apply


def twice(message: Any) -> Iterable[Any]:
    return (message, message)


def after(other: Any) -> Tamper:
    """Return a tamper that sends another message behind."""
    return lambda message: (message, other(message))


def instead(other: Any) -> Tamper:
    return lambda _: (other,)


def _frame(**fields: Any) -> Tamper:
    def change(message: source_pb2.SourceRequest) -> None:
        for name, value in fields.items():
            setattr(message.frame, name, value)

    return changed(change)


def _batch(**fields: Any) -> Tamper:
    def change(message: source_pb2.SourceRequest) -> None:
        for name, value in fields.items():
            setattr(message.frame.batches[0], name, value)

    return changed(change)


def _records(**columns: list[Any]) -> Tamper:
    def change(message: compute_pb2.ComputeRequest) -> None:
        batch = message.output.batch
        records = batch_pb2.Records.FromString(batch.records)
        for name, elements in columns.items():
            records.ClearField(name)  # type: ignore[arg-type]
            getattr(records, name).extend(elements)
        batch.records = records.SerializeToString()

    return changed(change)


def _output(**fields: Any) -> Tamper:
    def change(message: compute_pb2.ComputeRequest) -> None:
        for name, value in fields.items():
            setattr(message.output.batch, name, value)

    return changed(change)


def _stage(number: int) -> Tamper:
    return changed(lambda m: setattr(m.output, "stage", number))


def _partition(change: Callable[[int], int]) -> Tamper:
    def apply(message: compute_pb2.ComputeRequest) -> None:
        for part in message.delta.partitions:
            part.partition = change(part.partition)

    return changed(apply)


def _rows(message: compute_pb2.ComputeRequest) -> None:
    part = message.delta.partitions[0]
    rows = batch_pb2.StateRows.FromString(part.rows)
    rows.values.append(b"one more")
    part.rows = rows.SerializeToString()


def _no_rows(message: compute_pb2.ComputeRequest) -> None:
    message.delta.partitions[0].rows = b"\xff no protobuf \xff"


def _epoch(kind: str, by: int) -> Tamper:
    def change(message: Any) -> None:
        getattr(message, kind).epoch += by

    return changed(change)


def _sequence(message: sink_pb2.SinkRequest) -> None:
    message.progress.sequence += 1_000_000


def _refused(message: sink_pb2.SinkRequest) -> sink_pb2.SinkRequest:
    generation = message.progress.generation
    refused = sink_pb2.Refused(generation=generation, sequence=9_999_999)
    return sink_pb2.SinkRequest(refused=refused)


SOURCE, COMPUTE, SINK = "source", "compute", "sink"
MISDEEDS = (
    Misdeed(
        "a frame of a stream that was never named",
        SOURCE, "frame", 3, _frame(stream="ghost"), "'ghost'",
    ),
    Misdeed("a frame left out", SOURCE, "frame", 3, lambda _: (), "follows frame 2"),
    Misdeed("a frame sent twice", SOURCE, "frame", 3, twice, "follows frame 3"),
    Misdeed(
        "a frame behind the end",
        SOURCE, "frame", 5, lambda m: (_ended(m), m), "after the end",
    ),
    Misdeed(
        "a position over the limit",
        SOURCE, "frame", 2, _frame(position=b"x" * 5000), "5000", "TOO_LARGE",
    ),
    Misdeed(
        "a batch without a position",
        SOURCE, "frame", 2, _frame(position=b""), "position",
    ),
    Misdeed(
        "a part of a read with a position",
        SOURCE, "frame", 2, _frame(more=True), "more",
    ),
    Misdeed(
        "a batch for an output that is not there",
        SOURCE, "frame", 2, _batch(output=7), "no output 7",
    ),
    Misdeed(
        "a batch for a target that is not there",
        SOURCE, "frame", 2, _batch(target=7), "no target 7",
    ),
    Misdeed("an empty batch", SOURCE, "frame", 2, _batch(count=0), "empty batch"),
    Misdeed(
        "a batch of too many records",
        SOURCE, "frame", 2, _batch(count=8193), "8193", "TOO_LARGE",
    ),
    Misdeed(
        "an oversize message",
        SOURCE, "frame", 2, _batch(records=b"x" * (5 << 20)), "5", "TOO_LARGE",
    ),
    Misdeed(
        "an unknown kind of message",
        SOURCE, "frame", 2, instead(b"\x9a\x06\x05hello"), "", "UNSUPPORTED",
    ),
    Misdeed(
        "a second attach",
        SOURCE, "frame", 2,
        instead(source_pb2.SourceRequest(attach=source_pb2.SourceAttach())),
        "attach",
    ),
    Misdeed(
        "more values than records",
        COMPUTE, "output", 2, _records(values=[b"a"] * (RECORDS + 1)), "values",
    ),
    Misdeed(
        "fewer values than records",
        COMPUTE, "output", 2, _records(values=[b"a"]), "values",
    ),
    Misdeed(
        "keys for some of the records",
        COMPUTE, "output", 2, _records(keys=[b"a"]), "keys",
    ),
    Misdeed(
        "a null beyond the records",
        COMPUTE, "output", 2, _records(nulls=[RECORDS]), "null record",
    ),
    Misdeed(
        "outputs that are no records",
        COMPUTE, "output", 2, _output(records=b"\xff\xff noise"), "no Records",
    ),
    Misdeed(
        "a sink partition that is not there",
        COMPUTE, "output", 2, _output(target=3), "no target 3",
    ),
    Misdeed(
        "an output of a stage that is not there",
        COMPUTE, "output", 2, _stage(5), "stage 5",
    ),
    Misdeed(
        "a delta for a partition that is not there",
        COMPUTE, "delta", 2, _partition(lambda p: p + PARTITIONS), "not its own",
    ),
    Misdeed(
        "rows whose columns do not fit",
        COMPUTE, "delta", 2, changed(_rows), "in values",
    ),
    Misdeed("rows that are no rows", COMPUTE, "delta", 2, changed(_no_rows), ""),
    Misdeed(
        "a delta of another epoch",
        COMPUTE, "delta", 2, _epoch("delta", 1), "out of place",
    ),
    Misdeed(
        "an ack of another epoch",
        COMPUTE, "barrier_ack", 2, _epoch("barrier_ack", 1), "not asked for",
    ),
    Misdeed("an ack sent twice", COMPUTE, "barrier_ack", 2, twice, "not asked for"),
    Misdeed(
        "columns of a question that do not fit",
        COMPUTE, "state_get", 2,
        changed(lambda m: m.state_get.entries.extend([b"", b""])),
        "StateGet",
    ),
    Misdeed(
        "consumption of a channel that is not there",
        COMPUTE, "output", 2,
        changed(lambda m: m.consumed.add(channel=99, records=1)),
        "channel 99",
    ),
    Misdeed(
        "progress beyond what was sent",
        SINK, "progress", 2, changed(_sequence), "was sent",
    ),
    Misdeed(
        "refusal of what was not sent",
        SINK, "progress", 2, after(_refused), "was not sent",
    ),
    Misdeed(
        "a position that is none",
        SINK, "opened", 1, changed(lambda m: m.opened.ClearField("durable")),
        "without a position",
    ),
    Misdeed(
        "a sink partition of its own making",
        SINK, "progress", 2, changed(lambda m: setattr(m.progress, "partition", 4)),
        "no sink partition 4",
    ),
)  # fmt: skip


def _ended(message: source_pb2.SourceRequest) -> source_pb2.SourceRequest:
    """Return the frame before, with an end that comes too early."""
    ended = source_pb2.SourceRequest()
    ended.CopyFrom(message)
    message.frame.number += 1
    ended.frame.end = True
    return ended


def _key(line: str) -> str:
    return line.partition("=")[0]


class RawPipeline:
    """An engine, the three raw roles, and who serves them."""

    def __init__(self, yard: Yard) -> None:
        self.address = f"unix:{yard.mark}/engine.sock"
        self.roles: dict[str, RawSource | RawCompute | RawSink] = {
            SOURCE: RawSource(FRAMES, RECORDS),
            COMPUTE: RawCompute(),
            SINK: RawSink(),
        }
        self.peers: list[Peer] = []
        self.engine: Run = yard.engine(
            f"listen = {self.address!r}\ndata_dir = {str(yard.data)!r}\n"
            f"tokens = [{TOKEN!r}]\n"
        )
        self.engine.says("engine_started")

    def serve(self, *roles: str, tamper: Tamper | None = None) -> Peer:
        """Serve roles by one more plugin."""
        peer = Peer(self.address).join(TOKEN, APPLICATION)
        self.peers.append(peer)
        for role in roles:
            self.roles[role].serve(peer, tamper)
        return peer

    def finishes_exactly(self, *, in_order: bool = True) -> None:
        """Wait for the end; the outputs are those of an undisturbed run.

        in_order: there was one computation at any time. Else: in order for each key.
        """
        assert self.engine.ends() == 0, self.engine
        sink = self.roles[SINK]
        assert isinstance(sink, RawSink)
        lines = expected(FRAMES, RECORDS)
        if in_order:
            assert sink.lines == lines
        # Sorting is stable: it keeps the order of each key.
        assert sorted(sink.lines, key=_key) == sorted(lines, key=_key)
        assert "Traceback" not in self.engine.log(), self.engine

    def close(self) -> None:
        for peer in self.peers:
            peer.close()


@pytest.fixture
def raw(yard: Yard) -> Iterable[RawPipeline]:
    pipeline = RawPipeline(yard)
    yield pipeline
    pipeline.close()


@pytest.mark.parametrize("misdeed", MISDEEDS, ids=lambda m: m.name.replace(" ", "-"))
def test_misdeed_is_told_and_undone(raw: RawPipeline, misdeed: Misdeed) -> None:
    others = [role for role in (COMPUTE, SINK, SOURCE) if role != misdeed.role]
    good = raw.serve(*others)
    tamper = once(misdeed.tamper, misdeed.kind, misdeed.number)

    bad = raw.serve(misdeed.role, tamper=tamper)
    error = bad.is_told()
    raw.serve(misdeed.role)

    assert error_pb2.ErrorCode.Name(error.code) == f"ERROR_CODE_{misdeed.code}"
    assert misdeed.says in error.message
    raw.finishes_exactly()
    assert error.message in "".join(e["why"] for e in raw.engine.events("plugin_gone"))
    assert not good.is_blamed()


@pytest.mark.parametrize("role", [SOURCE, COMPUTE, SINK])
def test_role_that_vanishes_is_taken_over(raw: RawPipeline, role: str) -> None:
    others = [other for other in (COMPUTE, SINK, SOURCE) if other != role]
    raw.serve(*others)
    kind = {SOURCE: "frame", COMPUTE: "output", SINK: "progress"}[role]
    seen: list[Any] = []

    kinds: list[str] = []

    def vanish(message: Any) -> Iterable[Any]:
        """Say nothing from the third on: a later ack would vouch for what is lost."""
        kinds.append(message.WhichOneof("message"))
        if seen or kinds.count(kind) >= 3:
            seen.append(message)
            return ()
        return (message,)

    gone = raw.serve(role, tamper=vanish)
    raw.engine.says("role_attached")
    while not seen:
        assert not raw.engine.is_over(), raw.engine
    gone.close()
    raw.serve(role)

    # For a moment the engine may know two computations: the old one's end and the
    # new one's arrival come on different connections.
    raw.finishes_exactly(in_order=role != COMPUTE)


def test_messages_of_an_older_generation_change_nothing(raw: RawPipeline) -> None:
    def stale_frame(message: source_pb2.SourceRequest) -> Iterable[Any]:
        stale = source_pb2.SourceRequest()
        stale.CopyFrom(message)
        stale.frame.generation -= 1
        stale.frame.number = 77
        return (stale, message, stale)

    def stale_compute(message: compute_pb2.ComputeRequest) -> Iterable[Any]:
        stale = compute_pb2.ComputeRequest()
        stale.CopyFrom(message)
        stale.ClearField("consumed")
        kind = stale.WhichOneof("message")
        assert kind is not None
        getattr(stale, kind).generation -= 1
        return (stale, message, stale)

    def stale_sink(message: sink_pb2.SinkRequest) -> Iterable[Any]:
        stale = sink_pb2.SinkRequest()
        stale.CopyFrom(message)
        stale.progress.generation -= 1
        stale.progress.sequence += 1_000_000
        return (stale, message)

    peers = [
        raw.serve(COMPUTE, tamper=once(stale_compute, "output", 2)),
        raw.serve(SINK, tamper=once(stale_sink, "progress", 2)),
        raw.serve(SOURCE, tamper=once(stale_frame, "frame", 4)),
    ]

    raw.finishes_exactly()
    for peer in peers:
        assert peer.control.ends() is not None
    assert not raw.engine.events("plugin_dropped")


def test_newest_plugin_of_a_source_wins(raw: RawPipeline) -> None:
    raw.serve(COMPUTE, SINK)
    # Sends nothing: it has lost its tongue, but not its session.
    older = raw.serve(SOURCE, tamper=lambda m: (m,) if m.HasField("attach") else ())

    raw.serve(SOURCE)

    assert older.is_told().code == error_pb2.ERROR_CODE_FENCED
    raw.finishes_exactly()


def test_state_of_a_partition_that_another_owns_is_refused(raw: RawPipeline) -> None:
    raw.serve(COMPUTE, SINK)

    def everything(message: compute_pb2.ComputeRequest) -> Iterable[Any]:
        done = message.reset_done.generation
        keys = [b"key %d" % i for i in range(500)]
        get = compute_pb2.StateGet(generation=done, request=1, keys=keys)
        return (message, compute_pb2.ComputeRequest(state_get=get))

    greedy = raw.serve(COMPUTE, tamper=once(everything, "reset_done"))

    error = greedy.is_told()
    assert error.code == error_pb2.ERROR_CODE_PROTOCOL
    assert "not its own" in error.message
    raw.serve(SOURCE)
    raw.finishes_exactly(in_order=False)


def test_delta_for_a_partition_that_another_owns_is_refused(raw: RawPipeline) -> None:
    def all_partitions(message: compute_pb2.ComputeRequest) -> Iterable[Any]:
        rows = batch_pb2.StateRows(keys=[b"x"], values=[b"1"]).SerializeToString()
        for partition in range(PARTITIONS):
            message.delta.partitions.add(partition=partition, rows=rows)
        return (message,)

    raw.serve(COMPUTE, SINK)
    greedy = raw.serve(COMPUTE, tamper=once(all_partitions, "delta"))
    raw.serve(SOURCE)

    error = greedy.is_told()

    assert error.code == error_pb2.ERROR_CODE_PROTOCOL
    assert "not its own" in error.message
    raw.finishes_exactly(in_order=False)
