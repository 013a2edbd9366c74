"""Votes over framed TCP, with a sender and a receiver that are processes too."""

import signal
import socket
import sys
from pathlib import Path

import pytest
from tests.e2e.yard import SINK, Yard, wait_until
from tests.examples.running import EXAMPLES, script

pytestmark = pytest.mark.e2e

FOLDER = EXAMPLES / "alphabet"


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
        return port


def is_listening(address: str) -> bool:
    host, port = address.split(":")
    with socket.socket() as probe:
        return probe.connect_ex((host, int(port))) == 0


def lines_of(path: Path) -> list[str]:
    return path.read_text().splitlines() if path.exists() else []


def votes() -> list[tuple[str, int]]:
    rows = (line.split() for line in lines_of(FOLDER / "votes.txt"))
    return [(letter, int(count)) for letter, count in rows]


def totals(rows: list[tuple[str, int]]) -> list[str]:
    """Return the total after each vote."""
    found: dict[str, int] = {}
    updates = []
    for letter, count in rows:
        found[letter] = found.get(letter, 0) + count
        updates.append(f"{letter} {found[letter]}")
    return updates


def test_votes_are_counted_over_tcp(yard: Yard) -> None:
    output = yard.place / "totals.txt"
    receiver = yard.start(
        [sys.executable, FOLDER / "receiver.py", "127.0.0.1:0", output]
    )
    target = wait_until(lambda: receiver.stdout.read_text().split(), "a port")[-1]
    listen = f"127.0.0.1:{free_port()}"
    run = yard.run(FOLDER / "alphabet.py", listen, target)
    wait_until(lambda: is_listening(listen), f"a source at {listen}: {run}")

    sent = script("alphabet/sender.py", listen, FOLDER / "votes.txt")
    wait_until(lambda: len(lines_of(output)) == 1000, f"all totals: {run}{receiver}")
    yard.kill(SINK)
    wait_until(lambda: yard.pids(SINK), f"another sink process: {run}")
    script("alphabet/sender.py", listen, FOLDER / "votes.txt")
    wait_until(lambda: len(lines_of(output)) >= 2000, f"all totals: {run}{receiver}")
    run.process.send_signal(signal.SIGTERM)

    assert sent == "1000 votes sent\n"
    assert run.ends() == 0, run
    assert lines_of(output) == totals(votes() * 2)
    assert not receiver.is_over(), receiver
    final = dict(line.split() for line in lines_of(output)[:1000])
    told = (FOLDER / "expected_totals.txt").read_text()
    assert final == dict(line.split() for line in told.splitlines())


def test_input_and_totals_are_what_their_scripts_make() -> None:
    text = (FOLDER / "votes.txt").read_text()
    expected = (FOLDER / "expected_totals.txt").read_text()

    assert script("alphabet/make_input.py") == text
    assert script("alphabet/expected.py", stdin=text) == expected
