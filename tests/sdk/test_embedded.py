"""How a program starts an engine that starts the program again."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import bettong as bt
from bettong.embedded import engine_command, program_command, supervise

SDK = Path(bt.__file__).resolve().parents[1]


@pytest.mark.parametrize(
    "arguments",
    [
        ["app.py"],
        ["app.py", "--fast", "-"],
        ["-m", "package"],
        ["-mpackage", "a"],
        ["-X", "dev", "-W", "error", "app.py"],
        ["-Xdev", "-u", "-m", "package", "x y"],
        ["-Ium", "package"],
        ["-c", "print()"],
        ["--check-hash-based-pycs", "never", "app.py"],
    ],
)
def test_program_is_started_again_with_all_its_arguments(arguments: list[str]) -> None:
    assert program_command(["python3", *arguments]) == [sys.executable, *arguments]


@pytest.mark.parametrize(
    "arguments", [[], ["-"], ["-i"], ["-X", "dev"], ["-W", "error", "-"]]
)
def test_program_from_a_prompt_or_standard_input_is_refused(
    arguments: list[str],
) -> None:
    with pytest.raises(bt.LaunchError, match="put it into a file"):
        program_command(["python3", *arguments])


def test_engine_is_told_how_to_start_the_program() -> None:
    command = engine_command(["/bin/python", "app.py", "--fast"])

    assert command == [
        *(sys.executable, "-m", "bettong_engine.cli.main", "run", "--"),
        *("/bin/python", "app.py", "--fast"),
    ]


@pytest.mark.parametrize("code", [0, 3])
def test_exit_code_is_the_engines(code: int) -> None:
    assert supervise([sys.executable, "-c", f"raise SystemExit({code})"]) == code


def test_engine_killed_by_a_signal_is_told_as_shells_do() -> None:
    kill = "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"

    assert supervise([sys.executable, "-c", kill]) == 128 + signal.SIGKILL


def test_engine_knows_whom_to_live_with() -> None:
    check = f"""
import os
assert os.environ["BETTONG_PARENT_PID"] == "{os.getpid()}"
assert os.environ["MINE"] == "1"
"""

    assert supervise([sys.executable, "-c", check], {"MINE": "1"}) == 0


SUPERVISOR = """
import sys
from bettong.embedded import supervise
sys.exit(supervise([sys.executable, "-c", sys.argv[1]]))
"""
WAITS_FOR_SIGNAL = """
import signal
numbers = {signal.SIGINT, signal.SIGTERM, signal.SIGHUP}
signal.pthread_sigmask(signal.SIG_BLOCK, numbers)
print("ready", flush=True)
raise SystemExit(100 + signal.sigwait(numbers))
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_signal_goes_on_to_the_engine_whose_exit_code_counts(number: int) -> None:
    # In a session without terminal, so that SIGINT comes from us alone.
    with subprocess.Popen(
        [sys.executable, "-c", SUPERVISOR, WAITS_FOR_SIGNAL],
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(SDK)},
        start_new_session=True,
    ) as supervisor:
        assert supervisor.stdout is not None
        assert supervisor.stdout.readline() == b"ready\n"

        supervisor.send_signal(number)

        assert supervisor.wait(timeout=30) == 100 + number


def test_handlers_are_put_back() -> None:
    before = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)]

    supervise([sys.executable, "-c", ""])

    assert [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)] == before
