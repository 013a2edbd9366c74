"""Runs the programs and the scripts of the examples."""

import subprocess
import sys
from pathlib import Path

from tests.e2e.yard import Yard

EXAMPLES = Path(__file__).parents[2] / "examples"


def run_to_end(yard: Yard, program: str, *arguments: object, computes: int = 1) -> None:
    """Run an example with `bettong run`; it ends by itself, with exit code 0."""
    options = ("--computes", computes, "--log-level", "warning")
    run = yard.run(EXAMPLES / program, *arguments, options=options)
    assert run.ends() == 0, run


def script(name: str, *arguments: object, stdin: str = "") -> str:
    """Run a plain script of an example and return what it prints."""
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / name), *map(str, arguments)],
        input=stdin,
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout
