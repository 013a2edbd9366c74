"""A plugin as a process of its own, over real gRPC on a unix socket."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.sdk.runtime.engine_records import Options
from tests.sdk.runtime.host_double import TOKEN, HostDouble
from tests.sdk.runtime.word_program import make_app

from bettong_proto.plugin.v1 import control_pb2

ROOT = Path(__file__).parents[3]
LINES = [f"w{i % 7} w{i % 3} w{i}" for i in range(300)]
# More than any count of `LINES` on one channel.
OPTIONS = Options(
    credit_records=1000,
    credit_bytes=100_000,
    window_bytes=100_000,
    has_two_targets=False,
    uncommitted_bytes_max=1_000_000,
)


class Fixture:
    """A host, and the plugins that a test starts."""

    def __init__(self, directory: Path) -> None:
        self.source = directory / "in.txt"
        self.source.write_text("\n".join(LINES) + "\n")
        self.target = directory / "out.txt"
        plan = make_app(str(self.source), str(self.target)).plan()
        self.host = HostDouble(plan, directory, OPTIONS)
        self.plugins: list[subprocess.Popen[str]] = []

    def start(self, token: bytes = TOKEN) -> subprocess.Popen[str]:
        environment = {
            **os.environ,
            "BETTONG_ADDRESS": self.host.address,
            "BETTONG_TOKEN": token.decode(),
        }
        command = [sys.executable, "-m", "tests.sdk.runtime.word_program"]
        plugin = subprocess.Popen(
            [*command, str(self.source), str(self.target)],
            env=environment,
            cwd=ROOT,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.plugins.append(plugin)
        return plugin

    def attached(self) -> None:
        engine = self.host.engine
        for machine in (
            *engine.sources.values(),
            engine.compute,
            *self.host.sinks.values(),
        ):
            assert machine.attached.wait(15), "a role was not attached"  # type: ignore[union-attr]


@pytest.fixture
def fixture(tmp_path: Path) -> Iterator[Fixture]:
    made = Fixture(tmp_path)
    yield made
    made.host.stop()
    for plugin in made.plugins:
        plugin.kill()
        plugin.communicate()


def expected() -> list[str]:
    counts: dict[str, int] = {}
    updates = []
    for line in LINES:
        for word in line.split():
            counts[word] = counts.get(word, 0) + 1
            updates.append(f"{word} => {counts[word]}")
    return updates


def test_one_process_runs_all_roles_to_the_end(fixture: Fixture) -> None:
    plugin = fixture.start()
    fixture.attached()

    fixture.host.engine.run(crash_at={300: "reset", 900: "reset"})
    fixture.host.tell(shutdown=control_pb2.Shutdown(deadline_ms=5000, reason="end"))

    assert plugin.wait(10) == 0
    assert fixture.target.read_text().splitlines() == expected()
    hello = fixture.host.hellos[0]
    assert (hello.token, hello.revision_max, hello.pid) == (TOKEN, 1, plugin.pid)
    logs = fixture.host.await_control("logs")
    assert logs.entries[0].message.startswith("three of w")
    assert logs.entries[0].logger == "words"


def test_ping_is_answered_and_stacks_are_told(fixture: Fixture) -> None:
    fixture.start()
    fixture.attached()

    fixture.host.tell(ping=control_pb2.Ping(nonce=42))
    fixture.host.tell(stacks=control_pb2.StacksRequest())

    assert fixture.host.await_control("pong").nonce == 42
    assert "bettong-control" in fixture.host.await_control("stacks").text


def test_refused_process_shows_the_remedy_and_exits(fixture: Fixture) -> None:
    plugin = fixture.start(token=b"wrong")

    assert plugin.wait(15) == 2
    assert plugin.stderr is not None
    words = plugin.stderr.read()
    assert "the token is not known" in words
    assert "start the plugin with" in words
    assert "Traceback" not in words


def test_drain_is_answered_when_all_read_is_sent(fixture: Fixture) -> None:
    fixture.start()
    fixture.attached()

    fixture.host.tell(drain=control_pb2.Drain(deadline_ms=1000))

    fixture.host.await_control("drained")


def test_sigterm_asks_to_leave_and_waits_for_shutdown(fixture: Fixture) -> None:
    plugin = fixture.start()
    fixture.attached()

    plugin.send_signal(signal.SIGTERM)
    fixture.host.await_control("drained")
    fixture.host.tell(shutdown=control_pb2.Shutdown(deadline_ms=5000))

    assert plugin.wait(10) == 0


def test_ping_is_answered_while_user_code_blocks_and_shutdown_ends_it(
    fixture: Fixture,
) -> None:
    fixture.source.write_text("stuck\n")
    plugin = fixture.start()
    fixture.attached()
    engine = fixture.host.engine

    busy_ms = 0
    for nonce in range(2000):
        engine.step()
        fixture.host.tell(ping=control_pb2.Ping(nonce=nonce))
        pong = fixture.host.await_control("pong")
        if pong.busy_step == "compute" and pong.busy_ms > 20:
            busy_ms = pong.busy_ms
            break
    fixture.host.tell(stacks=control_pb2.StacksRequest())
    stacks = fixture.host.await_control("stacks").text
    fixture.host.tell(shutdown=control_pb2.Shutdown(deadline_ms=300))

    assert busy_ms
    assert "word_program.py" in stacks
    assert plugin.wait(10) == 3
    assert plugin.stderr is not None
    assert "has not returned in time" in plugin.stderr.read()


def test_process_dials_again_when_the_engine_comes_back(
    fixture: Fixture, tmp_path: Path
) -> None:
    plugin = fixture.start()
    fixture.attached()

    fixture.host.stop()
    plan = make_app(str(fixture.source), str(fixture.target)).plan()
    fixture.host = HostDouble(plan, tmp_path, OPTIONS)
    fixture.attached()
    fixture.host.engine.run()
    fixture.host.tell(shutdown=control_pb2.Shutdown(deadline_ms=5000))

    assert plugin.wait(10) == 0
    assert fixture.target.read_text().splitlines() == expected()
    assert fixture.host.hellos[0].pid == plugin.pid


@pytest.mark.slow
def test_process_exits_when_the_engine_stays_away(fixture: Fixture) -> None:
    plugin = fixture.start()
    fixture.attached()

    fixture.host.stop()

    assert plugin.wait(20) == 1
    assert plugin.stderr is not None
    assert "cannot reach the engine" in plugin.stderr.read()
