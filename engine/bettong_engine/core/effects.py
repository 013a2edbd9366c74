"""What a worker asks its runtime to do, in order: durable before visible."""

from collections.abc import Sequence
from dataclasses import dataclass

from bettong_engine.core import delivery
from bettong_engine.core.dataflow import Grant, ToStage
from bettong_engine.core.delta import StoredDelta, StreamState, TimerColumns
from bettong_engine.core.ids import Epoch, Generation, InstanceId
from bettong_engine.core.messages import Cause, FromWorker
from bettong_engine.core.state_table import Row
from bettong_engine.core.topology import OutputSpec


@dataclass(frozen=True, slots=True)
class Route:
    """Where one output goes. targets: of each partition, for keyed stages."""

    output: int
    spec: OutputSpec
    targets: tuple[int, ...]
    sink_partitions: int


@dataclass(frozen=True, slots=True)
class StageAssignment:
    """A stage on an instance, with the partitions that it owns there."""

    stage: int
    partitions: tuple[int, ...]
    fresh_partitions: tuple[int, ...]
    routes: tuple[Route, ...]
    watermark_us: int | None


@dataclass(frozen=True, slots=True)
class ResetCompute:
    """Go back to `epoch` and take on the stages of the generation."""

    instance: InstanceId
    generation: Generation
    epoch: Epoch
    stages: tuple[StageAssignment, ...]
    processing_time_us: int


@dataclass(frozen=True, slots=True)
class ResetSource:
    """Go back to the committed positions of the streams, and replay from there."""

    instance: InstanceId
    generation: Generation
    epoch: Epoch
    routes: tuple[Route, ...]
    streams: tuple[StreamState, ...]
    # Targets of outputs to stages that are not keyed, per stream.
    targets: tuple[tuple[int, ...], ...]


@dataclass(frozen=True, slots=True)
class OpenStream:
    """Open a stream that has appeared."""

    instance: InstanceId
    generation: Generation
    stream: StreamState
    targets: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class NotifyCommitted:
    """Tell a source that these positions are committed."""

    instance: InstanceId
    epoch: Epoch
    streams: tuple[StreamState, ...]


@dataclass(frozen=True, slots=True)
class HoldSource:
    """Tell a source to begin no new read, or that it may again."""

    instance: InstanceId
    is_held: bool
    reason: str


@dataclass(frozen=True, slots=True)
class SendTimers:
    """Send timers that are due at the barrier that follows."""

    instance: InstanceId
    generation: Generation
    stage: int
    epoch: Epoch
    timers: TimerColumns


@dataclass(frozen=True, slots=True)
class SendBarrier:
    """End an epoch for a stage of an instance."""

    instance: InstanceId
    generation: Generation
    stage: int
    epoch: Epoch
    watermark_us: int | None
    is_idle: bool
    processing_time_us: int


@dataclass(frozen=True, slots=True)
class FoundRow:
    """An answer to one key of a StateGet; row None: there is none."""

    state: int
    key: bytes
    entry: bytes
    row: Row | None


@dataclass(frozen=True, slots=True)
class SendRows:
    """Answer a StateGet."""

    instance: InstanceId
    generation: Generation
    request: int
    rows: Sequence[FoundRow]


@dataclass(frozen=True, slots=True)
class ToSinkPlugin:
    """Send what the delivery of a sink partition asks for."""

    message: delivery.Open | delivery.Close | delivery.Deliver | delivery.SkipOutput


@dataclass(frozen=True, slots=True)
class StoreDeltas:
    """Keep the deltas of an epoch; then report `on_stored`."""

    generation: Generation
    epoch: Epoch
    deltas: tuple[StoredDelta, ...]


@dataclass(frozen=True, slots=True)
class TruncateStore:
    """Drop stored deltas of epochs after `epoch`."""

    epoch: Epoch


@dataclass(frozen=True, slots=True)
class Tell:
    """Send a message to the coordinator."""

    message: FromWorker


@dataclass(frozen=True, slots=True)
class DropInstance:
    """End a plugin's data stream, saying why."""

    instance: InstanceId
    cause: Cause


@dataclass(frozen=True, slots=True)
class EpochReport:
    """An epoch is committed: for metrics and logs. opened_ms: its first frame."""

    generation: Generation
    epoch: Epoch
    opened_ms: int | None
    flush_cpu_us: int
    records_read: int
    outputs: int
    output_bytes: int
    records_skipped: int = 0


Effect = (
    ResetCompute
    | ResetSource
    | OpenStream
    | NotifyCommitted
    | HoldSource
    | ToStage
    | Grant
    | SendTimers
    | SendBarrier
    | SendRows
    | ToSinkPlugin
    | StoreDeltas
    | TruncateStore
    | Tell
    | DropInstance
    | EpochReport
)
