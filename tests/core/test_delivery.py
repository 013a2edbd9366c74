"""One sink partition: what its plugin is sent, and what is believed of it."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bettong_engine.core import delivery
from bettong_engine.core.delivery import (
    Blocked,
    Close,
    Deliver,
    Delivery,
    DeliveryState,
    Open,
    Quarantine,
    SkipOutput,
)
from bettong_engine.core.delta import OutputBatch
from bettong_engine.core.ids import Generation, InstanceId
from bettong_engine.core.messages import Cause
from bettong_engine.core.output_log import OutputLog
from bettong_engine.errors import ProtocolError

HISTORY = b"h" * 16
ONE = InstanceId(1)
G = Generation(7)
BAD = Cause("RECORD", "too long")
AWAY = Cause("SINK_UNAVAILABLE", "connection refused")


def commit(target: Delivery, *counts: int, skipped: tuple[int, ...] = ()) -> None:
    """Commit an epoch with batches of so many outputs."""
    batches = [OutputBatch(count, b"x" * count) for count in counts]
    delta = target.log.prepare(batches, skipped)
    assert delta is not None
    target.log.commit(delta)


def opened(*counts: int, at: int = 0) -> Delivery:
    """Return an open delivery whose log holds batches of so many outputs."""
    target = Delivery(OutputLog("out", 0), HISTORY)
    if counts:
        commit(target, *counts)
    target.on_attached(ONE, G)
    target.on_opened(G, (HISTORY, at))
    return target


def sent(effects: list[delivery.Effect]) -> list[int]:
    """Return the first sequence of each batch."""
    return [e.batch.first_sequence for e in effects if isinstance(e, Deliver)]


def test_every_generation_closes_and_opens() -> None:
    target = opened()

    effects = target.on_generation(Generation(8))

    assert effects == [Close(ONE, 0, Generation(8)), Open(ONE, 0, Generation(8))]
    assert target.state is DeliveryState.OPENING


def test_nothing_is_sent_before_the_position_is_known() -> None:
    target = Delivery(OutputLog("out", 0), HISTORY)
    commit(target, 2)
    target.on_attached(ONE, G)

    assert target.on_committed() == []
    assert sent(target.on_opened(G, (b"", 0))) == [1]


@pytest.mark.parametrize(
    ("position", "code"),
    [
        ((b"other" * 3, 3), "SINK_FOREIGN"),
        ((HISTORY, 7), "SINK_AHEAD"),
        ((HISTORY, 1), "SINK_GAP"),
        ((b"", 0), "SINK_GAP"),
        ((HISTORY, 2), None),
        ((HISTORY, 6), None),
        (None, None),
    ],
)
def test_position_that_does_not_fit_blocks_the_sink(
    position: tuple[bytes, int] | None, code: str | None
) -> None:
    target = opened(2, 2, 2)
    target.on_progress(G, 2)
    commit(target)
    target.on_generation(Generation(8))

    effects = target.on_opened(Generation(8), position)

    found = [e.cause.code for e in effects if isinstance(e, Blocked)]
    assert found == ([code] if code else [])
    assert (target.state is DeliveryState.BLOCKED) == (code is not None)


def test_empty_target_of_a_fresh_application_fits() -> None:
    target = Delivery(OutputLog("out", 0), HISTORY)
    target.on_attached(ONE, G)

    assert target.on_opened(G, (b"", 0)) == []
    assert target.state is DeliveryState.OPEN


def test_batch_that_holds_the_position_is_sent_whole() -> None:
    target = opened(2, 2, 2, at=3)

    target.on_generation(Generation(8))

    assert sent(target.on_opened(Generation(8), (HISTORY, 3))) == [3, 5]


def test_target_that_cannot_say_goes_on_from_what_it_reported() -> None:
    target = opened(2, 2)
    target.on_progress(G, 2)
    target.on_generation(Generation(8))

    assert sent(target.on_opened(Generation(8), None)) == [3]


def test_window_overshoots_by_one_batch_at_most(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(delivery, "WINDOW_BYTES", 5)
    target = Delivery(OutputLog("out", 0), HISTORY)
    commit(target, 3, 3, 3)
    target.on_attached(ONE, G)

    assert sent(target.on_opened(G, (b"", 0))) == [1, 4]
    assert sent(target.on_progress(G, 2)) == []
    assert sent(target.on_progress(G, 3)) == [7]


def test_progress_beyond_what_was_sent_is_refused() -> None:
    target = opened(2)

    with pytest.raises(ProtocolError, match="reports 3, was sent 2"):
        target.on_progress(G, 3)


@pytest.mark.parametrize("generation", [6, 8])
def test_what_another_generation_says_changes_nothing(generation: int) -> None:
    target = opened(4)
    other = Generation(generation)

    assert target.on_opened(other, (HISTORY, 99)) == []
    assert target.on_progress(other, 4) == []
    assert target.on_refused(other, 2, BAD) == []
    assert target.on_error(other, AWAY, is_retryable=False) == []
    assert (target.state, target.log.durable) == (DeliveryState.OPEN, 0)


def test_refused_output_is_skipped_once_its_mark_is_committed() -> None:
    target = opened(2, 4)

    assert target.on_refused(G, 4, BAD) == [Quarantine(4, BAD)]
    commit(target, 1)
    assert target.on_committed() == []
    commit(target, skipped=(4,))

    effects = target.on_committed()

    assert effects[0] == SkipOutput(ONE, 0, G, 4)
    assert sent(effects) == [3, 7]


def test_second_refusal_of_a_marked_output_makes_no_second_dead_letter() -> None:
    target = opened(6)
    target.on_refused(G, 4, BAD)
    commit(target, skipped=(4,))
    target.on_committed()
    target.on_generation(Generation(8))
    target.on_opened(Generation(8), (HISTORY, 1))

    effects = target.on_refused(Generation(8), 4, BAD)

    assert effects[0] == SkipOutput(ONE, 0, Generation(8), 4)
    assert sent(effects) == [1]


def test_marked_output_that_comes_next_is_skipped_ahead_of_it() -> None:
    target = opened(6)
    target.on_refused(G, 4, BAD)
    commit(target, skipped=(4,))
    target.on_generation(Generation(8))

    effects = target.on_opened(Generation(8), (HISTORY, 3))

    assert effects[0] == SkipOutput(ONE, 0, Generation(8), 4)
    assert sent(effects) == [1]


def test_trouble_while_a_dead_letter_is_on_its_way_makes_no_second_one() -> None:
    target = opened(6)
    target.on_refused(G, 4, BAD)
    target.on_error(G, AWAY, is_retryable=True)

    reopened = target.on_opened(G, (HISTORY, 1))

    assert reopened == []
    assert target.state is DeliveryState.REFUSED
    commit(target, skipped=(4,))
    # Two and three are sent again; the plugin refuses four again, and is told.
    assert sent(target.on_committed()) == [1]
    assert target.on_refused(G, 4, BAD)[0] == SkipOutput(ONE, 0, G, 4)


def test_trouble_sends_again_from_what_the_target_holds() -> None:
    target = opened(2, 2)

    assert target.on_error(G, AWAY, is_retryable=True) == []
    assert target.state is DeliveryState.RETRYING
    assert target.on_committed() == []
    assert sent(target.on_opened(G, (HISTORY, 2))) == [3]


def test_blocked_sink_stays_blocked_until_the_next_generation() -> None:
    target = opened(2)
    broken = Cause("CONFIG", "no such table")

    assert target.on_error(G, broken, is_retryable=False) == [Blocked(broken)]
    assert target.on_error(G, AWAY, is_retryable=True) == []
    assert target.on_opened(G, (HISTORY, 0)) == []
    assert target.state is DeliveryState.BLOCKED
    assert target.last_error == broken
    target.on_generation(Generation(8))
    assert sent(target.on_opened(Generation(8), (HISTORY, 0))) == [1]


def test_sink_fenced_by_a_newer_writer_asks_nobody() -> None:
    target = opened(2)

    assert target.on_error(G, Cause("FENCED", "newer"), is_retryable=False) == []
    assert target.on_committed() == []


def test_refusal_of_what_was_never_sent_is_refused() -> None:
    with pytest.raises(ProtocolError, match="was not sent"):
        opened(2).on_refused(G, 3, BAD)


class Target:
    """A plugin that obeys the protocol, with a store that survives everything."""

    def __init__(self) -> None:
        self.stored: dict[int, bool] = {}
        self.position = 0
        self.expected: int | None = None
        self.is_refusing = False

    def take(self, effect: Deliver, bad: int) -> int | None:
        """Write a batch; return the sequence that is refused, if one is."""
        assert self.expected is not None
        first = effect.batch.first_sequence
        if first > self.expected:
            assert self.is_refusing, "outputs are missing"
            return None
        if self.is_refusing:
            return None
        for sequence in range(
            max(first, self.expected), effect.batch.last_sequence + 1
        ):
            if sequence == bad:
                self.is_refusing = True
                return sequence
            self._write(sequence, is_skipped=False)
        return None

    def skip(self, sequence: int) -> None:
        assert self.expected is not None
        self.is_refusing = False
        if sequence >= self.expected:
            assert sequence == self.expected, "a skip leaves outputs out"
            self._write(sequence, is_skipped=True)

    def _write(self, sequence: int, *, is_skipped: bool) -> None:
        assert sequence == self.position + 1
        assert sequence not in self.stored
        self.stored[sequence] = is_skipped
        self.position, self.expected = sequence, sequence + 1


EVENTS = st.sampled_from(["commit", "progress", "trouble", "generation", "marks"])


@given(st.lists(EVENTS, max_size=40), st.integers(1, 12))
def test_target_gets_every_output_once_whatever_happens(
    story: list[str], bad: int
) -> None:
    target, plugin = Delivery(OutputLog("out", 0), HISTORY), Target()
    generation = 7
    marks: list[int] = []
    letters = 0

    def do(effects: list[delivery.Effect]) -> None:
        nonlocal letters
        pending = list(effects)
        while pending:
            effect = pending.pop(0)
            if isinstance(effect, Deliver):
                refused = plugin.take(effect, bad)
                if refused is not None:
                    pending += target.on_refused(Generation(generation), refused, BAD)
            elif isinstance(effect, SkipOutput):
                plugin.skip(effect.sequence)
            elif isinstance(effect, Quarantine):
                letters += 1
                marks.append(effect.sequence)

    def open_again() -> None:
        plugin.expected = plugin.position + 1
        plugin.is_refusing = False
        position = (HISTORY if plugin.position else b"", plugin.position)
        do(target.on_opened(Generation(generation), position))

    target.on_attached(ONE, Generation(generation))
    open_again()
    for event in [*story, "commit", "marks", "progress"]:
        if event == "commit":
            commit(target, 2, 1)
            do(target.on_committed())
        elif event == "marks" and marks:
            commit(target, skipped=tuple(marks))
            marks.clear()
            do(target.on_committed())
        elif event == "progress":
            do(target.on_progress(Generation(generation), plugin.position))
        elif event == "trouble":
            do(target.on_error(Generation(generation), AWAY, is_retryable=True))
            open_again()
        elif event == "generation":
            # What is not committed is taken back: marks too.
            letters -= len(marks)
            marks.clear()
            target.log.reset()
            generation += 1
            do(target.on_generation(Generation(generation)))
            open_again()
    if marks:
        commit(target, skipped=tuple(marks))
        do(target.on_committed())

    made = target.log.committed_to
    assert plugin.stored == {s: s == bad for s in range(1, made + 1)}
    assert letters == (1 if bad <= made else 0)
