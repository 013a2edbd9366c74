"""Turns the steps of a plan into tight loops.

Each chain of steps becomes one Python function: its source text is generated,
compiled once and kept in `linecache`, so that tracebacks show it. A record then
costs the calls of user code, a dict lookup and a few list appends; no dispatch.
"""

from bettong.program.columns import Columns
from bettong.program.failure import RecordFailedError, SkippedRecord
from bettong.program.source import SourceProgram
from bettong.program.stage import Entry, StageProgram

__all__ = [
    "Columns",
    "Entry",
    "RecordFailedError",
    "SkippedRecord",
    "SourceProgram",
    "StageProgram",
]
