"""The limits of a worker."""

from dataclasses import dataclass, field

from bettong_engine.core.dataflow import FlowLimits


@dataclass(frozen=True, slots=True)
class WorkerLimits:
    """Bounds of a worker. Half of either of the first two asks for a cut.

    uncommitted_bytes_max: of frames in the open epoch. output_log_bytes_max: of
    outputs that targets do not have; at it no new read is let in.
    progress_delay_ms_max: how long a target's progress may wait to be recorded.
    """

    flow: FlowLimits = field(default_factory=FlowLimits)
    uncommitted_bytes_max: int = 64 << 20
    output_log_bytes_max: int = 256 << 20
    progress_delay_ms_max: int = 1000
