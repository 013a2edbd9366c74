"""Plugins that crash or shout, signals, and parents that go away."""

import os
import signal
import sys
from pathlib import Path

import pytest
from tests.e2e.windows import check_continuously, undisturbed
from tests.e2e.yard import (
    COMPUTE,
    ENGINE,
    OTHER,
    PLUGINS,
    PROGRAMS,
    SINK,
    SOURCE,
    Run,
    Yard,
    wait_until,
)

pytestmark = pytest.mark.e2e

COUNT, KEYS, RATE = 6_000, 10, 3_000


def write_lines(path: Path, count: int, mood: str = "") -> Path:
    path.write_text(
        "".join(f"{i % KEYS} {i // KEYS + 1} {mood}\n" for i in range(count))
    )
    return path


def start_slowly(yard: Yard) -> Run:
    """Start the detector at a rate that leaves time to disturb it."""
    output = yard.place / "out.txt"
    return yard.run(PROGRAMS / "sequence_window.py", COUNT, KEYS, RATE, output)


def lines_of(yard: Yard) -> list[str]:
    path = yard.place / "out.txt"
    return path.read_text().splitlines() if path.exists() else []


def wait_for_output(yard: Yard, run: Run, more_than: int = 0) -> None:
    def is_there() -> bool:
        assert not run.is_over(), run
        return len(lines_of(yard)) > more_than

    wait_until(is_there, f"output: {run}")


@pytest.mark.parametrize("roles", [[COMPUTE], [SOURCE], [SINK], [*PLUGINS]])
def test_crash_loop_pauses_with_the_last_words_and_goes_on_when_mended(
    yard: Yard, roles: list[str]
) -> None:
    source, mend = write_lines(yard.place / "in.txt", 500), yard.place / "mended"
    words = (PROGRAMS / "crashes.py", source, yard.place / "out.txt", mend, *roles)

    run = yard.run(*words)

    assert run.ends() == 1, run
    assert "PLUGIN_CRASHED" in run.log()
    assert "exited with code 1" in run.log()
    end = run.log().partition("the application is paused")[2]
    assert "the moon is not where it was" in end, run
    assert "ended 5 times in a row" in end
    assert yard.is_deserted()

    mend.touch()
    run = yard.run(*words)
    assert run.ends() == 0, run
    assert lines_of(yard) == undisturbed(500, KEYS)


def test_plugin_that_cannot_be_started_is_named(yard: Yard) -> None:
    program = yard.place / "program"
    program.write_text("#!/no/such/interpreter\n")
    program.chmod(0o755)

    run = yard.run(program)

    assert run.ends() == 1, run
    assert "could not be started" in run.log()


def test_flood_on_stdout_and_stderr_holds_nothing_up(yard: Yard) -> None:
    source = write_lines(yard.place / "in.txt", 40, "flood")

    run = yard.run(PROGRAMS / "window_lines.py", source, yard.place / "out.txt")

    assert run.ends() == 0, run
    assert lines_of(yard) == undisturbed(40, KEYS)
    # Very long lines are cut, but nothing of them is lost.
    printed = run.stdout.read_text().replace("\n", "")
    assert printed.count("stdout " * 20) >= 40 * 200
    assert printed.count("one line without an end") == 40 * 10_000
    assert run.log().count("stderr " * 20) >= 40 * 200


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signal_to_the_engine_drains_and_the_next_start_goes_on(
    yard: Yard, number: signal.Signals
) -> None:
    run = start_slowly(yard)
    wait_for_output(yard, run, 100)

    run.process.send_signal(number)

    assert run.ends() == 0, run
    assert "drained" in run.log()
    before = lines_of(yard)
    assert 100 < len(before) < COUNT
    assert before == undisturbed(COUNT, KEYS)[: len(before)]
    assert yard.is_deserted()
    run = start_slowly(yard)
    assert run.ends() == 0, run
    assert lines_of(yard) == undisturbed(COUNT, KEYS)


@pytest.mark.parametrize("kind", PLUGINS)
def test_plugin_that_is_asked_to_leave_leaves_in_order(yard: Yard, kind: str) -> None:
    run = start_slowly(yard)
    wait_for_output(yard, run, 100)

    assert yard.kill(kind, number=signal.SIGTERM) == 1

    assert run.ends() == 0, run
    assert lines_of(yard) == undisturbed(COUNT, KEYS)
    assert "exited with code 0" in run.log()


def test_plugins_go_with_an_engine_that_is_killed(yard: Yard) -> None:
    run = start_slowly(yard)
    wait_for_output(yard, run)

    assert yard.kill(ENGINE) == 1

    wait_until(yard.is_deserted, "the end of the plugins", 20)


def start_embedded(yard: Yard) -> Run:
    output = yard.place / "out.txt"
    words = (PROGRAMS / "sequence_window.py", COUNT, KEYS, RATE, output)
    return yard.start((sys.executable, *map(str, words)))


def test_embedded_engine_goes_with_a_parent_that_is_killed(yard: Yard) -> None:
    run = start_embedded(yard)
    wait_for_output(yard, run, 100)
    assert len(yard.pids(OTHER)) == len(yard.pids(ENGINE)) == 1

    os.kill(run.process.pid, signal.SIGKILL)

    wait_until(yard.is_deserted, "the end of engine and plugins", 20)
    before = lines_of(yard)
    assert before == undisturbed(COUNT, KEYS)[: len(before)]
    run = start_embedded(yard)
    assert run.ends() == 0, run
    assert lines_of(yard) == undisturbed(COUNT, KEYS)
    assert (yard.place / ".bettong" / "sequence-window").is_dir()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signal_to_an_embedded_program_drains(
    yard: Yard, number: signal.Signals
) -> None:
    run = start_embedded(yard)
    wait_for_output(yard, run, 100)

    run.process.send_signal(number)

    assert run.ends() == 0, run
    assert yard.is_deserted()
    assert len(check_continuously(lines_of(yard))) == KEYS
