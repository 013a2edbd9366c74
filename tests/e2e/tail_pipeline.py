"""A good pipeline that goes on for as long as a test does others harm."""

import json
import sys
from collections.abc import Sequence
from pathlib import Path

from tests.e2e.windows import undisturbed
from tests.e2e.yard import PROGRAMS, Run, Yard, wait_until

KEYS = 5
TOKEN = "the token of those who attach"


class TailPipeline:
    """Invariant: the output is what was fed, each record once and in order."""

    def __init__(
        self,
        yard: Yard,
        *,
        listen: str = "",
        limits: str = "",
        words: Sequence[str] = (),
        output: Path | None = None,
        waits: bool = True,
    ) -> None:
        self.yard = yard
        self.source = yard.place / "in.txt"
        self.output = output or yard.place / "out.txt"
        self.source.touch()
        self._fed = 0
        roles = ("source", "compute", "sink")
        plugins = [
            f"[[plugins]]\nname = {role!r}\nroles = [{role!r}]\n"
            f"command = {self._command(words)}"
            for role in roles
        ]
        self.listen = listen or f"unix:{yard.mark}/engine.sock"
        head = (
            f"listen = {self.listen!r}\ndata_dir = {str(yard.data)!r}\n"
            f"tokens = [{TOKEN!r}]\n[limits]\n{limits}"
        )
        self.engine: Run = yard.engine("\n".join((head, *plugins)))
        if waits:
            self.proves_exact()

    @property
    def address(self) -> str:
        """Where the engine listens."""
        file = self.yard.data / "engine.json"
        return str(json.loads(file.read_text())["address"])

    def feed(self, count: int = 10, *, mood: str = "") -> None:
        """Append records, in turn for each key; the last has a mood."""
        with self.source.open("a") as lines:
            for i in range(self._fed, self._fed + count):
                is_last = i + 1 == self._fed + count
                lines.write(f"{i % KEYS} {i // KEYS + 1} {mood * is_last}\n")
        self._fed += count

    def pid_of(self, plugin: str) -> int:
        """Return the process of a plugin that is in session."""

        def found() -> int:
            plugins = self.yard.status().plugins
            return next((p.pid for p in plugins if p.name == plugin), 0)

        return int(wait_until(found, f"plugin {plugin}"))

    def proves_exact(self) -> None:
        """Feed on, and wait until exactly all that was ever fed has come out."""
        self.feed()
        self.is_exact()

    def is_exact(self) -> None:
        """Wait until exactly all that was ever fed has come out."""
        expected = "".join(f"{line}\n" for line in undisturbed(self._fed, KEYS))

        def is_all_there() -> bool:
            assert not self.engine.is_over(), self.engine
            return self.output.exists() and len(self.output.read_text()) >= len(
                expected
            )

        wait_until(is_all_there, f"all outputs: {self.engine}")
        assert self.output.read_text() == expected

    def _command(self, words: Sequence[str]) -> str:
        files = (PROGRAMS / "window_lines.py", self.source, self.output)
        return json.dumps([sys.executable, *map(str, files), "follow", *words])
