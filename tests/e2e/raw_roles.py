"""A source, a computation and a sink on the bare protocol, as good plugins are.

The smallest that the protocol allows: the source replays from its positions, the
computation caches nothing, the sink keeps what it got. Each runs in a thread, on a
stream that may tamper with what it sends.
"""

import threading
from collections import deque
from collections.abc import Iterator
from typing import Any
from zlib import crc32

from tests.e2e.bad_plugin import EndOfStreamError, Peer, Stream, Tamper

from bettong_proto.plugin.v1 import (
    application_pb2,
    batch_pb2,
    compute_pb2,
    sink_pb2,
    source_pb2,
)

KEYS = 7
FOREVER_S = 3600.0
# A frame more is sent when all but so many are committed: so there are epochs.
UNCOMMITTED_FRAMES = 2
PARTITIONS = 64

APPLICATION = application_pb2.Application(
    name="raw",
    sources=[
        application_pb2.Source(
            name="numbers",
            kind=application_pb2.STREAM_KIND_SHARED,
            outputs=[application_pb2.Output(stage="count")],
        )
    ],
    stages=[
        application_pb2.Stage(
            name="count",
            keyed=True,
            key_codec="bytes",
            states=[application_pb2.State(name="count", codec="raw")],
            outputs=[application_pb2.Output(sink="counts")],
        )
    ],
    sinks=[application_pb2.Sink(name="counts")],
)


def expected(frames: int, records: int) -> list[str]:
    """Return the outputs, in order: each key counts 1, 2, 3 …"""
    keys = [key_of(frame, i) for frame in range(frames) for i in range(records)]
    counts = dict.fromkeys(keys, 0)
    lines = []
    for key in keys:
        counts[key] += 1
        lines.append(f"{key.decode()}={counts[key]}")
    return lines


def key_of(frame: int, place: int) -> bytes:
    """Return the key of a record."""
    return b"k%d" % ((frame * 3 + place) % KEYS)


class RawSource:
    """One stream "a", of `frames` frames with `records` records each."""

    def __init__(self, frames: int, records: int) -> None:
        self.frames, self.records = frames, records

    def serve(self, peer: Peer, tamper: Tamper | None = None) -> None:
        """Attach, and read in a thread until the stream ends."""
        stream = peer.attach("Source", tamper, source="numbers", kind=1)
        found = source_pb2.StreamsFound(streams=["a"], complete=True)
        stream.send(source_pb2.SourceRequest(streams_found=found))
        _in_thread(self._read, stream)

    def _read(self, stream: Stream) -> None:
        generation = number = until = 0
        next_frame = self.frames
        targets: list[int] = []
        while True:
            message = stream.receive(FOREVER_S)
            kind = message.WhichOneof("message")
            opened: source_pb2.StreamPosition | None = None
            if kind == "reset":
                generation = message.reset.generation
                targets = list(message.reset.routes[0].targets)
                done = source_pb2.SourceResetDone(generation=generation)
                stream.send(source_pb2.SourceRequest(reset_done=done))
                opened = next(iter(message.reset.streams), None)
                until = 0
            elif kind == "open_stream":
                opened = message.open_stream.stream
            elif kind == "committed":
                position = message.committed.streams[0].position
                until = max(until, int(position or b"0") + UNCOMMITTED_FRAMES)
            if opened is not None and not opened.ended:
                next_frame, number = int(opened.position or b"0"), 0
                until = next_frame + UNCOMMITTED_FRAMES
            while next_frame < min(until, self.frames):
                number += 1
                frame = self._frame(next_frame, number, generation, targets)
                stream.send(source_pb2.SourceRequest(frame=frame))
                next_frame += 1

    def _frame(
        self, frame: int, number: int, generation: int, targets: list[int]
    ) -> source_pb2.Frame:
        by_target: dict[int, list[bytes]] = {}
        for key in (key_of(frame, i) for i in range(self.records)):
            by_target.setdefault(targets[crc32(key) % PARTITIONS], []).append(key)
        batches = []
        for target, keys in by_target.items():
            records = batch_pb2.Records(keys=keys, values=keys).SerializeToString()
            batch = batch_pb2.Batch(target=target, count=len(keys), records=records)
            batches.append(batch)
        return source_pb2.Frame(
            generation=generation,
            stream="a",
            number=number,
            batches=batches,
            position=b"%d" % (frame + 1),
            idle=True,
            end=frame + 1 == self.frames,
            records_read=self.records,
        )


class RawCompute:
    """Counts each key; asks for the state of every batch anew."""

    def serve(self, peer: Peer, tamper: Tamper | None = None) -> None:
        """Attach, and compute in a thread until the stream ends."""
        stream = peer.attach("Compute", tamper, stages=["count"])
        _in_thread(self._compute, stream)

    def _compute(self, stream: Stream) -> None:
        generation = epoch = 0
        dirty: dict[bytes, int] = {}
        consumed: dict[int, list[int]] = {}
        later: deque[Any] = deque()
        requests = iter(range(1, 1 << 30))
        while True:
            message = later.popleft() if later else stream.receive(FOREVER_S)
            kind = message.WhichOneof("message")
            if kind == "reset":
                generation = message.reset.generation
                dirty.clear()
                consumed.clear()
                done = compute_pb2.ComputeResetDone(generation=generation)
                stream.send(compute_pb2.ComputeRequest(reset_done=done))
            elif kind == "input" and message.input.generation == generation:
                batch = batch_pb2.Records.FromString(message.input.records)
                unknown = [k for k in dict.fromkeys(batch.keys) if k not in dirty]
                request = next(requests)
                if unknown and not self._ask(
                    stream, generation, request, unknown, dirty, later
                ):
                    continue
                total = consumed.setdefault(message.input.channel, [0, 0])
                total[0] += message.input.count
                total[1] += len(message.input.records)
                self._answer(stream, generation, batch.keys, dirty, consumed)
            elif kind == "barrier" and message.barrier.generation == generation:
                epoch = message.barrier.epoch
                self._flush(stream, generation, epoch, dirty)

    def _ask(
        self,
        stream: Stream,
        generation: int,
        request: int,
        keys: list[bytes],
        dirty: dict[bytes, int],
        later: deque[Any],
    ) -> bool:
        """Take rows into `dirty`; False if a reset came before the answer."""
        get = compute_pb2.StateGet(generation=generation, request=request, keys=keys)
        stream.send(compute_pb2.ComputeRequest(state_get=get))
        while True:
            message = stream.receive(FOREVER_S)
            if message.WhichOneof("message") == "reset":
                later.clear()
                later.append(message)
                return False
            if message.WhichOneof("message") != "state_values":
                later.append(message)
                continue
            values = message.state_values
            if values.request == request:
                for key, value in zip(
                    values.rows.keys, values.rows.values, strict=True
                ):
                    dirty[key] = int(value or b"0")
                return True

    def _answer(
        self,
        stream: Stream,
        generation: int,
        keys: Any,
        dirty: dict[bytes, int],
        consumed: dict[int, list[int]],
    ) -> None:
        values = []
        for key in keys:
            dirty[key] += 1
            values.append(b"%s=%d" % (key, dirty[key]))
        records = batch_pb2.Records(values=values).SerializeToString()
        output = compute_pb2.StageOutput(
            generation=generation,
            batch=batch_pb2.Batch(count=len(values), records=records),
        )
        totals = [
            batch_pb2.Consumed(channel=channel, records=records, bytes=size)
            for channel, (records, size) in consumed.items()
        ]
        stream.send(compute_pb2.ComputeRequest(output=output, consumed=totals))

    def _flush(
        self, stream: Stream, generation: int, epoch: int, dirty: dict[bytes, int]
    ) -> None:
        by_partition: dict[int, list[bytes]] = {}
        for key in dirty:
            by_partition.setdefault(crc32(key) % PARTITIONS, []).append(key)
        parts = []
        for partition, keys in by_partition.items():
            values = [b"%d" % dirty[key] for key in keys]
            rows = batch_pb2.StateRows(keys=keys, values=values).SerializeToString()
            parts.append(compute_pb2.PartitionRows(partition=partition, rows=rows))
        dirty.clear()
        if parts:
            delta = compute_pb2.Delta(
                generation=generation, epoch=epoch, partitions=parts
            )
            stream.send(compute_pb2.ComputeRequest(delta=delta))
        ack = compute_pb2.BarrierAck(generation=generation, epoch=epoch)
        stream.send(compute_pb2.ComputeRequest(barrier_ack=ack))


class RawSink:
    """Keeps outputs in memory, with their position: exactly once, for a test."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self._history = b""

    def serve(self, peer: Peer, tamper: Tamper | None = None) -> None:
        """Attach, and write in a thread until the stream ends."""
        stream = peer.attach("Sink", tamper, sink="counts", guarantee=3)
        _in_thread(self._write, stream)

    def _write(self, stream: Stream) -> None:
        generation = 0
        while True:
            message = stream.receive(FOREVER_S)
            kind = message.WhichOneof("message")
            if kind == "open":
                generation = message.open.generation
                has_any = bool(self.lines)
                self._history = message.open.history
                position = sink_pb2.SinkPosition(
                    history=self._history if has_any else b"", sequence=len(self.lines)
                )
                opened = sink_pb2.SinkOpened(generation=generation, durable=position)
                stream.send(sink_pb2.SinkRequest(opened=opened))
            elif kind == "input" and message.input.generation == generation:
                self._append(message.input)
                progress = sink_pb2.Progress(
                    generation=generation, sequence=len(self.lines)
                )
                stream.send(sink_pb2.SinkRequest(progress=progress))

    def _append(self, item: sink_pb2.SinkInput) -> None:
        values = batch_pb2.Records.FromString(item.records).values
        assert len(values) == item.count
        assert item.first_sequence <= len(self.lines) + 1, "a gap"
        have = len(self.lines) + 1 - item.first_sequence
        self.lines += [value.decode() for value in values[have:]]


def once(tamper: Tamper, kind: str, number: int = 1) -> Tamper:
    """Return a tamper for the `number`-th message of a kind; others pass."""
    seen = iter(range(1, 1 << 30))

    def apply(message: Any) -> Iterator[Any]:
        if message.WhichOneof("message") == kind and next(seen) == number:
            yield from tamper(message)
        else:
            yield message

    return apply


def _in_thread(work: Any, stream: Stream) -> None:
    def run() -> None:
        try:
            work(stream)
        except EndOfStreamError:
            pass

    threading.Thread(target=run, daemon=True).start()
