"""The live view of a run: one screen on a terminal, plain lines elsewhere."""

import asyncio
import sys
from collections import deque

import structlog
from rich.console import Console, Group
from rich.live import Live
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from bettong_engine.runtime.engine import Engine
from bettong_engine.runtime.status import status_of
from bettong_proto.admin.v1 import admin_pb2

log = structlog.get_logger()

REFRESH_S = 0.25
PLAIN_INTERVAL_S = 5.0
LINES_SHOWN = 8
# A call of user code that runs for less is nothing to look at.
BUSY_MS_SHOWN = 1_000

_COLOURS = {"running": "green", "paused": "red", "waiting": "yellow"}


class LineBoard:
    """What plugins print: kept for the screen, or passed on as it comes."""

    def __init__(self, *, is_live: bool) -> None:
        self.lines: deque[tuple[str, str]] = deque(maxlen=LINES_SHOWN)
        self._is_live = is_live

    def on_line(self, plugin: str, pipe: str, text: str) -> None:
        """Take a line of a plugin's standard output or standard error."""
        if self._is_live:
            self.lines.append((plugin, text))
        elif pipe == "stdout":
            sys.stdout.write(text + "\n")
            sys.stdout.flush()
        else:
            sys.stderr.write(f"[{plugin}] {text}\n")
            sys.stderr.flush()


async def show_live(engine: Engine, board: LineBoard) -> None:
    """Draw the screen until cancelled."""
    console = Console(stderr=True)
    with Live(console=console, auto_refresh=False, transient=False) as live:
        try:
            while True:
                live.update(screen(status_of(engine), board), refresh=True)
                await asyncio.sleep(REFRESH_S)
        finally:
            live.update(screen(status_of(engine), board), refresh=True)


async def show_plain(engine: Engine) -> None:
    """Log one line now and then until cancelled."""
    while True:
        await asyncio.sleep(PLAIN_INTERVAL_S)
        status = status_of(engine)
        log.info(
            "progress",
            state=status.state,
            epoch=status.committed_epoch,
            records_in=status.records_in,
            records_out=status.records_out,
            records_skipped=status.records_skipped,
            commit_latency_p50_ms=_latency(status, "p50"),
            commit_latency_p99_ms=_latency(status, "p99"),
        )


def screen(status: admin_pb2.StatusResponse, board: LineBoard | None = None) -> Panel:
    """Return the screen for a status."""
    head = Table.grid(padding=(0, 3))
    head.add_row(
        Text(status.state, style=f"bold {_COLOURS.get(status.state, 'cyan')}"),
        f"generation {status.generation}",
        f"epoch {status.committed_epoch}",
        f"{status.keys:,} keys",
        f"up {status.uptime_ms / 1000:.1f} s",
    )
    head.add_row(
        f"in {status.records_in_per_second:,.0f}/s",
        f"out {status.records_out_per_second:,.0f}/s",
        f"{status.epochs_per_second:,.1f} epochs/s",
        f"commit p50 {_latency(status, 'p50')} ms",
        f"p99 {_latency(status, 'p99')} ms",
    )
    parts: list[Table | Text] = [head, _flows(status)]
    if status.cause:
        parts.append(Text(status.cause, style="bold red"))
    if status.store_trouble:
        parts.append(Text(f"disk: {status.store_trouble}", style="bold red"))
    if board is not None:
        for plugin, text in board.lines:
            parts.append(Text(f"{plugin}: {text}", style="dim", overflow="ellipsis"))
    return Panel(Group(*parts), title=f"bettong · {status.application or 'starting'}")


def _flows(status: admin_pb2.StatusResponse) -> Table:
    table = Table(expand=False, box=None, padding=(0, 2))
    for column in ("", "name", "state", "progress", "backlog"):
        table.add_column(column)
    for source in status.sources:
        table.add_row(
            "source",
            source.name,
            "connected" if source.connected else "absent",
            f"{source.streams_open} open, {source.streams_ended} ended",
            "",
        )
    for sink in status.sinks:
        place = f"/{sink.partition}" if sink.partition else ""
        behind = sink.committed_sequence - sink.durable_sequence
        table.add_row(
            "sink",
            f"{sink.name}{place}",
            sink.state,
            f"{sink.durable_sequence:,} of {sink.committed_sequence:,}",
            f"{behind:,} records, {sink.backlog_bytes:,} bytes",
        )
    for plugin in status.plugins:
        is_stuck = plugin.busy_ms >= BUSY_MS_SHOWN
        busy = f"busy {plugin.busy_ms} ms in {plugin.busy_step}" if is_stuck else ""
        table.add_row(
            "plugin",
            plugin.name,
            f"pid {plugin.pid}",
            ", ".join(plugin.roles),
            f"{plugin.restarts} restarts {busy}".rstrip(),
        )
    return table


def _latency(status: admin_pb2.StatusResponse, which: str) -> str:
    name = f"commit_latency_{which}_ms"
    return str(getattr(status, name)) if status.HasField(name) else "-"  # type: ignore[arg-type]
