"""kill -9 of anything, at any moment: the output is that of an undisturbed run."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

PROGRAM = Path(__file__).parent / "programs" / "sequence_window.py"
KEYS = 50
COUNT = 60_000
RATE = 4_000
KILLS_MIN = 20
DEADLINE_S = 150.0


class Run:
    """One `bettong run` of the detector, and the processes that belong to it."""

    def __init__(self, place: Path, *, computes: int, rate: int, count: int) -> None:
        self.output = place / "windows.txt"
        self._log = place / "log"
        self._mark = str(self.output)
        self._command = [
            sys.executable, "-m", "bettong_engine.cli.main", "run", "--plain",
            "--data-dir", str(place / "data"), "--computes", str(computes),
            str(PROGRAM), str(count), str(KEYS), str(rate), str(self.output),
        ]  # fmt: skip
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        with self._log.open("ab") as log:
            self.process = subprocess.Popen(
                self._command, stdout=log, stderr=log, start_new_session=True
            )

    def members(self) -> dict[str, list[int]]:
        """Return the live process ids: of the engine, and of its plugins."""
        found: dict[str, list[int]] = {"engine": [], "plugin": []}
        for entry in Path("/proc").iterdir():
            if not entry.name.isdigit():
                continue
            try:
                words = (entry / "cmdline").read_bytes().decode().split("\0")
            except OSError:
                continue
            if self._mark in words:
                is_engine = "bettong_engine.cli.main" in words
                found["engine" if is_engine else "plugin"].append(int(entry.name))
        return found

    def kill(self, what: str, chance: random.Random) -> bool:
        """Kill one process of a kind, or all; return whether there was one."""
        members = self.members()
        victims = [*members["engine"], *members["plugin"]]
        if what != "all":
            victims = chance.sample(members[what], 1) if members[what] else []
        for pid in victims:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        return bool(victims)

    def log(self) -> str:
        return self._log.read_text()[-4000:]

    def stop(self) -> None:
        while any(self.members().values()):
            self.kill("all", random.Random(0))
            time.sleep(0.05)
        if self.process is not None:
            self.process.wait()


def check_continuously(lines: list[str]) -> dict[int, int]:
    """Check every window against the one before of its key; return the last ones."""
    last: dict[int, int] = {}
    for line in lines:
        key_text, _, window_text = line.partition(" ")
        key = int(key_text)
        number = last.get(key, 0) + 1
        wanted = [max(0, number - back) for back in (3, 2, 1, 0)]
        assert window_text == str(wanted), (
            f"key {key}: {window_text} after {last.get(key)}"
        )
        last[key] = number
    return last


@pytest.mark.e2e
@pytest.mark.slow
@pytest.mark.timeout(240)
@pytest.mark.parametrize("computes", [1, 2])
def test_output_is_exact_whatever_is_killed(tmp_path: Path, computes: int) -> None:
    chance = random.Random(computes)
    run = Run(tmp_path, computes=computes, rate=RATE, count=COUNT)
    until = time.monotonic() + DEADLINE_S
    kills = 0
    try:
        while True:
            run.start()
            assert run.process is not None
            while run.process.poll() is None:
                assert time.monotonic() < until, run.log()
                time.sleep(chance.uniform(0.2, 0.9))  # The pace of the killing.
                if kills < KILLS_MIN:
                    what = chance.choice(["engine", "plugin", "plugin", "all"])
                    kills += run.kill(what, chance)
            if run.process.returncode == 0:
                break
            assert run.process.returncode == -signal.SIGKILL, run.log()
    finally:
        run.stop()

    lines = run.output.read_text().splitlines()

    assert kills >= KILLS_MIN
    assert check_continuously(lines) == dict.fromkeys(range(KEYS), COUNT // KEYS)
    if computes == 1:
        undisturbed = [
            f"{i % KEYS} {[max(0, i // KEYS + 1 - back) for back in (3, 2, 1, 0)]}"
            for i in range(COUNT)
        ]
        assert lines == undisturbed
