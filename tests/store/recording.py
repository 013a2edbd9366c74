"""Records what a program does to a directory, and makes images of it in between.

The system calls come from strace. An image is what a disk may hold at some call: all
that was done until then, if only the process was killed; or, if the power failed, of
what was not synced yet any part of it.
"""

import random
import re
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

CALLS = "openat,pwrite64,write,ftruncate,fdatasync,fsync,rename,unlink"
_LINE = re.compile(rb"^\d+ +(\w+)\((.*)\) += (\d+)(?:<([^>]*)>)?$")
_TEXT = re.compile(rb'"((?:\\x[0-9a-f]{2})*)"')
_FILE = re.compile(rb"^\d+<([^>]*)>")


@dataclass(frozen=True, slots=True)
class Call:
    """One call. data None: of a truncation to `at`."""

    kind: str
    file: str
    at: int = 0
    data: bytes | None = None
    to: str = ""


def record(command: list[str], directory: Path, log: Path) -> list[Call]:
    """Run a program; return its calls on a directory, and what it said."""
    options = ["-f", "-y", "-xx", "-s", "1000000", "-e", f"trace={CALLS}", "-o"]
    subprocess.run(
        ["strace", *options, str(log), *command],
        check=True,
        stdout=subprocess.DEVNULL,
        cwd=Path(__file__).parents[2],
    )
    return list(_calls(log.read_bytes(), directory))


def _calls(log: bytes, directory: Path) -> Iterator[Call]:
    assert b"unfinished" not in log, "two threads wrote at once"
    for line in log.splitlines():
        match = _LINE.match(line)
        if match is None:
            continue
        name, arguments, _, made = match.groups()
        kind = name.decode()
        texts = [_unhex(text) for text in _TEXT.findall(arguments)]
        file = _FILE.match(arguments)
        path = _unhex(file.group(1)).decode() if file else ""
        if kind == "write" and arguments.startswith(b"1<"):
            yield Call("said", "", data=texts[0])
        elif kind in ("rename", "unlink") and _is_in(texts[0].decode(), directory):
            yield Call(kind, *_names(texts))
        elif kind == "openat" and made and b"O_CREAT" in arguments:
            path = _unhex(made).decode()
            if _is_in(path, directory):
                truncated = b"O_TRUNC" in arguments
                yield Call("create", Path(path).name, data=b"" if truncated else None)
        elif path == str(directory) and kind in ("fsync", "fdatasync"):
            yield Call("sync directory", "")
        elif _is_in(path, directory):
            name_of = Path(path).name
            if kind in ("fsync", "fdatasync"):
                yield Call("sync", name_of)
            elif kind == "ftruncate":
                yield Call("change", name_of, int(arguments.rsplit(b", ", 1)[1]))
            elif kind == "pwrite64":
                place = int(arguments.rsplit(b", ", 1)[1])
                yield Call("change", name_of, place, texts[0])
            elif kind == "write":
                # Files that are written so are written once.
                yield Call("change", name_of, 0, texts[0])


def _names(texts: list[bytes]) -> tuple[str, int, None, str]:
    names = [Path(text.decode()).name for text in texts]
    return names[0], 0, None, names[1] if len(names) > 1 else ""


def _is_in(path: str, directory: Path) -> bool:
    return Path(path).parent == directory


def _unhex(text: bytes) -> bytes:
    return bytes.fromhex(text.decode().replace("\\x", ""))


@dataclass(slots=True)
class File:
    """Content that is on the disk for sure, and what is only in memory."""

    synced: bytes = b""
    changes: list[Call] = field(default_factory=list)

    def content(self, keep: Callable[[Call], Call | None]) -> bytes:
        """Return it with those changes, or parts of them, that `keep` returns."""
        data = bytearray(self.synced)
        for change in self.changes:
            kept = keep(change)
            if kept is not None:
                _apply(data, kept)
        return bytes(data)


class Disk:
    """Follows calls. Names are changed in order, and are sure once synced."""

    def __init__(self) -> None:
        self.names: dict[str, File] = {}
        self._synced: dict[str, File] = {}
        self._renames: list[tuple[Call, File]] = []

    def do(self, call: Call) -> None:
        """Take one call."""
        if call.kind == "sync":
            file = self.names[call.file]
            file.synced = file.content(lambda change: change)
            file.changes.clear()
        elif call.kind == "change":
            self.names[call.file].changes.append(call)
        elif call.kind == "sync directory":
            self._synced = dict(self.names)
            self._renames.clear()
        elif call.kind != "said":
            if call.kind == "create" and call.file in self.names:
                if call.data is not None:
                    self.names[call.file].changes.append(Call("change", call.file))
                return
            new = File()
            self._rename(self.names, call, new)
            self._renames.append((call, new))

    def after_kill(self) -> dict[str, bytes]:
        """Return the files as the kernel has them."""
        return {
            n: file.content(lambda change: change) for n, file in self.names.items()
        }

    def after_power_failure(self, rng: random.Random) -> dict[str, bytes]:
        """Return the files as they may be on the disk."""

        def keep(change: Call) -> Call | None:
            chance = rng.random()
            if chance < 0.4 or change.data is None:
                return change if chance < 0.5 else None
            if chance < 0.7:
                return None
            size = rng.randrange(len(change.data) + 1)
            return Call("change", change.file, change.at, change.data[:size])

        names = dict(self._synced)
        for call, new in self._renames[: rng.randrange(len(self._renames) + 1)]:
            self._rename(names, call, new)
        return {name: file.content(keep) for name, file in names.items()}

    def _rename(self, names: dict[str, File], call: Call, new: File) -> None:
        if call.kind == "create":
            names[call.file] = new
        elif call.kind == "unlink":
            names.pop(call.file, None)
        elif call.file in names:
            names[call.to] = names.pop(call.file)


def _apply(data: bytearray, change: Call) -> None:
    if change.data is None:
        data[:] = bytes(data[: change.at]).ljust(change.at, b"\0")
        return
    if len(data) < change.at:
        data.extend(bytes(change.at - len(data)))
    data[change.at : change.at + len(change.data)] = change.data
