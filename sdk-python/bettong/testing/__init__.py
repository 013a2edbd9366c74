"""Tests of your pipeline, on lists, in milliseconds, with crashes in between.

    from bettong.testing import Crash, EndOfEpoch, run_in_memory
    from my_app import app

    def test_every_word_is_counted_once() -> None:
        result = run_in_memory(app, {"lines": ["a b", EndOfEpoch(), "a", Crash(), "b"]})

        assert result["counts"] == ["a => 1", "b => 1", "a => 2", "b => 2"]
        assert result.state("count")["a"].count == 2

Your functions run in the loops that run them in production, and so do the parts of
the SDK that keep state, replay input and number outputs. Only the engine is a small
one, in this thread: it commits where you say, and a `Crash()` takes everything back to
the last commit. What a pipeline puts out must not depend on where it crashed; that is
what to test.

Nothing is committed before the end unless you say so: `EndOfEpoch()` commits, and so
does `Advance(seconds)`, which lets processing time pass.
"""

from bettong.testing.result import PendingTimer, Result
from bettong.testing.run import run_in_memory
from bettong.testing.script import Advance, Crash, EndOfEpoch

__all__ = [
    "Advance",
    "Crash",
    "EndOfEpoch",
    "PendingTimer",
    "Result",
    "run_in_memory",
]
