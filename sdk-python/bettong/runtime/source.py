"""The source role: reads streams, sends frames, remembers them until committed.

Messages in, messages out. The connector is reached through its contract only
(`bettong.connector.Source`), so that a simulator can give another; the clock comes
in as an argument.
"""

import contextlib
from collections.abc import Sequence
from itertools import islice

from bettong.connector import Read, Source, StreamKind
from bettong.errors import ProtocolError, SourceError
from bettong.plan import FailurePolicy, Plan, SourcePlan
from bettong.program.columns import SizeLimits
from bettong.program.failure import RecordFailedError, SkippedRecord
from bettong.program.source import SourceProgram
from bettong.runtime import limits
from bettong.runtime.batches import OutputRoute, Router, make_batches
from bettong.runtime.credit import CreditLedger
from bettong.runtime.source_stream import (
    RememberedRead,
    SourceStream,
    StreamState,
    end_by_size,
)
from bettong.runtime.stage_runner import add_dead_letters
from bettong.runtime.wire_errors import connector_error, fatal_error, record_error
from bettong_proto.plugin.v1 import (
    application_pb2,
    batch_pb2,
    error_pb2,
    source_pb2,
)

_KINDS = {
    StreamKind.SHARED: application_pb2.STREAM_KIND_SHARED,
    StreamKind.LOCAL: application_pb2.STREAM_KIND_LOCAL,
}


class SourceMachine:
    """One source of a plan.

    Invariants: frames of a stream are sent in the order of their reads and numbered
    without gap in a generation. A read is in memory until it is committed. No new
    read begins while the source is held, draining, or over its limit of uncommitted
    bytes.
    """

    def __init__(
        self,
        plan: Plan,
        source: SourcePlan,
        *,
        sizes: SizeLimits,
        uncommitted_bytes_max: int = limits.UNCOMMITTED_BYTES_MAX,
        linger_ms: int = limits.LINGER_MS,
        position_bytes_max: int = limits.POSITION_BYTES_MAX,
        batch_records: int = limits.BATCH_RECORDS_TARGET,
    ) -> None:
        self._plan = source
        self._policy = plan.on_error
        self._sizes = sizes
        self._uncommitted_bytes_max = uncommitted_bytes_max
        self._linger_ms = linger_ms
        self._position_bytes_max = position_bytes_max
        self._batch_records = batch_records
        self._dead_letters = plan.dead_letter_outputs.get(source.name)
        sink_partitions = {sink.name: sink.connector.partitions for sink in plan.sinks}
        self._program = SourceProgram(
            source, policy=plan.on_error, sink_partitions=sink_partitions, limits=sizes
        )
        self._router = Router(source.outputs, sink_partitions)
        self._credit = CreditLedger()
        self._connector: Source = source.connector
        self._streams: dict[str, SourceStream] = {}
        self._found: dict[str, None] = {}
        self._is_complete = False
        self._was_found_sent = False
        self._streams_at_ms = 0
        self._generation = 0
        self._is_held = False
        self._is_draining = False
        self._uncommitted_bytes = 0
        self._turn = 0
        self._skipped: list[SkippedRecord] = []
        # The record that stopped a stream last; for callers in this process.
        self.failure: RecordFailedError | None = None

    @property
    def name(self) -> str:
        """Name of the source."""
        return self._plan.name

    @property
    def uncommitted_bytes(self) -> int:
        """Bytes of frames that were sent and are not committed."""
        return self._uncommitted_bytes

    def attach(self, session_id: bytes) -> source_pb2.SourceRequest:
        """Begin a data stream of a new session; frames stay in memory."""
        self._was_found_sent = False
        self._streams_at_ms = 0
        # Generations go on rising within one cluster; until the first reset of
        # this session nothing may be sent.
        self._generation = 0
        return source_pb2.SourceRequest(
            attach=source_pb2.SourceAttach(
                session_id=session_id,
                source=self._plan.name,
                kind=_KINDS[self._connector.kind],
            )
        )

    def drain(self) -> None:
        """Begin no new read from now on."""
        self._is_draining = True

    def is_drained(self) -> bool:
        """Return whether every read that was begun is sent whole."""
        return self._is_draining and not self.has_unsent()

    def is_waiting_for_records(self) -> bool:
        """Return whether a record or a new stream would be taken at once."""
        if self._is_held or self._is_draining or self._generation == 0:
            return False
        if self._uncommitted_bytes >= self._uncommitted_bytes_max:
            return False
        return not self._is_complete or any(
            stream.may_read for stream in self._streams.values()
        )

    def is_lingering(self, now_ms: int) -> bool:
        """Return whether a stream waits a moment, for more records in one read."""
        return any(
            stream.may_read and self._lingers(stream, now_ms)
            for stream in self._streams.values()
        )

    def has_unsent(self) -> bool:
        """Return whether a frame waits for credit, a commit or the end of a hold."""
        return any(stream.unsent for stream in self._streams.values())

    def close(self) -> None:
        """Close all readers."""
        for name in list(self._streams):
            self._forget(name)

    def on_message(
        self, message: source_pb2.SourceResponse, now_ms: int
    ) -> list[source_pb2.SourceRequest]:
        """Take a message of the engine; return what is to be sent at once.

        Raises:
            ProtocolError: the engine broke the contract; the session ends.
        """
        sent: list[source_pb2.SourceRequest] = []
        match message.WhichOneof("message"):
            case "reset":
                sent = self._on_reset(message.reset, now_ms)
            case "open_stream":
                sent = self._on_open_stream(message.open_stream, now_ms)
            case "close_stream":
                if self._is_current(message.close_stream.generation):
                    self._forget(message.close_stream.stream)
            case "committed":
                for position in message.committed.streams:
                    sent += self._on_committed(position, now_ms)
            case "hold":
                self._is_held = message.hold.held
            case None:
                if not message.credits:
                    raise ProtocolError(
                        "the engine sent a message of a kind that this SDK does not"
                        " know; it may only do so for capabilities in common"
                    )
        for credit in message.credits:
            self._credit.on_credit(credit)
        return sent

    def step(self, now_ms: int) -> list[source_pb2.SourceRequest]:
        """Do one unit of work: look for streams, open, send a frame, or read.

        Returns nothing if there is nothing to do now.
        """
        sent = self._look_for_streams(now_ms)
        if sent or self._generation == 0:
            return sent
        # A read that was begun is sent whole before any other begins (S-11): its
        # epoch cannot end before, and another's frame would take its credit meanwhile.
        begun = [s for s in self._streams.values() if s.parts_sent]
        # Each stream in turn, so that a busy one does not starve the others.
        streams = begun or list(self._streams.values())
        self._turn += 1
        begin = self._turn % len(streams) if streams else 0
        for stream in [*streams[begin:], *streams[:begin]]:
            sent = self._step_stream(stream, now_ms)
            if sent:
                return sent
        return []

    def _look_for_streams(self, now_ms: int) -> list[source_pb2.SourceRequest]:
        is_known = self._is_complete and self._was_found_sent
        if is_known or now_ms < self._streams_at_ms or self._is_draining:
            return []
        self._streams_at_ms = now_ms + limits.STREAMS_INTERVAL_MS
        names: Sequence[str] = ()
        if not self._is_complete:
            try:
                names, self._is_complete = self._connector.streams()
            except SourceError as error:
                return [self._error(connector_error(error, where=self._where()))]
            except Exception as error:  # a bug of the connector ends this source
                return [self._error(fatal_error(error, where=self._where()))]
        new = [name for name in names if name not in self._found]
        self._found.update(dict.fromkeys(new))
        if not self._was_found_sent:
            # The first of a session names all.
            new = list(self._found)
        elif not new and not self._is_complete:
            return []
        self._was_found_sent = True
        found = source_pb2.StreamsFound(streams=new, complete=self._is_complete)
        return [source_pb2.SourceRequest(streams_found=found)]

    def _on_reset(
        self, reset: source_pb2.SourceReset, now_ms: int
    ) -> list[source_pb2.SourceRequest]:
        if reset.generation <= self._generation:
            return []
        self._generation = reset.generation
        self._is_held = False
        self._router.on_reset(reset.routes)
        self._credit.reset(records=reset.credit_records, size=reset.credit_bytes)
        done = source_pb2.SourceResetDone(generation=reset.generation)
        sent = [source_pb2.SourceRequest(reset_done=done)]
        named = {position.stream: position for position in reset.streams}
        for name in list(self._streams):
            if name not in named:
                self._forget(name)
        targets = iter(reset.stream_targets)
        count = self._unkeyed_outputs()
        for position in named.values():
            routes = self._router.resolve(list(islice(targets, count)))
            sent += self._resume(position, routes, now_ms)
        return sent

    def _unkeyed_outputs(self) -> int:
        """Return how many outputs lead to stages that are not keyed."""
        return sum(
            edge.to_stage is not None and edge.key is None
            for edge in self._plan.outputs
        )

    def _on_open_stream(
        self, message: source_pb2.OpenStream, now_ms: int
    ) -> list[source_pb2.SourceRequest]:
        if not self._is_current(message.generation):
            return []
        routes = self._router.resolve(list(message.targets))
        return self._resume(message.stream, routes, now_ms)

    def _resume(
        self,
        named: source_pb2.StreamPosition,
        routes: list[OutputRoute],
        now_ms: int,
    ) -> list[source_pb2.SourceRequest]:
        """Go on with a stream from memory, or open it where the engine says."""
        name = named.stream
        if named.ended:
            return self._on_committed(named, now_ms)
        position = named.position if named.HasField("position") else None
        stream = self._streams.get(name)
        if stream is not None and stream.holds(position):
            sent = self._on_committed(named, now_ms)
            stream.replay(routes, self._sizes, self._batch_records)
            if stream.state is StreamState.STOPPED:
                stream.state = StreamState.OPENING
                if stream.reader is not None:
                    stream.state = StreamState.OPEN
            stream.retry_at_ms = now_ms
            if not stream.owes_opened:
                sent.append(self._opened(stream, is_reopened=False))
            return sent
        if stream is not None:
            self._forget(name)
            if self._connector.kind is StreamKind.LOCAL:
                return [self._lost_local(name)]
        watermark = named.watermark_us if named.HasField("watermark_us") else None
        self._streams[name] = SourceStream(name, routes, position, watermark)
        return []

    def _lost_local(self, name: str) -> source_pb2.SourceRequest:
        error = SourceError(
            f"local stream {name!r} cannot go on at the position that the engine"
            " names: its records are gone",
            is_retryable=False,
        )
        return self._error(connector_error(error, where=self._where(), stream=name))

    def _on_committed(
        self, named: source_pb2.StreamPosition, now_ms: int
    ) -> list[source_pb2.SourceRequest]:
        """Forget the frames up to a position, and tell the upstream."""
        sent: list[source_pb2.SourceRequest] = []
        stream = self._streams.get(named.stream)
        if stream is None:
            return sent
        if named.HasField("position"):
            forgotten = stream.forget_up_to(named.position)
            self._uncount(forgotten)
            if forgotten and stream.reader is not None:
                try:
                    stream.reader.committed(named.position)
                except Exception as error:  # reported by class; a bug stops it
                    sent.append(self._on_trouble(stream, error, now_ms))
        if named.ended:
            self._forget(named.stream)
        return sent

    def _forget(self, name: str) -> None:
        """Close a stream and drop its frames."""
        stream = self._streams.pop(name, None)
        if stream is not None:
            self._uncount(stream.memory)
            _close_reader(stream)
            if self._connector.kind is StreamKind.LOCAL:
                # It is never named again, nor may another session name it.
                self._found.pop(name, None)

    def _uncount(self, reads: Sequence[RememberedRead]) -> None:
        self._uncommitted_bytes -= sum(read.size for read in reads if read.was_counted)

    def _step_stream(
        self, stream: SourceStream, now_ms: int
    ) -> list[source_pb2.SourceRequest]:
        sent: list[source_pb2.SourceRequest] = []
        if stream.state is StreamState.OPENING and now_ms >= stream.retry_at_ms:
            sent = self._open(stream, now_ms)
        if not sent and stream.unsent and not stream.owes_opened:
            sent = self._send_frame(stream, stream.unsent[0])
        if not sent and stream.may_read and self._may_begin_read():
            if self._lingers(stream, now_ms):
                return []
            sent = self._read(stream, now_ms)
        return sent

    def _lingers(self, stream: SourceStream, now_ms: int) -> bool:
        return self._uncommitted_bytes > 0 and now_ms < stream.lingers_until_ms

    def _may_begin_read(self) -> bool:
        if self._is_held or self._is_draining:
            return False
        return self._uncommitted_bytes < self._uncommitted_bytes_max

    def _open(
        self, stream: SourceStream, now_ms: int
    ) -> list[source_pb2.SourceRequest]:
        try:
            # An empty position means the same as none: nothing was read yet.
            stream.reader = self._connector.open(stream.name, stream.position or None)
        except Exception as error:  # reported by class; a bug stops the stream
            return [self._on_trouble(stream, error, now_ms)]
        stream.state = StreamState.OPEN
        stream.retry_delay_ms = 0
        stream.last_record_ms = now_ms
        if not stream.owes_opened:
            return []
        stream.owes_opened = False
        return [self._opened(stream, is_reopened=True)]

    def _on_trouble(
        self, stream: SourceStream, error: Exception, now_ms: int
    ) -> source_pb2.SourceRequest:
        """Close the reader; open it again later, or stop the stream."""
        _close_reader(stream)
        if not isinstance(error, SourceError):
            stream.state = StreamState.STOPPED
            fatal = fatal_error(error, where=self._where(), stream=stream.name)
            return self._error(fatal)
        if not error.is_retryable:
            stream.state = StreamState.STOPPED
        else:
            stream.state = StreamState.OPENING
            stream.retry_delay_ms = min(
                max(limits.RETRY_DELAY_MS_MIN, 2 * stream.retry_delay_ms),
                limits.RETRY_DELAY_MS_MAX,
            )
            stream.retry_at_ms = now_ms + stream.retry_delay_ms
        return self._error(
            connector_error(error, where=self._where(), stream=stream.name)
        )

    def _read(
        self, stream: SourceStream, now_ms: int
    ) -> list[source_pb2.SourceRequest]:
        assert stream.reader is not None, "an open stream has a reader"
        read = stream.failed_read
        stream.failed_read = None
        if read is None:
            try:
                read = stream.reader.read()
            except Exception as error:  # reported by class; a bug stops the stream
                return [self._on_trouble(stream, error, now_ms)]
        if read is None or not (
            read.records or read.end or read.position != stream.position
        ):
            return self._mark_idle(stream, now_ms)
        problem = self._position_problem(stream, read)
        if problem:
            broken = SourceError(problem, is_retryable=False)
            return [self._on_trouble(stream, broken, now_ms)]
        try:
            remembered = self._work(stream, read)
        except RecordFailedError as failure:
            return [self._on_failure(stream, read, failure)]
        if read.records:
            stream.last_record_ms = now_ms
        if len(read.records) < limits.LINGER_RECORDS:
            stream.lingers_until_ms = now_ms + self._linger_ms
        stream.remember(remembered)
        return self._send_frame(stream, remembered)

    def _position_problem(self, stream: SourceStream, read: Read) -> str:
        size = len(read.position)
        if size > self._position_bytes_max:
            return (
                f"the connector gave a position of {size} bytes, the engine takes"
                f" {self._position_bytes_max}"
            )
        if read.records and (not size or read.position == stream.position):
            return (
                "the connector gave records with"
                f" {'the same position as before' if size else 'an empty position'}:"
                " a position must tell what was read"
            )
        return ""

    def _work(self, stream: SourceStream, read: Read) -> RememberedRead:
        """Run the fused steps on a read. Raises `RecordFailedError`."""
        self._skipped.clear()
        columns, latest_us = self._program.run(read.records, self._skipped.append)
        skipped = len(self._skipped)
        if skipped and self._dead_letters is not None:
            add_dead_letters(
                columns[self._dead_letters],
                self._skipped,
                self._plan.outputs[self._dead_letters].codec.encode,
                stream=stream.name,
                position=read.position,
            )
        batches: list[batch_pb2.Batch] = []
        for route, column in zip(stream.routes, columns, strict=True):
            batches += make_batches(column, route, self._sizes, self._batch_records)
        if latest_us is not None:
            watermark = latest_us - self._plan.out_of_order_us
            if stream.watermark_us is None or watermark > stream.watermark_us:
                stream.watermark_us = watermark
        stream.is_idle = self._plan.event_time is None
        is_same = read.position == stream.position
        return RememberedRead(
            position=b"" if is_same else read.position,
            batches=batches,
            watermark_us=stream.watermark_us,
            is_idle=stream.is_idle,
            is_end=read.end,
            records_read=len(read.records),
            records_skipped=skipped if self._policy is FailurePolicy.SKIP else 0,
        )

    def _mark_idle(
        self, stream: SourceStream, now_ms: int
    ) -> list[source_pb2.SourceRequest]:
        """Say once that a stream with event time has become silent."""
        if self._plan.event_time is None or stream.is_idle:
            return []
        if now_ms - stream.last_record_ms < self._plan.idle_after_ms:
            return []
        stream.is_idle = True
        mark = RememberedRead(b"", [], stream.watermark_us, is_idle=True)
        stream.remember(mark)
        return self._send_frame(stream, mark)

    def _on_failure(
        self, stream: SourceStream, read: Read, failure: RecordFailedError
    ) -> source_pb2.SourceRequest:
        """Stop before a read with a record on which user code failed."""
        self.failure = failure
        stream.state = StreamState.STOPPED
        stream.failed_read = read
        error = record_error(failure, owner=self._plan.name)
        error.stream = stream.name
        error.position = read.position
        return self._error(error)

    def _send_frame(
        self, stream: SourceStream, read: RememberedRead
    ) -> list[source_pb2.SourceRequest]:
        """Send the next part of a read, if its credit allows."""
        begin = stream.parts_sent
        is_mark = not read.position and not read.batches
        if self._is_held and begin == 0 and not is_mark:
            return []
        end = self._end_of_frame(read, begin)
        if end is None:
            return []
        if not read.was_counted:
            read.was_counted = True
            self._uncommitted_bytes += read.size
        batches = read.batches[begin:end]
        for batch in batches:
            self._credit.spend(batch)
        stream.frames_sent += 1
        frame = source_pb2.Frame(
            generation=self._generation,
            stream=stream.name,
            number=stream.frames_sent,
            batches=batches,
            idle=read.is_idle,
        )
        if read.watermark_us is not None:
            frame.watermark_us = read.watermark_us
        if end < len(read.batches):
            frame.more = True
            stream.parts_sent = end
        else:
            frame.position = read.position
            frame.end = read.is_end
            frame.records_read = read.records_read
            frame.records_skipped = read.records_skipped
            stream.unsent.popleft()
            stream.parts_sent = 0
        return [source_pb2.SourceRequest(frame=frame)]

    def _end_of_frame(self, read: RememberedRead, begin: int) -> int | None:
        """Return where the next frame of a read ends; None: it has to wait.

        The first frame of a new read waits for the limit of uncommitted bytes, and
        for credit on all channels of the read, since the last of several waits for
        nothing; those between wait for credit on their own. Several batches of a
        channel go into one frame only as far as each may be sent after the one before.
        """
        count = len(read.batches)
        if begin == count:
            return count
        is_over = self._uncommitted_bytes >= self._uncommitted_bytes_max
        if begin == 0 and is_over and not read.was_counted:
            return None
        if begin == 0 and not all(map(self._has_credit, read.batches)):
            return None
        by_size = end_by_size(read.batches, begin)
        if begin > 0 and by_size == count:
            return count
        end = begin
        spent: dict[tuple[int, int], tuple[int, int]] = {}
        while end < by_size:
            batch = read.batches[end]
            channel = (batch.output, batch.target)
            records, size = spent.get(channel, (0, 0))
            if not self._credit.may_send(channel, records=records, size=size):
                break
            spent[channel] = (records + batch.count, size + len(batch.records))
            end += 1
        return None if end == begin else end

    def _has_credit(self, batch: batch_pb2.Batch) -> bool:
        return self._credit.may_send((batch.output, batch.target))

    def _is_current(self, generation: int) -> bool:
        if generation > self._generation > 0:
            raise ProtocolError(
                f"a message of generation {generation} before its reset; the last was"
                f" {self._generation}"
            )
        return generation == self._generation

    def _opened(
        self, stream: SourceStream, *, is_reopened: bool
    ) -> source_pb2.SourceRequest:
        return source_pb2.SourceRequest(
            stream_opened=source_pb2.StreamOpened(
                generation=self._generation, stream=stream.name, reopened=is_reopened
            )
        )

    def _error(self, error: error_pb2.Error) -> source_pb2.SourceRequest:
        return source_pb2.SourceRequest(error=error)

    def _where(self) -> str:
        return f"source {self._plan.name!r}"


def _close_reader(stream: SourceStream) -> None:
    if stream.reader is not None:
        # A reader that cannot even close has nothing more to lose.
        with contextlib.suppress(Exception):
            stream.reader.close()
        stream.reader = None
