"""What the engine double keeps in mind."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from bettong_proto.plugin.v1 import batch_pb2, compute_pb2, source_pb2

Channel = tuple[str, int, int]
TimerName = tuple[bytes, int, str]


@dataclass
class Options:
    """What a run varies."""

    credit_records: int = 40
    credit_bytes: int = 10_000
    batch_records: int = 5
    uncommitted_bytes_max: int = 2_000
    window_bytes: int = 500
    cut_ratio: float = 0.2
    has_two_targets: bool = True


@dataclass
class StageLink:
    """What the engine knows of one stage in this generation."""

    # Barriers of this epoch and before have been sent.
    barrier_sent: int
    acked: int
    is_fed_by_source: bool
    # Input of a source of the epoch after one that is being cut.
    parked: list[compute_pb2.StageInput] = field(default_factory=list)


@dataclass
class OpenEpoch:
    """What is not committed yet."""

    rows: dict[tuple[int, bytes], bytes | None] = field(default_factory=dict)
    timers: dict[tuple[int, TimerName], int | None] = field(default_factory=dict)
    outputs: dict[tuple[str, int], list[tuple[bytes, int]]] = field(
        default_factory=dict
    )
    positions: dict[tuple[str, str], source_pb2.StreamPosition] = field(
        default_factory=dict
    )
    watermarks: dict[tuple[str, str], int] = field(default_factory=dict)


def state_values(
    request: compute_pb2.StateGet, found: Sequence[bytes | None]
) -> Iterator[compute_pb2.ComputeResponse]:
    """Yield the answer to a request in messages of at most three rows."""
    rows = list(zip(request.keys, found, strict=True))
    for begin in range(0, len(rows), 3):
        part = rows[begin : begin + 3]
        yield compute_pb2.ComputeResponse(
            state_values=compute_pb2.StateValues(
                generation=request.generation,
                request=request.request,
                rows=batch_pb2.StateRows(
                    keys=[key for key, _ in part],
                    values=[value or b"" for _, value in part],
                    absent=[i for i, (_, value) in enumerate(part) if value is None],
                ),
                more=begin + 3 < len(rows),
            )
        )
