"""`bettong`: run, serve and look after applications."""

import asyncio
import json
import sys
from pathlib import Path
from typing import Annotated, TypeVar, cast

import grpc
import typer
from google.protobuf.json_format import MessageToDict
from google.protobuf.message import Message
from rich.console import Console

from bettong_engine import __version__
from bettong_engine.cli import init as init_command
from bettong_engine.cli.config import load_config
from bettong_engine.cli.live import LineBoard, screen, show_plain
from bettong_engine.cli.locate import find_address
from bettong_engine.cli.run import command_of, plugins_of, report_end, run
from bettong_engine.cli.serve import serve
from bettong_engine.core.coordinator import CoordinatorLimits
from bettong_engine.errors import BettongError
from bettong_engine.net.admin import call
from bettong_engine.observe import configure_logging
from bettong_engine.runtime.options import EngineOptions
from bettong_proto.admin.v1 import admin_pb2

Answer = TypeVar("Answer", bound=Message)

app = typer.Typer(
    name="bettong",
    help="Stateful stream processing: exactly once, in any language.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

DataDir = Annotated[
    Path | None,
    typer.Option(help="Where state lives. Default: .bettong/<application>."),
]


@app.command(
    "run",
    context_settings={"allow_extra_args": True, "allow_interspersed_args": False},
)
def run_command(
    program: Annotated[
        list[str],
        typer.Argument(help="A Python file or an executable, and its arguments."),
    ],
    computes: Annotated[int, typer.Option(help="Computation processes.")] = 1,
    data_dir: DataDir = None,
    durability: Annotated[
        str,
        typer.Option(help="disk: survives a crash of the engine. memory: does not."),
    ] = "disk",
    drop: Annotated[
        list[str] | None,
        typer.Option(help="Give up what is stored under this name, for good."),
    ] = None,
    rename: Annotated[
        list[str] | None, typer.Option(help="OLD=NEW: what is stored goes on as NEW.")
    ] = None,
    epoch_interval_ms: Annotated[
        int, typer.Option(help="Least time between two epochs.")
    ] = CoordinatorLimits().epoch_interval_ms_min,
    log_level: Annotated[str, typer.Option(help="debug, info or warning.")] = "",
    live: Annotated[
        bool | None,
        typer.Option("--live/--plain", help="One screen, or log lines."),
    ] = None,
) -> None:
    """Run a program to its end: a private engine with its plugin processes."""
    is_live = sys.stderr.isatty() if live is None else live
    configure_logging(
        level=log_level or ("warning" if is_live else "info"), as_json=False
    )
    options = EngineOptions(
        listen="",
        data_dir=data_dir,
        durability=durability,
        plugins=plugins_of(command_of(program), computes, is_live=is_live),
        is_finite=True,
        drop=tuple(drop or ()),
        rename=tuple(rename or ()),
        coordinator=CoordinatorLimits(epoch_interval_ms_min=epoch_interval_ms),
    )
    raise typer.Exit(run(options, is_live=is_live))


@app.command("engine")
def engine_command(
    config: Annotated[Path, typer.Option(help="A TOML file, see the documentation.")],
    log_level: Annotated[str, typer.Option(help="debug, info or warning.")] = "info",
) -> None:
    """Serve an application whose plugins are named in a file or attach by hand."""
    configure_logging(level=log_level)
    options = load_config(config)
    board = LineBoard(is_live=False)
    end = asyncio.run(
        serve(
            options,
            on_line=board.on_line,
            watch=lambda engine: asyncio.create_task(show_plain(engine)),
        )
    )
    raise typer.Exit(report_end(end))


@app.command()
def status(
    data_dir: DataDir = None,
    as_json: Annotated[bool, typer.Option("--json", help="For programs.")] = False,
) -> None:
    """Show how a running engine stands."""
    answer = _ask(
        data_dir, "Status", admin_pb2.StatusRequest(), admin_pb2.StatusResponse
    )
    if as_json:
        fields = MessageToDict(
            answer,
            preserving_proto_field_name=True,
            always_print_fields_with_no_presence=True,
        )
        typer.echo(json.dumps(fields, indent=2))
        return
    Console().print(screen(answer))


@app.command()
def resume(data_dir: DataDir = None) -> None:
    """Go on after a pause whose cause is mended."""
    _ask(data_dir, "Resume", admin_pb2.ResumeRequest(), admin_pb2.ResumeResponse)


@app.command()
def drain(data_dir: DataDir = None) -> None:
    """Commit what there is, then stop the engine."""
    _ask(data_dir, "Drain", admin_pb2.DrainRequest(), admin_pb2.DrainResponse)


@app.command()
def init(
    directory: Annotated[
        Path, typer.Argument(help="Made if it is not there.")
    ] = Path(),
) -> None:
    """Write a small project that runs."""
    init_command.write_project(directory)


@app.command()
def version() -> None:
    """Print the version."""
    typer.echo(__version__)


def _ask(
    data_dir: Path | None, method: str, request: Message, response: type[Answer]
) -> Answer:
    address = find_address(data_dir)
    try:
        return cast(Answer, call(address, method, request, response))
    except grpc.RpcError as error:
        typer.echo(
            f"bettong: the engine at {address} does not answer: {error.details()}",
            err=True,
        )
        raise typer.Exit(1) from error


def main() -> None:
    """Run the command line; errors for people, without a traceback."""
    if not __debug__:
        sys.exit("bettong: do not run with python -O: assertions guard your data")
    try:
        app()
    except BettongError as error:
        sys.exit(f"bettong: {error}")


if __name__ == "__main__":
    main()
