"""A test's own corner of the machine: a directory, and every process started in it.

Processes are known by their environment: each inherits a TMPDIR that no other test
has, so that those which a test's processes start, in sessions of their own, are found
too and never outlive the test.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bettong_engine.net.admin import call
from bettong_proto.admin.v1 import admin_pb2

REPOSITORY = Path(__file__).parents[2]
PROGRAMS = Path(__file__).parent / "programs"
DEADLINE_S = 60.0
POLL_S = 0.02
BETTONG = (sys.executable, "-m", "bettong_engine.cli.main")
# Kinds of processes.
ENGINE, SOURCE, COMPUTE, SINK, OTHER = "engine", "source", "compute", "sink", "other"
PLUGINS = (SOURCE, COMPUTE, SINK)


def wait_until(
    is_true: Callable[[], Any], what: str, deadline_s: float = DEADLINE_S
) -> Any:
    """Return what `is_true` returns once that is true; `what` names it if not."""
    until = time.monotonic() + deadline_s
    while not (found := is_true()):
        assert time.monotonic() < until, f"after {deadline_s:.0f} s still not: {what}"
        time.sleep(POLL_S)
    return found


@dataclass
class Run:
    """One process that a test started, with all that it prints."""

    process: "subprocess.Popen[bytes]"
    stderr: Path
    stdout: Path

    def is_over(self) -> bool:
        """Tell whether it has ended."""
        return self.process.poll() is not None

    def log(self) -> str:
        """Return its standard error so far."""
        return self.stderr.read_text(errors="replace")

    def events(self, name: str) -> list[dict[str, Any]]:
        """Return the log lines of an event, of an engine that logs JSON."""
        lines = [x for x in self.log().splitlines() if x.startswith("{")]
        found = [json.loads(line) for line in lines if line.endswith("}")]
        return [item for item in found if item.get("event") == name]

    def ends(self, deadline_s: float = DEADLINE_S) -> int:
        """Wait for its end and return the exit code."""
        wait_until(self.is_over, f"an end of {self.stderr.name}\n{self}", deadline_s)
        return self.process.returncode

    def says(self, *texts: str, deadline_s: float = DEADLINE_S) -> None:
        """Wait until standard error holds all of these."""
        until = time.monotonic() + deadline_s
        while missing := [text for text in texts if text not in self.log()]:
            assert time.monotonic() < until, f"never said {missing}\n{self}"
            assert not self.is_over() or all(t in self.log() for t in texts), (
                f"ended without saying {missing}\n{self}"
            )
            time.sleep(POLL_S)

    def __str__(self) -> str:
        """Return the end of what it said, for failures."""
        return f"--- exit code {self.process.poll()}\n{self.log()[-6000:]}"


@dataclass
class Yard:
    """Invariant: after `close` no process of the test lives."""

    place: Path
    # Short, since the paths of unix sockets are: the mark of this yard's processes.
    mark: Path = field(default_factory=lambda: Path(tempfile.mkdtemp(prefix="bt-")))
    runs: list[Run] = field(default_factory=list)

    def start(
        self,
        command: Sequence[str | Path],
        *,
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
        stdin: int = subprocess.DEVNULL,
    ) -> Run:
        """Start a process in the yard."""
        name = f"{len(self.runs)}"
        stderr, stdout = self.place / f"{name}.err", self.place / f"{name}.out"
        with stderr.open("wb") as err, stdout.open("wb") as out:
            process = subprocess.Popen(
                [str(word) for word in command],
                stdin=stdin,
                stdout=out,
                stderr=err,
                cwd=cwd or self.place,
                env=self.environment(env),
                start_new_session=True,
            )
        run = Run(process, stderr, stdout)
        self.runs.append(run)
        return run

    def run(
        self,
        program: str | Path,
        *arguments: object,
        options: Sequence[object] = (),
        env: Mapping[str, str] | None = None,
        data_dir: Path | None = None,
    ) -> Run:
        """Start `bettong run` on a program, by default with data in `data`."""
        data = ("--data-dir", str(data_dir or self.data))
        words = (*BETTONG, "run", "--plain", *data, *map(str, options))
        return self.start((*words, str(program), *map(str, arguments)), env=env)

    def engine(self, config: str, *, env: Mapping[str, str] | None = None) -> Run:
        """Start `bettong engine` with a configuration."""
        path = self.place / "bettong.toml"
        path.write_text(config)
        return self.start((*BETTONG, "engine", "--config", str(path)), env=env)

    @property
    def data(self) -> Path:
        """The data directory that `run` uses."""
        return self.place / "data"

    def environment(self, env: Mapping[str, str] | None = None) -> dict[str, str]:
        """Return the environment of a process of the yard."""
        kept = {k: v for k, v in os.environ.items() if not k.startswith("BETTONG_")}
        return {**kept, "TMPDIR": str(self.mark), **(env or {})}

    def status(self, data_dir: Path | None = None) -> admin_pb2.StatusResponse:
        """Ask the running engine how it stands, once it has an application."""
        path = (data_dir or self.data) / "engine.json"
        wait_until(path.exists, f"an engine in {path.parent}: {self.last()}")
        address = json.loads(path.read_text())["address"]
        answer = call(
            address, "Status", admin_pb2.StatusRequest(), admin_pb2.StatusResponse
        )
        assert isinstance(answer, admin_pb2.StatusResponse)
        return answer

    def last(self) -> str:
        """Return what the last process said, for failures."""
        return str(self.runs[-1]) if self.runs else ""

    # What lives.

    def processes(self) -> dict[str, list[int]]:
        """Return the ids of all live processes of the yard, by kind."""
        found: dict[str, list[int]] = {
            kind: [] for kind in (ENGINE, SOURCE, COMPUTE, SINK, OTHER)
        }
        mark = f"TMPDIR={self.mark}".encode()
        for entry in Path("/proc").iterdir():
            if not entry.name.isdigit():
                continue
            try:
                environment = (entry / "environ").read_bytes().split(b"\0")
                words = (entry / "cmdline").read_bytes().split(b"\0")
                state = (entry / "stat").read_text().rpartition(")")[2].split()[0]
            except OSError:
                continue
            if mark in environment and state != "Z":
                found[_kind(environment, words)].append(int(entry.name))
        return found

    def pids(self, *kinds: str) -> list[int]:
        """Return the ids of live processes of these kinds."""
        found = self.processes()
        return [pid for kind in kinds for pid in found[kind]]

    def kill(self, *kinds: str, number: int = signal.SIGKILL) -> int:
        """Signal all live processes of these kinds at once; return how many."""
        count = 0
        for pid in self.pids(*kinds):
            try:
                os.kill(pid, number)
                count += 1
            except ProcessLookupError:
                continue
        return count

    def is_deserted(self) -> bool:
        """Tell whether no process of the yard lives."""
        return not any(self.processes().values())

    def close(self) -> None:
        """End everything that was started here, and what that has started."""
        everything = (ENGINE, SOURCE, COMPUTE, SINK, OTHER)
        while self.kill(*everything):
            time.sleep(POLL_S)
        for run in self.runs:
            run.process.wait()
        shutil.rmtree(self.mark, ignore_errors=True)


def _kind(environment: list[bytes], words: list[bytes]) -> str:
    names = {entry.partition(b"=")[0] for entry in environment}
    if b"BETTONG_ADDRESS" not in names:
        return ENGINE if b"bettong_engine.cli.main" in words else OTHER
    if b"BETTONG_STDIN_FD" in names:
        return SOURCE
    return SINK if b"BETTONG_STDOUT_FD" in names else COMPUTE
