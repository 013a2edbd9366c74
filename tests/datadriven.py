"""Replays scenarios: files of commands, each with the output that it must give.

A block is comments, one command, a line of four dashes and the output. Blocks are
separated by an empty line; a block of comments alone is text for the reader. After
cockroachdb/datadriven.
"""

import shlex
from collections.abc import Callable
from dataclasses import fields, is_dataclass
from pathlib import Path

# (command, its arguments, its options) -> what it gives.
Handle = Callable[[str, list[str], dict[str, str]], str]


def replay(path: Path, handle: Handle) -> str:
    """Return the text of `path`, each expected output replaced by the actual one."""
    blocks: list[str] = []
    for block in path.read_text().strip().split("\n\n"):
        request = block.split("\n----", 1)[0]
        lines = [line for line in request.splitlines() if not line.startswith("#")]
        if not lines:
            blocks.append(block)
            continue
        assert len(lines) == 1, f"{path.name}: one command a block, got {lines}"
        command, *words = shlex.split(lines[0])
        options = dict(word.split("=", 1) for word in words if "=" in word)
        arguments = [word for word in words if "=" not in word]
        blocks.append(f"{request}\n----\n{handle(command, arguments, options)}")
    return "\n\n".join(blocks) + "\n"


def show(value: object) -> str:
    """Return a value for people: of dataclasses, the fields that say something."""
    if is_dataclass(value):
        parts = [
            f"{field.name}={show(part)}"
            for field in fields(value)
            if field.repr
            and (part := getattr(value, field.name)) not in (None, False, "", b"", ())
        ]
        return f"{type(value).__name__}({', '.join(parts)})"
    if isinstance(value, tuple | list):
        return f"[{', '.join(map(show, value))}]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{k}: {show(v)}" for k, v in value.items()) + "}"
    if isinstance(value, bytes):
        return value.decode("ascii", "backslashreplace") or "-"
    return str(value)
