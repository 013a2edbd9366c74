"""The loops that drive the machines of the roles over their data streams.

Each role runs in one thread; user code runs there and nowhere else. A loop takes all
messages that have arrived, then does one unit of work: so a reset is seen between two
batches, and gRPC's threads have their turn.
"""

import contextlib
import queue
import time
from collections.abc import Callable
from typing import Protocol

import grpc

from bettong.connector import Source
from bettong.errors import SourceError
from bettong.runtime import limits
from bettong.runtime.compute import ComputeMachine
from bettong.runtime.link import Link, Signal
from bettong.runtime.session import Busy
from bettong.runtime.sink import SinkMachine
from bettong.runtime.source import SourceMachine
from bettong.runtime.wire_errors import connector_error
from bettong_proto.plugin.v1 import compute_pb2, sink_pb2, source_pb2

ComputeLink = Link[compute_pb2.ComputeRequest, compute_pb2.ComputeResponse]
SourceLink = Link[source_pb2.SourceRequest, source_pb2.SourceResponse]
SinkLink = Link[sink_pb2.SinkRequest, sink_pb2.SinkResponse]

# How long a stream that is ended in good order waits for the engine's side.
END_TIMEOUT_S = 0.5


class Role(Protocol):
    """A role instance with its data stream."""

    name: str
    busy: Busy

    def attach(self, channel: grpc.Channel, session_id: bytes) -> None:
        """Open the data stream and offer the role."""

    def run(self) -> Signal:
        """Work until the stream ends or the role is told to stop; say which.

        Raises:
            ProtocolError: the engine broke the contract.
        """

    def signal(self, signal: Signal) -> None:
        """Tell the role something, from any thread."""

    def end_status(self) -> tuple[grpc.StatusCode | None, str]:
        """Return how the stream ended."""

    def close(self, *, is_session_lost: bool) -> None:
        """Release what the role holds of the outside world."""


def now_ms() -> int:
    """Return a monotonic clock."""
    return int(time.monotonic() * 1000)


class ComputeRole:
    """All stages of the plan."""

    def __init__(self, make_machine: Callable[[], ComputeMachine]) -> None:
        self.name = "compute"
        self.busy = Busy(step=self.name)
        self._make_machine = make_machine
        self._machine = make_machine()
        self._link: ComputeLink | None = None

    def attach(self, channel: grpc.Channel, session_id: bytes) -> None:
        """Open the data stream; the cache of an earlier one is gone."""
        self._machine = self._make_machine()
        self._link = Link(
            channel,
            "Compute",
            compute_pb2.ComputeRequest.SerializeToString,
            compute_pb2.ComputeResponse.FromString,
        )
        self._link.send(self._machine.attach(session_id))

    def run(self) -> Signal:
        """Work until the end; the machine says what is to be done."""
        assert self._link is not None, "attach comes first"
        machine, inbox, send_all = self._machine, self._link.inbox, self._link.send_all
        busy = self.busy
        while True:
            has_work = machine.has_work()
            try:
                while True:
                    message = inbox.get(block=not has_work)
                    if isinstance(message, Signal):
                        if message is not Signal.DRAIN:
                            return message
                        continue
                    send_all(machine.on_message(message))
                    has_work = machine.has_work()
                    if has_work and inbox.empty():
                        break
            except queue.Empty:
                pass
            busy.since_s = time.monotonic()
            send_all(machine.step())
            busy.since_s = 0.0

    def signal(self, signal: Signal) -> None:
        """Tell the role something, from any thread."""
        if self._link is not None:
            self._link.inbox.put(signal)

    def end_status(self) -> tuple[grpc.StatusCode | None, str]:
        """Return how the stream ended."""
        return _status_of(self._link)

    def close(self, *, is_session_lost: bool) -> None:
        """End the data stream."""
        if self._link is not None:
            self._link.close(0.0 if is_session_lost else END_TIMEOUT_S)


class SourceRole:
    """One source of the plan."""

    def __init__(
        self,
        machine: SourceMachine,
        connector: Source,
        on_drained: Callable[[], None],
    ) -> None:
        self.name = f"source {machine.name}"
        self.busy = Busy(step=self.name)
        self._machine = machine
        self._connector = connector
        self._on_drained = on_drained
        self._was_drained = False
        self._is_started = False
        self._link: SourceLink | None = None

    def attach(self, channel: grpc.Channel, session_id: bytes) -> None:
        """Open the data stream; frames of an earlier one stay in memory."""
        self._link = Link(
            channel,
            "Source",
            source_pb2.SourceRequest.SerializeToString,
            source_pb2.SourceResponse.FromString,
        )
        self._link.send(self._machine.attach(session_id))

    def run(self) -> Signal:
        """Start the connector, then read and send until the end."""
        assert self._link is not None, "attach comes first"
        link, machine = self._link, self._machine
        ended = self._start(link)
        while ended is None:
            ended = self._take_messages(link, 0.0)
            if ended is not None:
                break
            self.busy.since_s = time.monotonic()
            sent = machine.step(now_ms())
            self.busy.since_s = 0.0
            self._tell_drained()
            if sent:
                link.send_all(sent)
            elif machine.has_unsent() or not machine.is_waiting_for_records():
                # Only the engine can change this: credit, a commit, a reset.
                timeout_s = limits.STREAMS_INTERVAL_MS / 1000
                ended = self._take_messages(link, timeout_s)
            elif machine.is_lingering(now_ms()):
                ended = self._take_messages(link, limits.LINGER_MS / 2000)
            elif link.inbox.empty():
                self._connector.wait(limits.SOURCE_WAIT_MS / 1000)
        return ended

    def signal(self, signal: Signal) -> None:
        """Tell the role something, from any thread."""
        if self._link is not None:
            self._link.inbox.put(signal)

    def end_status(self) -> tuple[grpc.StatusCode | None, str]:
        """Return how the stream ended."""
        return _status_of(self._link)

    def close(self, *, is_session_lost: bool) -> None:
        """Close the readers and the connector, unless another session may follow."""
        if self._link is not None:
            self._link.close(0.0 if is_session_lost else END_TIMEOUT_S)
        if not is_session_lost:
            self._machine.close()
            if self._is_started:
                self._is_started = False
                # The process ends; nothing can be done about it.
                with contextlib.suppress(Exception):
                    self._connector.stop()

    def _start(self, link: SourceLink) -> Signal | None:
        """Start the connector, again and again; return a signal to end, or None."""
        delay_ms = limits.RETRY_DELAY_MS_MIN
        while not self._is_started:
            try:
                self._connector.start()
                self._is_started = True
            except SourceError as error:
                where = f"starting {self.name}"
                link.send(
                    source_pb2.SourceRequest(error=connector_error(error, where=where))
                )
                if not error.is_retryable:
                    delay_ms = limits.RETRY_DELAY_MS_MAX
                ended = self._take_messages(link, delay_ms / 1000)
                if ended is not None:
                    return ended
                delay_ms = min(2 * delay_ms, limits.RETRY_DELAY_MS_MAX)
        return None

    def _take_messages(self, link: SourceLink, timeout_s: float) -> Signal | None:
        """Take all messages there are, after waiting for the first; or a signal."""
        inbox = link.inbox
        try:
            message = inbox.get(block=timeout_s > 0, timeout=timeout_s or None)
            while True:
                if message is Signal.DRAIN:
                    self._machine.drain()
                elif isinstance(message, Signal):
                    return message
                else:
                    link.send_all(self._machine.on_message(message, now_ms()))
                message = inbox.get_nowait()
        except queue.Empty:
            return None

    def _tell_drained(self) -> None:
        if not self._was_drained and self._machine.is_drained():
            self._was_drained = True
            self._on_drained()


class SinkRole:
    """One sink of the plan."""

    def __init__(self, machine: SinkMachine) -> None:
        self.name = f"sink {machine.name}"
        self.busy = Busy(step=self.name)
        self._machine = machine
        self._link: SinkLink | None = None

    def attach(self, channel: grpc.Channel, session_id: bytes) -> None:
        """Open the data stream."""
        self._link = Link(
            channel,
            "Sink",
            sink_pb2.SinkRequest.SerializeToString,
            sink_pb2.SinkResponse.FromString,
        )
        self._link.send(self._machine.attach(session_id))

    def run(self) -> Signal:
        """Write and flush until the end."""
        assert self._link is not None, "attach comes first"
        link, machine = self._link, self._machine
        inbox = link.inbox
        while True:
            try:
                message = inbox.get(
                    block=not machine.has_work(now_ms()), timeout=self._timeout_s()
                )
                while True:
                    if message is Signal.DRAIN:
                        pass
                    elif isinstance(message, Signal):
                        return message
                    else:
                        link.send_all(machine.on_message(message, now_ms()))
                    message = inbox.get_nowait()
            except queue.Empty:
                pass
            if machine.has_work(now_ms()):
                self.busy.since_s = time.monotonic()
                link.send_all(machine.step(now_ms(), is_more_waiting=not inbox.empty()))
                self.busy.since_s = 0.0

    def signal(self, signal: Signal) -> None:
        """Tell the role something, from any thread."""
        if self._link is not None:
            self._link.inbox.put(signal)

    def end_status(self) -> tuple[grpc.StatusCode | None, str]:
        """Return how the stream ended."""
        return _status_of(self._link)

    def close(self, *, is_session_lost: bool) -> None:
        """Close the writers; without a session nothing may be written any more."""
        if is_session_lost:
            self._machine.stop_writing()
        else:
            self._machine.close()
        if self._link is not None:
            self._link.close(0.0 if is_session_lost else END_TIMEOUT_S)

    def _timeout_s(self) -> float | None:
        wake_ms = self._machine.wake_at_ms()
        if wake_ms is None:
            return None
        return max(0.001, (wake_ms - now_ms()) / 1000)


def _status_of(
    link: ComputeLink | SourceLink | SinkLink | None,
) -> tuple[grpc.StatusCode | None, str]:
    return (None, "") if link is None else (link.status, link.details)
