"""A source written on messages alone: the plainest that keeps the protocol.

It remembers its reads as records, and makes batches of them anew for every replay.
"""

from collections import deque
from dataclasses import dataclass, field
from zlib import crc32

from bettong_engine.sim.options import SimOptions
from bettong_engine.sim.outside import Outside, UpstreamError
from bettong_engine.sim.port import serialized
from bettong_engine.sim.workload import Record, shape_of
from bettong_proto.plugin.v1 import application_pb2, batch_pb2, error_pb2, source_pb2

Channel = tuple[int, int]
RETRY_MS = 100


@dataclass(slots=True)
class _Read:
    records: list[Record]
    # b"": a mark, which tells of an end without records.
    position: bytes
    is_end: bool
    size: int = 0


@dataclass(slots=True)
class _Stream:
    name: str
    targets: list[int]
    next_offset: int
    base: bytes | None
    memory: list[_Read] = field(default_factory=list)
    unsent: deque[_Read] = field(default_factory=deque)
    parts: deque[batch_pb2.Batch] = field(default_factory=deque)
    is_mid_read: bool = False
    frames: int = 0
    has_ended: bool = False
    watermark_us: int | None = None


class ReferenceSource:
    """One source. `process` names the process for the connections it accepts."""

    role = "source"

    def __init__(
        self, options: SimOptions, name: str, outside: Outside, process: int
    ) -> None:
        self._options = options
        self._name = name
        self._outside = outside
        self._process = process
        self._edges = shape_of(options).source_edges
        self._streams: dict[str, _Stream] = {}
        self._found: dict[str, None] = {}
        self._is_complete = False
        self._was_found_told = False
        self._generation = 0
        self._is_held = False
        self._routes: dict[int, batch_pb2.Route] = {}
        self._initial = (0, 0)
        self._granted: dict[Channel, tuple[int, int]] = {}
        self._sent: dict[Channel, tuple[int, int]] = {}
        self._uncommitted = 0
        self._retry_at_ms = 0
        self._turn = 0

    def attach(self) -> list[bytes]:
        """Begin a session; frames stay in memory."""
        self._generation = 0
        self._was_found_told = False
        kind = application_pb2.STREAM_KIND_SHARED
        if self._options.is_local:
            kind = application_pb2.STREAM_KIND_LOCAL
        attach = source_pb2.SourceAttach(source=self._name, kind=kind)
        return serialized([source_pb2.SourceRequest(attach=attach)])

    def on_session_lost(self) -> None:
        """Wait for the next session."""

    def on_crash(self) -> None:
        """End the connections."""
        self._outside.on_process_gone(self._process)

    def wake_at_ms(self) -> int | None:
        """Return when to try again."""
        return self._retry_at_ms

    def on_message(self, data: bytes, now_ms: int) -> list[bytes]:
        """Take a message of the engine."""
        message = source_pb2.SourceResponse.FromString(data)
        sent: list[source_pb2.SourceRequest] = []
        match message.WhichOneof("message"):
            case "reset":
                sent = self._on_reset(message.reset)
            case "open_stream":
                opened = message.open_stream
                if opened.generation == self._generation:
                    sent = self._resume(opened.stream, list(opened.targets))
            case "committed":
                for position in message.committed.streams:
                    self._on_committed(position)
            case "hold":
                self._is_held = message.hold.held
            case None:
                assert message.credits, "an empty message"
            case other:
                raise AssertionError(f"unexpected {other}")
        for credit in message.credits:
            channel = (credit.output, credit.target)
            records, size = self._granted.get(channel, self._initial)
            self._granted[channel] = (
                max(records, credit.records),
                max(size, credit.bytes),
            )
        return serialized(sent)

    def step(self, now_ms: int, *, is_more_waiting: bool) -> list[bytes] | None:
        """Tell of streams, send a frame, or read."""
        if not (self._is_complete and self._was_found_told):
            sent = self._tell_found()
            if sent:
                return serialized(sent)
        if not self._generation or now_ms < self._retry_at_ms:
            return None
        streams = list(self._streams.values())
        # A read that was begun goes on before any other begins (S-11).
        streams = [s for s in streams if s.is_mid_read] or streams
        self._turn += 1
        for place in range(len(streams)):
            stream = streams[(self._turn + place) % len(streams)]
            try:
                frames = self._send(stream) or self._read(stream)
            except UpstreamError as error:
                self._retry_at_ms = now_ms + RETRY_MS
                wire = error_pb2.Error(
                    error_class=error_pb2.ERROR_CLASS_RETRYABLE,
                    code=error_pb2.ERROR_CODE_SOURCE_UNAVAILABLE,
                    message=str(error),
                    stream=stream.name,
                )
                return serialized([source_pb2.SourceRequest(error=wire)])
            if frames:
                return serialized(frames)
        return None

    def _tell_found(self) -> list[source_pb2.SourceRequest]:
        names, is_complete = self._outside.find(self._name, self._process)
        new = [n for n in names if n not in self._found]
        self._found.update(dict.fromkeys(new))
        if self._was_found_told and not new and not is_complete:
            return []
        if not self._was_found_told:
            new = list(self._found)
        self._was_found_told = True
        self._is_complete = is_complete
        found = source_pb2.StreamsFound(streams=new, complete=is_complete)
        return [source_pb2.SourceRequest(streams_found=found)]

    def _on_reset(
        self, reset: source_pb2.SourceReset
    ) -> list[source_pb2.SourceRequest]:
        self._generation = reset.generation
        self._is_held = False
        self._routes = {route.output: route for route in reset.routes}
        self._initial = (reset.credit_records, reset.credit_bytes)
        self._granted.clear()
        self._sent.clear()
        named = {position.stream for position in reset.streams}
        for name in [n for n in self._streams if n not in named]:
            self._forget(name)
        done = source_pb2.SourceResetDone(generation=reset.generation)
        sent = [source_pb2.SourceRequest(reset_done=done)]
        targets = list(reset.stream_targets)
        each = sum(not edge.key and edge.stage is not None for edge in self._edges)
        for place, position in enumerate(reset.streams):
            mine = targets[place * each : (place + 1) * each]
            sent += self._resume(position, mine)
        return sent

    def _resume(
        self, named: source_pb2.StreamPosition, targets: list[int]
    ) -> list[source_pb2.SourceRequest]:
        if named.ended:
            self._forget(named.stream)
            return []
        position = named.position if named.HasField("position") else None
        stream = self._streams.get(named.stream)
        is_known = stream is not None and (
            position == stream.base
            or any(position == read.position for read in stream.memory)
        )
        if stream is None or not is_known:
            assert stream is None or not self._options.is_local, "a connection is lost"
            self._forget(named.stream)
            watermark = named.watermark_us if named.HasField("watermark_us") else None
            stream = _Stream(
                named.stream, targets, int(position or b"0"), position, [], deque()
            )
            stream.watermark_us = watermark
            self._streams[named.stream] = stream
        else:
            self._on_committed(named)
            stream.targets = targets
            stream.unsent = deque(stream.memory)
            stream.parts.clear()
            stream.is_mid_read = False
            stream.frames = 0
        opened = source_pb2.StreamOpened(
            generation=self._generation, stream=named.stream, reopened=not is_known
        )
        return [source_pb2.SourceRequest(stream_opened=opened)]

    def _on_committed(self, named: source_pb2.StreamPosition) -> None:
        stream = self._streams.get(named.stream)
        if stream is None:
            return
        if named.HasField("position"):
            places = [
                i for i, r in enumerate(stream.memory) if r.position == named.position
            ]
            if places:
                for read in stream.memory[: places[-1] + 1]:
                    self._uncommitted -= read.size
                del stream.memory[: places[-1] + 1]
                stream.base = named.position
        if named.ended:
            self._forget(named.stream)

    def _forget(self, name: str) -> None:
        stream = self._streams.pop(name, None)
        if stream is not None:
            self._uncommitted -= sum(read.size for read in stream.memory)
            if self._options.is_local:
                self._outside.close(self._name, name)
                self._found.pop(name, None)

    def _read(self, stream: _Stream) -> list[source_pb2.SourceRequest]:
        is_full = self._uncommitted >= self._options.uncommitted_bytes_max
        if self._is_held or is_full or stream.has_ended or stream.unsent:
            return []
        records, is_end = self._outside.read(
            self._name, stream.name, stream.next_offset, process=self._process
        )
        stream.next_offset += len(records)
        stream.has_ended = is_end
        position = b"%d" % stream.next_offset if records else b""
        read = _Read(records, position, is_end)
        stream.memory.append(read)
        stream.unsent.append(read)
        return self._send(stream)

    def _send(self, stream: _Stream) -> list[source_pb2.SourceRequest]:
        """Send one frame of the oldest unsent read, a batch at a time."""
        if not stream.unsent:
            return []
        read = stream.unsent[0]
        if not stream.is_mid_read:
            if self._is_held and read.records:
                return []
            is_over = self._uncommitted >= self._options.uncommitted_bytes_max
            if read.records and not read.size and is_over:
                return []
            stream.parts = deque(self._batches(stream, read.records))
            if not all(map(self._may_send, stream.parts)):
                return []
        frame = source_pb2.Frame(
            generation=self._generation, stream=stream.name, number=stream.frames + 1
        )
        is_free = stream.is_mid_read and len(stream.parts) == 1
        if stream.parts:
            batch = stream.parts[0]
            if not is_free and not self._may_send(batch):
                return []
            stream.parts.popleft()
            frame.batches.append(batch)
            self._spend(batch)
        if read.records and self._options.has_event_time:
            stream.watermark_us = max(
                stream.watermark_us or 0, read.records[-1].time_us
            )
        if not read.size:
            # Counted with its first frame, once and for all.
            read.size = max(1, sum(len(r.value) for r in read.records))
            self._uncommitted += read.size
        stream.frames += 1
        stream.is_mid_read = bool(stream.parts)
        frame.more = stream.is_mid_read
        frame.idle = not self._options.has_event_time
        if stream.watermark_us is not None:
            frame.watermark_us = stream.watermark_us
        if not frame.more:
            stream.unsent.popleft()
            frame.position = read.position
            frame.end = read.is_end
            frame.records_read = len(read.records)
        return [source_pb2.SourceRequest(frame=frame)]

    def _batches(self, stream: _Stream, records: list[Record]) -> list[batch_pb2.Batch]:
        batches: list[batch_pb2.Batch] = []
        unkeyed = iter(stream.targets)
        for number, edge in enumerate(self._edges):
            groups: dict[int, list[Record]] = {}
            if edge.stage is None:
                groups = {0: records}
            elif not edge.key:
                groups = {next(unkeyed): records}
            else:
                table = self._routes[number].targets
                for record in records:
                    target = table[crc32(record.key) % len(table)]
                    groups.setdefault(target, []).append(record)
            for target in sorted(groups):
                some = groups[target]
                size = self._options.batch_records
                for begin in range(0, len(some), size):
                    part = some[begin : begin + size]
                    batches.append(self._batch(number, target, part, bool(edge.key)))
        return batches

    def _batch(
        self, output: int, target: int, records: list[Record], is_keyed: bool
    ) -> batch_pb2.Batch:
        columns = batch_pb2.Records(values=[r.value for r in records])
        if is_keyed:
            columns.keys.extend(r.key for r in records)
        if self._options.has_event_time:
            columns.event_time_us.extend(r.time_us for r in records)
        return batch_pb2.Batch(
            output=output,
            target=target,
            count=len(records),
            records=columns.SerializeToString(),
        )

    def _may_send(self, batch: batch_pb2.Batch) -> bool:
        channel = (batch.output, batch.target)
        granted = self._granted.get(channel, self._initial)
        sent = self._sent.get(channel, (0, 0))
        return sent[0] < granted[0] and sent[1] < granted[1]

    def _spend(self, batch: batch_pb2.Batch) -> None:
        channel = (batch.output, batch.target)
        records, size = self._sent.get(channel, (0, 0))
        self._sent[channel] = (records + batch.count, size + len(batch.records))
