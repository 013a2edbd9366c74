"""Runs a program under a private engine: what `app.run()` does when started by hand.

The engine is a child process, told by its command line how to start this program
again, as its plugins. Nothing of the engine is imported here.
"""

import importlib.util
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from types import FrameType

from bettong.errors import LaunchError

ENGINE_PACKAGE = "bettong_engine"
ENGINE_MODULE = "bettong_engine.cli.main"
# Tells the engine which process to live and die with.
PARENT_VARIABLE = "BETTONG_PARENT_PID"

_FORWARDED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def run_embedded() -> int:
    """Run the engine on this program; return its exit code.

    SIGINT, SIGTERM and SIGHUP go on to the engine, which drains and ends. Must be
    called from the main thread, as signals are its affair.

    Raises:
        LaunchError: the engine is not installed, or this program cannot be started
            again from its command line.
    """
    if importlib.util.find_spec(ENGINE_PACKAGE) is None:
        raise LaunchError(
            "the engine is not installed beside this SDK: pip install bettong, or"
            " start the program with `bettong run`"
        )
    return supervise(engine_command(program_command(sys.orig_argv)))


def program_command(orig_argv: Sequence[str]) -> list[str]:
    """Return the command that starts this program again, with its arguments.

    Args:
        orig_argv: all arguments of the interpreter, `sys.orig_argv`: they tell
            `python app.py` from `python -m package`, and hold `-X` and `-W`.

    Raises:
        LaunchError: the program came from standard input or a prompt.
    """
    arguments = list(orig_argv[1:])
    if not _names_program(arguments):
        raise LaunchError(
            "app.run() starts this program again in other processes, but it came from"
            " a prompt or from standard input: put it into a file and run that"
        )
    return [sys.executable, *arguments]


def engine_command(program: Sequence[str]) -> list[str]:
    """Return the command that runs the engine on a program."""
    return [sys.executable, "-m", ENGINE_MODULE, "run", "--", *program]


def supervise(
    command: Sequence[str], environment: Mapping[str, str] | None = None
) -> int:
    """Run `command`, hand signals on to it, and return its exit code.

    A command killed by signal n returns 128 + n, as shells say it.
    """
    child_environment = {**(os.environ if environment is None else environment)}
    child_environment[PARENT_VARIABLE] = str(os.getpid())
    child: subprocess.Popen[bytes] | None = None
    early: list[int] = []

    def forward(number: int, _: FrameType | None) -> None:
        if child is None:
            early.append(number)
        elif number != signal.SIGINT or not _terminal_signals_us():
            child.send_signal(number)

    previous = {number: signal.signal(number, forward) for number in _FORWARDED}
    try:
        child = subprocess.Popen(command, env=child_environment)
        for number in early:
            child.send_signal(number)
        code = child.wait()
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
    return code if code >= 0 else 128 - code


def _terminal_signals_us() -> bool:
    """Return whether Ctrl-C reaches us and the engine at once.

    It goes to the whole foreground group of the terminal, the engine included; sent
    on as well, it would count as the second one, which asks not to wait.
    """
    try:
        terminal = os.open("/dev/tty", os.O_RDONLY | os.O_NOCTTY)
    except OSError:
        return False
    try:
        return os.tcgetpgrp(terminal) == os.getpgrp()
    except OSError:
        return False
    finally:
        os.close(terminal)


def _names_program(arguments: Sequence[str]) -> bool:
    """Return whether interpreter arguments name a file, a module or a command."""
    rest = iter(arguments)
    for argument in rest:
        if not argument.startswith("-"):
            return True
        if argument == "-":
            return False
        if argument == "--check-hash-based-pycs":
            next(rest, None)
        if argument.startswith("--"):
            continue
        for place, letter in enumerate(argument[1:], start=2):
            if letter in "cm":
                return True
            if letter in "WX":
                if place == len(argument):
                    next(rest, None)
                break
    return False
