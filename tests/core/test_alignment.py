"""Barriers of one stage: every interleaving is one consistent cut an epoch."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bettong_engine.core.alignment import (
    Align,
    Effect,
    Forward,
    InputBatch,
    Mark,
    StageAligner,
)
from bettong_engine.core.ids import WATERMARK_END_US, Epoch
from bettong_engine.errors import ProtocolError

IDLE = Mark(is_idle=True)
END = Mark(WATERMARK_END_US)


def aligner(*channels: int, watermark_us: int | None = None) -> StageAligner:
    return StageAligner(channels, last_epoch=Epoch(6), watermark_us=watermark_us)


def batch(sender: int, epoch: int, number: int = 0) -> InputBatch:
    return InputBatch(sender, sender, 0, 1, f"{sender}/{epoch}/{number}".encode())


def align_all(stage: StageAligner, epoch: int, **marks: Mark) -> list[Effect]:
    """Give every channel's barrier; channels are named c0, c1, …"""
    effects: list[Effect] = []
    for name, mark in marks.items():
        effects += stage.on_barrier(int(name[1:]), Epoch(epoch), mark)
    return effects


def test_batch_ahead_of_a_barrier_waits_for_the_other_channel() -> None:
    stage = aligner(0, 1)
    stage.on_barrier(0, Epoch(7), Mark())

    early = stage.on_batch(batch(0, 8), Epoch(8))
    aligned = stage.on_barrier(1, Epoch(7), Mark())

    assert early == []
    assert aligned == [Align(Epoch(7), Mark()), Forward(batch(0, 8))]


def test_next_barrier_waits_for_the_ack_but_its_records_do_not() -> None:
    stage = aligner(0)
    stage.on_barrier(0, Epoch(7), Mark())

    passed = stage.on_batch(batch(0, 8), Epoch(8))
    waiting = stage.on_barrier(0, Epoch(8), Mark())
    acked = stage.on_ack(Epoch(7))

    assert passed == [Forward(batch(0, 8))]
    assert waiting == []
    assert acked == [Align(Epoch(8), Mark())]


@pytest.mark.parametrize(
    ("marks", "expected"),
    [
        ({"c0": Mark(50), "c1": Mark(40)}, Mark(40)),
        ({"c0": Mark(50), "c1": IDLE}, Mark(50)),
        ({"c0": IDLE, "c1": IDLE}, Mark(30, is_idle=True)),
        ({"c0": Mark(50), "c1": Mark()}, Mark(30)),
        ({"c0": Mark(20), "c1": Mark(50)}, Mark(30)),
        ({"c0": END, "c1": Mark(50)}, Mark(50)),
        ({"c0": END, "c1": END}, END),
        # One that is silent may speak again: time does not end for it.
        ({"c0": END, "c1": IDLE}, Mark(30, is_idle=True)),
        ({"c0": END, "c1": Mark()}, Mark(30)),
    ],
)
def test_watermark_is_least_of_inputs_that_are_not_idle_and_never_falls(
    marks: dict[str, Mark], expected: Mark
) -> None:
    stage = aligner(0, 1, watermark_us=30)

    effects = align_all(stage, 7, **marks)

    assert effects == [Align(Epoch(7), expected)]
    assert stage.last_mark == expected


@pytest.mark.parametrize("epoch", [6, 8])
def test_barrier_that_is_not_due_is_refused(epoch: int) -> None:
    with pytest.raises(ProtocolError, match="out of order"):
        aligner(0).on_barrier(0, Epoch(epoch), Mark())


def test_batch_behind_its_barrier_is_refused() -> None:
    stage = aligner(0, 1)
    stage.on_barrier(0, Epoch(7), Mark())

    with pytest.raises(ProtocolError, match="closed epoch"):
        stage.on_batch(batch(0, 7), Epoch(7))


@pytest.mark.parametrize("epoch", [6, 7, 8])
def test_ack_without_a_barrier_is_refused(epoch: int) -> None:
    with pytest.raises(ProtocolError, match="was not asked for"):
        aligner(0).on_ack(Epoch(epoch))


@st.composite
def interleavings(draw: st.DrawFn) -> tuple[int, list[int]]:
    """Return the number of channels, and whose turn it is; -1: the stage acks."""
    channels = draw(st.integers(1, 4))
    turns = draw(st.lists(st.integers(-1, channels - 1), max_size=80))
    return channels, turns


@given(interleavings())
def test_no_record_crosses_a_barrier_and_none_is_lost(
    story: tuple[int, list[int]],
) -> None:
    channels, turns = story
    stage = StageAligner(range(channels), last_epoch=Epoch(0), watermark_us=None)
    scripts = [
        [
            item
            for epoch in (1, 2, 3)
            for item in ((epoch, 0), (epoch, 1), (epoch, None))
        ]
        for _ in range(channels)
    ]
    seen: list[Effect] = []
    unacked = acked = 0

    def take(found: list[Effect]) -> None:
        nonlocal unacked
        for effect in found:
            if isinstance(effect, Align):
                assert unacked == acked, "two barriers are out"
                unacked = effect.epoch
        seen.extend(found)

    # First in the order of the story, then what is left, so that all is told.
    rest = [c for c in range(channels) for _ in range(9)] + [-1] * 4
    for turn in [*turns, *rest, *rest]:
        if turn == -1:
            if unacked > acked:
                acked = unacked
                take(stage.on_ack(Epoch(unacked)))
        elif scripts[turn]:
            epoch, number = scripts[turn].pop(0)
            if number is None:
                take(stage.on_barrier(turn, Epoch(epoch), Mark()))
            else:
                take(stage.on_batch(batch(turn, epoch, number), Epoch(epoch)))

    assert [e.epoch for e in seen if isinstance(e, Align)] == [1, 2, 3]
    now = 1
    order: dict[int, list[bytes]] = {c: [] for c in range(channels)}
    for effect in seen:
        if isinstance(effect, Align):
            now += 1
        else:
            records = effect.batch.records
            assert records.split(b"/")[1] == str(now).encode()
            order[effect.batch.sender].append(records)
    assert order == {
        c: [f"{c}/{e}/{n}".encode() for e in (1, 2, 3) for n in (0, 1)]
        for c in range(channels)
    }
