"""Writes Python source text line by line and compiles it.

Every line knows the step that it runs, so that an exception is blamed on a step by
the line number in its traceback: naming the step costs nothing while all goes well.
"""

import itertools
import linecache
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Any

# Python refuses more than 20 nested loops and 100 levels of indentation.
DEPTH_MAX = 14

_serial = itertools.count(1)


class Emitter:
    """Source text in the making. `namespace` holds what the text refers to."""

    def __init__(self, title: str) -> None:
        self.filename = f"<bettong {title} #{next(_serial)}>"
        self.namespace: dict[str, Any] = {}
        self.step_of_line: dict[int, str] = {}
        # Line of a key call: the variable that holds the key, and its codec.
        self.key_of_line: dict[int, tuple[str, Any]] = {}
        self._lines: list[str] = []
        self._indent = 0
        self._names = itertools.count()

    @property
    def text(self) -> str:
        """The source text as it stands."""
        return "\n".join(self._lines) + "\n"

    @property
    def depth(self) -> int:
        """How many blocks are open."""
        return self._indent

    def fresh(self, stem: str) -> str:
        """Return a variable name that is not in use."""
        return f"{stem}_{next(self._names)}"

    def bind(self, value: object, stem: str) -> str:
        """Make a value known to the text under a name, and return the name."""
        for name, bound in self.namespace.items():
            if bound is value:
                return name
        readable = "".join(c if c.isalnum() and c.isascii() else "_" for c in stem)
        name = self.fresh(readable or "value")
        self.namespace[name] = value
        return name

    def line(self, text: str, *, step: str = "") -> int:
        """Add a line that runs `step`; return its number."""
        self._lines.append("    " * self._indent + text)
        number = len(self._lines)
        if step:
            self.step_of_line[number] = step
        return number

    @contextmanager
    def block(self, head: str, *, step: str = "") -> Iterator[None]:
        """Open a block; its lines are added inside the `with`."""
        self.line(head, step=step)
        self._indent += 1
        yield
        self._indent -= 1

    def compile(self, function: str) -> Callable[..., Any]:
        """Compile the text and return one of its functions."""
        text = self.text
        lines = text.splitlines(keepends=True)
        # Without a modification time the entry survives linecache.checkcache().
        linecache.cache[self.filename] = (len(text), None, lines, self.filename)
        exec(compile(text, self.filename, "exec"), self.namespace)
        compiled: Callable[..., Any] = self.namespace[function]
        return compiled

    def frame_of(self, error: BaseException) -> tuple[TracebackType, str] | None:
        """Return the deepest traceback entry in this text, and the step it ran."""
        found: TracebackType | None = None
        entry = error.__traceback__
        while entry is not None:
            if entry.tb_frame.f_code.co_filename == self.filename:
                found = entry
            entry = entry.tb_next
        if found is None:
            return None
        return found, self.step_of_line.get(found.tb_lineno, "")
