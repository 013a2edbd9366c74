"""The source boundary of a worker: where records enter an epoch.

Every frame is stamped whole with the open epoch. A read that goes on over several
frames is never cut: once a cut is asked for, reads that are under way are finished,
frames that begin new ones wait, and then the epoch ends here.
"""

from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from bettong_engine.core.alignment import Mark
from bettong_engine.core.delta import StreamState
from bettong_engine.core.ids import WATERMARK_END_US, Epoch
from bettong_engine.errors import ProtocolError


@dataclass(frozen=True, slots=True)
class SourceBatch:
    """Records of a frame for one output and target."""

    output: int
    target: int
    count: int
    records: bytes
    is_ungrouped: bool = False


@dataclass(frozen=True, slots=True)
class Frame:
    """A read of a source, a part of one, or a mark. See proto: Frame."""

    stream: str
    number: int
    batches: tuple[SourceBatch, ...]
    more: bool = False
    position: bytes = b""
    watermark_us: int | None = None
    is_idle: bool = False
    is_end: bool = False
    records_read: int = 0
    bytes: int = 0
    # By the policy "skip", in steps fused into the source.
    records_skipped: int = 0

    @property
    def is_mark(self) -> bool:
        """Tell whether it only says watermark, idle or end."""
        return not (self.more or self.position)


@dataclass(frozen=True, slots=True)
class Stamp:
    """Send the batches of the frame on, as part of `epoch`."""

    source: str
    frame: Frame
    epoch: Epoch


@dataclass(frozen=True, slots=True)
class EndEpoch:
    """The epoch ends at this boundary: barriers go out; streams moved to `streams`.

    marks: what the barrier into each stage that sources feed carries.
    """

    epoch: Epoch
    streams: tuple[StreamState, ...]
    marks: Mapping[int, Mark]


Effect = Stamp | EndEpoch


@dataclass(slots=True)
class _Stream:
    state: StreamState
    is_local: bool
    # Of frames as they arrive.
    last_number: int = 0
    is_arriving: bool = False
    has_end_arrived: bool = False
    # Of frames as they are stamped.
    is_mid_read: bool = False


class SourceBoundary:
    """Invariant: no read begins while a cut waits, but begun ones are finished.

    Streams are named (source, stream). `open_epoch` is the one being filled.
    """

    def __init__(self, open_epoch: Epoch, feeders: Mapping[int, Sequence[str]]) -> None:
        self.open_epoch = open_epoch
        # The sources that feed each stage, for stages that have some.
        self._feeders = feeders
        # Of frames stamped into the open epoch.
        self.open_bytes = 0
        self._streams: dict[tuple[str, str], _Stream] = {}
        self._moved: dict[tuple[str, str], None] = {}
        self._complete: dict[str, bool] = {}
        self._parked: deque[tuple[str, Frame]] = deque()
        # The last epoch whose end was asked for.
        self._cut_to = Epoch(0)
        self._is_held = False
        # A source said that its list of streams is final: barriers must tell.
        self._is_mark_new = False

    @property
    def _is_cutting(self) -> bool:
        return self.open_epoch <= self._cut_to

    def add_source(self, source: str, *, is_complete: bool = False) -> None:
        """Know of a source; `is_complete`: no further stream of it will appear."""
        if is_complete and not self._complete.get(source, False):
            self._is_mark_new = True
        self._complete[source] = is_complete or self._complete.get(source, False)

    def add_stream(self, state: StreamState, *, is_local: bool) -> None:
        """Know of a stream, at its committed position."""
        self._streams[state.source, state.stream] = _Stream(
            state, is_local, has_end_arrived=state.is_ended
        )

    def appear(self, source: str, stream: str, *, is_local: bool) -> None:
        """Know of a stream that was never seen; its appearance is worth a commit."""
        self.add_stream(StreamState(source, stream, is_idle=True), is_local=is_local)
        self._moved[source, stream] = None

    def knows(self, source: str, stream: str) -> bool:
        """Tell whether the stream has been added."""
        return (source, stream) in self._streams

    def has_work(self) -> bool:
        """Tell whether the open epoch holds something to commit."""
        return bool(self._moved) or self._is_mark_new

    def is_exhausted(self) -> bool:
        """Tell whether every source is complete and all its streams have ended."""
        return all(self._complete.values()) and all(
            s.state.is_ended for s in self._streams.values()
        )

    def open_streams(self, source: str) -> list[str]:
        """Return the streams of a source that have not ended."""
        return [
            name
            for (owner, name), s in self._streams.items()
            if owner == source and not s.state.is_ended
        ]

    def on_frame(self, source: str, frame: Frame) -> list[Effect]:
        """Stamp a frame, or keep it until the epoch that it may enter is open.

        Raises:
            ProtocolError: the stream is unknown or has ended, or a frame is missing.
        """
        self._check(source, frame)
        if self._parked or not self._may_enter(source, frame):
            self._parked.append((source, frame))
            return self._let_in()
        stamp = self._stamp(source, frame)
        return [stamp, *self._let_in()] if self._is_cutting else [stamp]

    def end_stream(self, source: str, stream: str) -> list[Effect]:
        """End a stream where it is: its client is gone for good."""
        known = self._streams[source, stream]
        known.is_mid_read = False
        known.has_end_arrived = True
        known.state = replace(known.state, is_ended=True, is_idle=True)
        self._moved[source, stream] = None
        return self._let_in()

    def ask_cut(self, epoch: Epoch) -> list[Effect]:
        """End all epochs up to `epoch`, each as soon as no read is under way.

        A later cut may be asked for while an earlier one waits for a read to end.
        """
        self._cut_to = max(self._cut_to, epoch)
        return self._let_in()

    def hold(self, is_held: bool) -> list[Effect]:
        """Let no new read in, or again."""
        self._is_held = is_held
        return self._let_in()

    def mark_of(self, sources: Iterable[str]) -> Mark:
        """Return the watermark of the channel that these sources feed.

        The least over their streams that are neither idle nor ended; the end of
        time once all are complete and have ended.
        """
        wanted = set(sources)
        streams = [s for (owner, _), s in self._streams.items() if owner in wanted]
        running = [s.state for s in streams if not s.state.is_ended]
        if not running and all(self._complete.get(s, False) for s in wanted):
            return Mark(WATERMARK_END_US)
        awake = [s.watermark_us for s in running if not s.is_idle]
        if not awake:
            return Mark(is_idle=True)
        if None in awake:
            return Mark()
        return Mark(min(w for w in awake if w is not None))

    def _check(self, source: str, frame: Frame) -> None:
        known = self._streams.get((source, frame.stream))
        where = f"source {source!r}, stream {frame.stream!r}"
        if known is None:
            raise ProtocolError("PROTOCOL", f"{where}: frame of a stream never named")
        if known.has_end_arrived:
            raise ProtocolError("PROTOCOL", f"{where}: frame after the end")
        if frame.number != known.last_number + 1:
            raise ProtocolError(
                "PROTOCOL",
                f"{where}: frame {frame.number} follows frame {known.last_number}",
            )
        if frame.more and (frame.position or frame.is_end):
            raise ProtocolError(
                "PROTOCOL", f"{where}: a frame with `more` has a position or an end"
            )
        if frame.is_mark and frame.batches:
            raise ProtocolError(
                "PROTOCOL", f"{where}: a frame has batches, but no position nor `more`"
            )
        if frame.is_mark and frame.is_end and known.is_arriving:
            raise ProtocolError("PROTOCOL", f"{where}: the end comes inside a read")
        known.last_number = frame.number
        known.has_end_arrived = frame.is_end
        if not frame.is_mark:
            known.is_arriving = frame.more

    def _may_enter(self, source: str, frame: Frame) -> bool:
        if frame.is_mark or self._streams[source, frame.stream].is_mid_read:
            return True
        return not (self._is_cutting or self._is_held)

    def _stamp(self, source: str, frame: Frame) -> Stamp:
        known = self._streams[source, frame.stream]
        self._moved[source, frame.stream] = None
        self.open_bytes += frame.bytes
        if not frame.is_mark:
            known.is_mid_read = frame.more
        old = known.state
        marks = [m for m in (old.watermark_us, frame.watermark_us) if m is not None]
        known.state = StreamState(
            old.source,
            old.stream,
            frame.position or old.position,
            frame.is_end,
            max(marks, default=None),
            frame.is_idle,
        )
        return Stamp(source, frame, self.open_epoch)

    def _let_in(self) -> list[Effect]:
        """Stamp parked frames that may enter now, keeping the order of a stream."""
        effects: list[Effect] = []
        progress = True
        while progress:
            progress = False
            waiting, self._parked = self._parked, deque()
            blocked: set[tuple[str, str]] = set()
            for source, frame in waiting:
                name = (source, frame.stream)
                if name in blocked or not self._may_enter(source, frame):
                    blocked.add(name)
                    self._parked.append((source, frame))
                else:
                    effects.append(self._stamp(source, frame))
            if ended := self._cut_if_possible():
                effects += ended
                progress = True
        return effects

    def _cut_if_possible(self) -> list[Effect]:
        if not self._is_cutting or any(s.is_mid_read for s in self._streams.values()):
            return []
        moved = []
        for name in self._moved:
            stream = self._streams[name]
            state = stream.state
            if state.is_ended and stream.is_local:
                state = replace(state, is_forgotten=True)
                del self._streams[name]
            moved.append(state)
        marks = {stage: self.mark_of(names) for stage, names in self._feeders.items()}
        ended = EndEpoch(self.open_epoch, tuple(moved), marks)
        self._moved.clear()
        self._is_mark_new = False
        self.open_epoch = Epoch(self.open_epoch + 1)
        self.open_bytes = 0
        return [ended]
