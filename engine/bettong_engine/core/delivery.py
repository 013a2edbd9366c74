"""Delivers the committed outputs of one sink partition to its plugin.

Opens the target in every generation anew (so that it can fence off writers of
older ones), compares what it holds with the log, and sends on from there. Nobody
waits for a sink: until it is open, outputs stay in the log.
"""

from dataclasses import dataclass
from enum import Enum

from bettong_engine.core.ids import Generation, InstanceId
from bettong_engine.core.messages import Cause
from bettong_engine.core.output_log import NumberedBatch, OutputLog
from bettong_engine.errors import ProtocolError

# Bytes on the way to a plugin before it reports them durable.
WINDOW_BYTES = 8 << 20


@dataclass(frozen=True, slots=True)
class Open:
    """Ask the plugin to fence, read its position and open."""

    instance: InstanceId
    sink_partition: int
    generation: Generation


@dataclass(frozen=True, slots=True)
class Close:
    """Ask the plugin to close the partition."""

    instance: InstanceId
    sink_partition: int
    generation: Generation


@dataclass(frozen=True, slots=True)
class Deliver:
    """Send a committed batch."""

    instance: InstanceId
    sink_partition: int
    generation: Generation
    batch: NumberedBatch


@dataclass(frozen=True, slots=True)
class SkipOutput:
    """Tell the plugin to move its position past a refused output."""

    instance: InstanceId
    sink_partition: int
    generation: Generation
    sequence: int


@dataclass(frozen=True, slots=True)
class Quarantine:
    """Put the refused output into the open epoch as a dead letter, with its mark."""

    sequence: int
    cause: Cause


@dataclass(frozen=True, slots=True)
class Blocked:
    """Only the operator can decide how this sink goes on."""

    cause: Cause


Effect = Open | Close | Deliver | SkipOutput | Quarantine | Blocked


class DeliveryState(Enum):
    """Where the delivery of one sink partition stands."""

    # No plugin offers the sink.
    ABSENT = "absent"
    OPENING = "opening"
    OPEN = "open"
    # The target is in trouble and the plugin keeps trying.
    RETRYING = "retrying"
    # An output was refused; its dead letter is not committed yet.
    REFUSED = "refused"
    # SINK_FOREIGN, SINK_AHEAD, SINK_GAP or a fatal error: the operator decides.
    BLOCKED = "blocked"


class Delivery:
    """Invariant: what was sent and not reported fits the window, but for one batch."""

    def __init__(self, log: OutputLog, history: bytes) -> None:
        self.log = log
        self.state = DeliveryState.ABSENT
        self.last_error: Cause | None = None
        self._history = history
        self._instance: InstanceId | None = None
        self._generation = Generation(0)
        self._sent_to = 0
        # (last sequence, bytes) of batches on their way, in order.
        self._on_way: list[tuple[int, int]] = []
        self._refused: int | None = None

    @property
    def has_delivered_all(self) -> bool:
        """Tell whether every committed output is durable in the target."""
        return self.log.durable >= self.log.committed_to

    def on_attached(self, instance: InstanceId, generation: Generation) -> list[Effect]:
        """Use this plugin from now on."""
        self._instance = instance
        return self.on_generation(generation)

    def on_lost(self) -> list[Effect]:
        """Wait for another plugin."""
        self._instance = None
        self.state = DeliveryState.ABSENT
        return []

    def on_generation(self, generation: Generation) -> list[Effect]:
        """Close what older generations opened, and open with the new fence."""
        self._generation = generation
        self._on_way.clear()
        self._refused = None
        self._sent_to = 0
        if self._instance is None:
            return []
        self.state = DeliveryState.OPENING
        where = (self._instance, self.log.sink_partition, generation)
        return [Close(*where), Open(*where)]

    def on_opened(
        self, generation: Generation, position: tuple[bytes, int] | None
    ) -> list[Effect]:
        """Compare the target's (history, sequence) with the log; None: unknown."""
        if generation != self._generation or self.state in (
            DeliveryState.ABSENT,
            DeliveryState.BLOCKED,
        ):
            return []
        log = self.log
        cause = None if position is None else self._position_fault(*position)
        if cause is not None:
            return self._block(cause)
        if position is not None:
            log.durable = max(log.durable, position[1])
        self._on_way.clear()
        self._sent_to = log.durable if position is None else position[1]
        refused = self._refused
        if refused is not None and self._sent_to < refused not in log.skipped:
            # Opened again after trouble: its dead letter is still on the way.
            self.state = DeliveryState.REFUSED
            return []
        self._refused = None
        self.state = DeliveryState.OPEN
        self.last_error = None
        effects: list[Effect] = []
        if self._sent_to + 1 in log.skipped:
            effects += self._skip(self._sent_to + 1)
        return effects + self._fill()

    def on_committed(self) -> list[Effect]:
        """Send what a commit has released."""
        effects: list[Effect] = []
        refused = self._refused
        if self.state is DeliveryState.REFUSED and refused in self.log.skipped:
            assert refused is not None
            self._refused = None
            self.state = DeliveryState.OPEN
            if self._sent_to + 1 == refused:
                effects += self._skip(refused)
        return effects + self._fill()

    def on_progress(self, generation: Generation, sequence: int) -> list[Effect]:
        """Learn that the target holds everything up to `sequence`.

        Raises:
            ProtocolError: it reports more than it was sent.
        """
        if generation != self._generation:
            return []
        if sequence > self._sent_to:
            raise ProtocolError(
                "PROTOCOL",
                f"sink {self.log.sink!r} reports {sequence}, was sent {self._sent_to}",
            )
        self.log.durable = max(self.log.durable, sequence)
        self._on_way = [item for item in self._on_way if item[0] > sequence]
        return self._fill()

    def on_refused(
        self, generation: Generation, sequence: int, cause: Cause
    ) -> list[Effect]:
        """Quarantine an output that the target will never take."""
        if generation != self._generation or self.state is not DeliveryState.OPEN:
            return []
        # All that was sent after it is sent again after the skip.
        self._on_way.clear()
        # What was durable or skipped before comes again to a target that cannot say
        # where it stands; its mark may be trimmed.
        if sequence in self.log.skipped or sequence <= self.log.durable:
            return [*self._skip(sequence), *self._fill()]
        if self.log.batch_of(sequence) is None:
            raise ProtocolError(
                "PROTOCOL",
                f"sink {self.log.sink!r} refuses {sequence}, which it was not sent",
            )
        self.state = DeliveryState.REFUSED
        self._refused = sequence
        self._sent_to = sequence - 1
        self.last_error = cause
        return [Quarantine(sequence, cause)]

    def on_error(
        self, generation: Generation, cause: Cause, *, is_retryable: bool
    ) -> list[Effect]:
        """Learn of trouble; a plugin that retries says `opened` when it is over."""
        if generation != self._generation or self.state in (
            DeliveryState.ABSENT,
            DeliveryState.BLOCKED,
        ):
            return []
        if not is_retryable:
            found = self._block(cause)
            # Fenced by a newer writer: that one goes on, nobody has to decide.
            return [] if cause.code == "FENCED" else found
        self.state = DeliveryState.RETRYING
        self.last_error = cause
        return []

    def _position_fault(self, history: bytes, sequence: int) -> Cause | None:
        log = self.log
        where = f"sink {log.sink!r}, sink partition {log.sink_partition}"
        if sequence and history != self._history:
            return Cause(
                "SINK_FOREIGN",
                f"{where}: the target was written by another history"
                f" ({history.hex() or 'none'}, ours is {self._history.hex()}), up to"
                f" {sequence}; use a fresh target or restore the matching state",
            )
        if sequence > log.committed_to:
            return Cause(
                "SINK_AHEAD",
                f"{where}: the target holds outputs up to {sequence}, but only"
                f" {log.committed_to} are committed here: the engine's state is older"
                " than the target; restore newer state or use a fresh target",
            )
        if sequence < log.trimmed_to:
            return Cause(
                "SINK_GAP",
                f"{where}: the target holds outputs up to {sequence}, those up to"
                f" {log.trimmed_to} are no longer kept here: the target is older than"
                " the engine's state; restore the target or use a fresh one with a"
                " fresh application",
            )
        return None

    def _block(self, cause: Cause) -> list[Effect]:
        self.state = DeliveryState.BLOCKED
        self.last_error = cause
        return [Blocked(cause)]

    def _skip(self, sequence: int) -> list[Effect]:
        assert self._instance is not None
        self._sent_to = sequence
        where = (self._instance, self.log.sink_partition, self._generation)
        return [SkipOutput(*where, sequence)]

    def _fill(self) -> list[Effect]:
        """Send what fits the window; a batch is sent from its first record."""
        if self.state is not DeliveryState.OPEN or self._instance is None:
            return []
        effects: list[Effect] = []
        room = WINDOW_BYTES - sum(size for _, size in self._on_way)
        where = (self._instance, self.log.sink_partition, self._generation)
        for numbered in self.log.batches_after(self._sent_to):
            if room <= 0:
                break
            size = len(numbered.batch.records)
            effects.append(Deliver(*where, numbered))
            self._sent_to = numbered.last_sequence
            self._on_way.append((numbered.last_sequence, size))
            room -= size
        return effects
