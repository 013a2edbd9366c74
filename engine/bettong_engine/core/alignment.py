"""Aligns barriers over the input channels of one stage on one instance.

Batches come tagged with their epoch. Those of the epoch that the stage is in pass;
those of later ones wait until every channel has delivered the barrier before them.
State taken at that instant holds the effect of every record before the barrier and
of none after it.

Relies on: a channel delivers in order and loses nothing within a generation.
Source: Carbone et al. 2015, arXiv:1506.08603 (ABS for acyclic dataflows).
"""

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass

from bettong_engine.core.ids import WATERMARK_END_US, Epoch
from bettong_engine.errors import ProtocolError


@dataclass(frozen=True, slots=True)
class InputBatch:
    """Records on their way into a stage.

    sender: the alignment channel that they came on. channel: the credit channel,
    echoed by the receiver; one sender may have several.
    """

    sender: int
    channel: int
    input: int
    count: int
    records: bytes


@dataclass(frozen=True, slots=True)
class Mark:
    """The watermark that a channel's barrier carries; idle: it holds nothing back."""

    watermark_us: int | None = None
    is_idle: bool = False


@dataclass(frozen=True, slots=True)
class Forward:
    """Give the batch to the stage now."""

    batch: InputBatch


@dataclass(frozen=True, slots=True)
class Align:
    """In this order: due timers to the stage, then the barrier of `epoch`."""

    epoch: Epoch
    mark: Mark


Effect = Forward | Align


class StageAligner:
    """Invariant: at most one barrier is out and not acked; none skips an epoch.

    `_epoch` is the epoch that the stage's input belongs to now.
    """

    def __init__(
        self, channels: Iterable[int], *, last_epoch: Epoch, watermark_us: int | None
    ) -> None:
        self._channels = tuple(channels)
        self._epoch = Epoch(last_epoch + 1)
        self._marks: dict[int, Mark] = {}
        # What came early, in order of arrival: batches, and marks by channel.
        self._parked: deque[tuple[Epoch, InputBatch | tuple[int, Mark]]] = deque()
        self._next_of = dict.fromkeys(self._channels, self._epoch)
        self._unacked: Epoch | None = None
        self._watermark_us = watermark_us
        # Carried by the barrier that went to the stage last.
        self.last_mark = Mark(watermark_us)

    @property
    def watermark_us(self) -> int | None:
        """Of the stage: the least of its inputs that are not idle; never falls."""
        return self._watermark_us

    def late_channels(self) -> list[int]:
        """Return the channels whose barrier is awaited, for status."""
        return [c for c in self._channels if c not in self._marks]

    def on_batch(self, batch: InputBatch, epoch: Epoch) -> list[Effect]:
        """Take a batch of `epoch`; return it now or after the barriers before it.

        Raises:
            ProtocolError: the channel has passed the barrier of that epoch.
        """
        if epoch < self._next_of[batch.sender]:
            raise ProtocolError("PROTOCOL", f"batch of closed epoch {epoch}")
        if epoch == self._epoch:
            return [Forward(batch)]
        self._parked.append((epoch, batch))
        return []

    def on_barrier(self, channel: int, epoch: Epoch, mark: Mark) -> list[Effect]:
        """Take the barrier of `epoch` from `channel`.

        Raises:
            ProtocolError: this is not the barrier due next on this channel.
        """
        if self._next_of.get(channel) != epoch:
            raise ProtocolError("PROTOCOL", f"barrier {epoch} out of order")
        self._next_of[channel] = Epoch(epoch + 1)
        if epoch != self._epoch:
            self._parked.append((epoch, (channel, mark)))
            return []
        self._marks[channel] = mark
        return self._advance()

    def on_ack(self, epoch: Epoch) -> list[Effect]:
        """Learn that the stage has finished `epoch`; the next barrier may go.

        Raises:
            ProtocolError: no barrier of that epoch is out.
        """
        if self._unacked != epoch:
            raise ProtocolError("PROTOCOL", f"ack of epoch {epoch} was not asked for")
        self._unacked = None
        return self._advance()

    def _advance(self) -> list[Effect]:
        effects: list[Effect] = []
        while self._unacked is None and len(self._marks) == len(self._channels):
            effects.append(self._align())
            parked, self._parked = self._parked, deque()
            for epoch, item in parked:
                if epoch != self._epoch:
                    self._parked.append((epoch, item))
                elif isinstance(item, InputBatch):
                    effects.append(Forward(item))
                else:
                    self._marks[item[0]] = item[1]
        return effects

    def _align(self) -> Align:
        marks = [m for m in self._marks.values() if not m.is_idle]
        if len(marks) < len(self._marks):
            # An input that has ended holds nothing back, but neither does it end
            # the time of those that are silent and may speak again.
            marks = [m for m in marks if m.watermark_us != WATERMARK_END_US]
        is_idle = not marks
        if marks and all(m.watermark_us is not None for m in marks):
            least = min(m.watermark_us or 0 for m in marks)
            if self._watermark_us is None or least > self._watermark_us:
                self._watermark_us = least
        self._unacked = self._epoch
        self._epoch = Epoch(self._epoch + 1)
        self._marks.clear()
        is_idle = is_idle and self._watermark_us != WATERMARK_END_US
        self.last_mark = Mark(self._watermark_us, is_idle)
        return Align(self._unacked, self.last_mark)
