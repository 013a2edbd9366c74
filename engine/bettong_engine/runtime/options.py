"""How one engine is set up. Read once by the command line, passed down."""

from dataclasses import dataclass, field
from pathlib import Path

from bettong_engine.core.coordinator import CoordinatorLimits
from bettong_engine.core.limits import WorkerLimits
from bettong_engine.net.plugin_host import HostLimits
from bettong_engine.runtime.supervisor import PluginSpec

DURABILITIES = ("disk", "memory")


@dataclass(frozen=True, slots=True)
class EngineOptions:
    """Of one worker.

    data_dir: where state lives, locked while the engine runs; None: in
    `.bettong/<application>` below the current directory. durability: `disk`
    survives the engine, `memory` does not. listen: "unix:/path" or "127.0.0.1:port".
    tokens: of plugins that attach by hand. lock_wait_s: how long to wait for an
    engine that is just going away. is_finite: end when bounded input has ended; and
    when the application pauses, since nobody is there to resume it.
    """

    listen: str
    data_dir: Path | None = None
    durability: str = "disk"
    plugins: tuple[PluginSpec, ...] = ()
    tokens: tuple[str, ...] = ()
    lock_wait_s: float = 15.0
    is_finite: bool = False
    drop: tuple[str, ...] = ()
    rename: tuple[str, ...] = ()
    coordinator: CoordinatorLimits = field(default_factory=CoordinatorLimits)
    worker: WorkerLimits = field(default_factory=WorkerLimits)
    host: HostLimits = field(default_factory=HostLimits)

    def validate(self) -> list[str]:
        """Return every fault as a sentence."""
        faults = []
        if self.durability not in DURABILITIES:
            faults.append(
                f"durability is {self.durability!r}; it is one of"
                f" {', '.join(DURABILITIES)}"
            )
        if not self.listen.startswith("unix:") and not self.listen.startswith(
            ("127.", "localhost:", "[::1]:")
        ):
            faults.append(
                f"listen is {self.listen!r}: without TLS only a unix socket or a"
                " loopback address is served"
            )
        for name in ("epoch_interval_ms_min", "epochs_in_flight_max"):
            if getattr(self.coordinator, name) < 1:
                faults.append(f"{name} must be at least 1")
        if not 0 < self.coordinator.epoch_cpu_ratio_max <= 1:
            faults.append("epoch_cpu_ratio_max must be above 0 and at most 1")
        return faults
