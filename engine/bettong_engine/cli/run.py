"""`bettong run`: a private engine and the plugins of one program."""

import asyncio
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import structlog
from rich.console import Console

from bettong_engine.cli.live import LineBoard, show_live, show_plain
from bettong_engine.cli.serve import serve
from bettong_engine.errors import ConfigError
from bettong_engine.runtime.ending import Ending, EngineEnd
from bettong_engine.runtime.options import EngineOptions
from bettong_engine.runtime.supervisor import PluginSpec

log = structlog.get_logger()

SOURCE, COMPUTE, SINK = 1, 2, 3
COMPUTES_MAX = 256


def command_of(program: Sequence[str]) -> tuple[str, ...]:
    """Return the command that starts a program: a Python file, or an executable.

    Raises:
        ConfigError: there is no such program.
    """
    if not program:
        raise ConfigError("name a program to run: a Python file or an executable")
    path = Path(program[0])
    if path.suffix == ".py":
        if not path.is_file():
            raise ConfigError(f"there is no file {path}")
        return (sys.executable, *program)
    if path.parent != Path():
        if not path.is_file():
            raise ConfigError(f"there is no file {path}")
        if not os.access(path, os.X_OK):
            raise ConfigError(f"{path} is neither a Python file nor executable")
    return tuple(program)


def plugins_of(
    command: tuple[str, ...], computes: int, *, is_live: bool
) -> tuple[PluginSpec, ...]:
    """Return the processes of a program: sources, computations, sinks.

    Three interpreters and three crash domains; the source inherits standard input,
    the sink standard output.
    """
    if not 1 <= computes <= COMPUTES_MAX:
        raise ConfigError(f"--computes is {computes}; it is 1 to {COMPUTES_MAX}")
    stdin, stdout = os.dup(0), os.dup(2 if is_live else 1)
    specs = [
        PluginSpec(
            "source",
            command,
            (SOURCE,),
            {"BETTONG_STDIN_FD": str(stdin)},
            (stdin,),
            has_whole_environment=True,
        ),
        PluginSpec(
            "sink",
            command,
            (SINK,),
            {"BETTONG_STDOUT_FD": str(stdout)},
            (stdout,),
            has_whole_environment=True,
        ),
    ]
    for number in range(computes):
        name = "compute" if computes == 1 else f"compute-{number + 1}"
        specs.append(PluginSpec(name, command, (COMPUTE,), has_whole_environment=True))
    return tuple(specs)


def run(options: EngineOptions, *, is_live: bool) -> int:
    """Run a program to its end and return the exit code.

    0: bounded input is processed, or the run was asked to stop. 1: it could not go
    on; the cause is on standard error.
    """
    board = LineBoard(is_live=is_live)

    def watch(engine: object) -> "asyncio.Task[None]":
        if is_live:
            return asyncio.create_task(show_live(engine, board))  # type: ignore[arg-type]
        return asyncio.create_task(show_plain(engine))  # type: ignore[arg-type]

    end = asyncio.run(serve(options, on_line=board.on_line, watch=watch))
    return report_end(end)


def report_end(end: EngineEnd) -> int:
    """Say how a run ended, and return the exit code."""
    log.info("engine_stopped", how=end.ending.value)
    if end.ending in (Ending.FINISHED, Ending.DRAINED):
        return 0
    console = Console(stderr=True, soft_wrap=True)
    verb = "is paused" if end.ending is Ending.PAUSED else "cannot run"
    if end.cause is not None:
        console.print(f"[bold red]bettong: the application {verb}[/]: ", end="")
        console.print(f"{end.cause.code}: {end.cause.message}", markup=False)
        if end.cause.detail:
            console.print(end.cause.detail, markup=False, style="dim")
    if end.cause is None or end.cause.code != "STATE_LOST":
        console.print("Nothing is lost: mend the cause and start again.", style="bold")
    return 1
