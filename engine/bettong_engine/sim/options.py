"""What one seed decides before anything runs: shape, sizes, speeds, faults.

Swarm testing: every seed leaves most faults out and turns some up, so that rare
combinations come about without being drowned.
"""

from dataclasses import dataclass, replace
from random import Random

SHAPES = ("line", "relay", "diamond", "head", "fork", "twin")

FAULTS = (
    "plugin_crash",
    "session_break",
    "stall",
    "engine_crash",
    "store_trouble",
    "store_unknown",
    "sink_trouble",
    "instance_churn",
    "zombie_sink",
    "pause",
    "drain",
    "zombie_engine",
    "source_trouble",
    "late_message",
)


@dataclass(frozen=True, slots=True)
class SimOptions:
    """One schedule. Ratios are per step.

    records: of each stream. keys: of each stream. deletes_every, timers_every,
    refuses_every: 0 is never. local_sessions_survive: a process with connections
    dials again after it has lost its session, and goes on from memory.
    credit_records: of each channel. cache_keys: that a plugin may hold between
    epochs; 0 is all. speeds: how likely an action is taken when it is
    drawn.
    """

    seed: int
    shape: str = "line"
    partitions: int = 8
    sources: int = 1
    streams: int = 1
    is_local: bool = False
    local_sessions_survive: bool = False
    records: int = 30
    keys: int = 3
    records_a_read: int = 3
    has_event_time: bool = False
    late_streams: bool = False
    sink_partitions: int = 1
    sink_is_exact: bool = True
    computes: int = 1
    is_one_process: bool = False
    deletes_every: int = 0
    timers_every: int = 0
    refuses_every: int = 0
    credit_records: int = 65_536
    credit_bytes: int = 4 << 20
    batch_records: int = 8_000
    epochs_in_flight_max: int = 4
    output_log_bytes_max: int = 1 << 20
    uncommitted_bytes_max: int = 1 << 20
    snapshot_every: int = 0
    cache_keys: int = 0
    burst: int = 4
    fault_steps: int = 600
    heal_steps: int = 60_000
    faults: tuple[tuple[str, float], ...] = ()
    speeds: tuple[tuple[str, float], ...] = ()

    @property
    def fault_rates(self) -> dict[str, float]:
        """Of each fault that this schedule has."""
        return dict(self.faults)


def draw(seed: int) -> SimOptions:
    """Return the schedule of a seed."""
    rng = Random(seed)
    shape = rng.choice(SHAPES)
    is_tiny = rng.random() < 0.25
    is_small = rng.random() < 0.5
    options = SimOptions(
        seed,
        shape=shape,
        partitions=rng.choice((4, 8, 16)),
        sources=rng.choice((1, 1, 2)),
        streams=rng.randint(1, 3),
        is_local=rng.random() < 0.25,
        records=rng.randint(4, 12) if rng.random() < 0.3 else rng.randint(10, 40),
        keys=rng.choice((1, 2, 3, 6)),
        records_a_read=rng.choice((1, 2, 3, 5, 8)),
        has_event_time=rng.random() < 0.6,
        late_streams=rng.random() < 0.3,
        sink_partitions=rng.choice((1, 1, 2)),
        sink_is_exact=rng.random() < 0.8,
        computes=rng.choice((1, 1, 2, 3)),
        is_one_process=rng.random() < 0.15,
        deletes_every=rng.choice((0, 0, 3, 7)),
        timers_every=rng.choice((0, 2, 3)),
        refuses_every=rng.choice((0, 0, 5, 11)),
        snapshot_every=rng.choice((0, 1, 3, 9)),
        cache_keys=rng.choice((0, 0, 1, 3)),
        burst=rng.choice((1, 2, 4, 12)),
        fault_steps=rng.choice((150, 400, 800)),
        epochs_in_flight_max=rng.choice((1, 2, 4, 4)),
    )
    if is_tiny:
        options = replace(
            options,
            credit_records=rng.choice((1, 2, 4)),
            batch_records=rng.choice((1, 2)),
        )
    elif is_small:
        options = replace(
            options,
            credit_bytes=rng.choice((16, 64, 256)),
            batch_records=rng.choice((1, 3, 100)),
        )
    if rng.random() < 0.3:
        options = replace(
            options,
            output_log_bytes_max=rng.choice((64, 400, 2000)),
            uncommitted_bytes_max=rng.choice((50, 500)),
            # A full log waits for its target's progress, again and again.
            records=min(options.records, 12),
        )
    chosen = [name for name in FAULTS if rng.random() < 0.35]
    if rng.random() < 0.1:
        chosen = []
    faults = tuple((name, rng.choice((0.002, 0.006, 0.02))) for name in chosen)
    kinds = ("deliver", "receive", "step", "store", "tell", "time", "late")
    speeds = tuple((kind, rng.choice((1.0, 1.0, 0.4, 0.08))) for kind in kinds)
    return replace(options, faults=faults, speeds=speeds)
