"""Where records enter an epoch: whole reads, in the order of their stream."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bettong_engine.core.alignment import Mark
from bettong_engine.core.boundary import (
    Effect,
    EndEpoch,
    Frame,
    SourceBatch,
    SourceBoundary,
    Stamp,
)
from bettong_engine.core.delta import StreamState
from bettong_engine.core.ids import WATERMARK_END_US, Epoch
from bettong_engine.errors import ProtocolError

BATCHES = (SourceBatch(0, 0, 1, b"record"),)


def boundary(*streams: str, is_local: bool = False) -> SourceBoundary:
    found = SourceBoundary(Epoch(7), {0: ["s"]})
    for stream in streams:
        found.add_stream(StreamState("s", stream), is_local=is_local)
    found.add_source("s")
    return found


def read(stream: str, number: int, **fields: object) -> Frame:
    """Return a whole read, unless `fields` say otherwise."""
    whole = Frame(stream, number, BATCHES, position=str(number).encode())
    return replace(whole, **fields)  # type: ignore[arg-type]


def part(stream: str, number: int) -> Frame:
    return read(stream, number, more=True, position=b"")


def mark(stream: str, number: int, **fields: object) -> Frame:
    return read(stream, number, batches=(), position=b"", **fields)


def stamps(effects: list[Effect]) -> list[tuple[str, int, int]]:
    return [
        (e.frame.stream, e.frame.number, e.epoch)
        for e in effects
        if isinstance(e, Stamp)
    ]


def ends(effects: list[Effect]) -> list[EndEpoch]:
    return [e for e in effects if isinstance(e, EndEpoch)]


def test_read_is_never_cut() -> None:
    source = boundary("a")
    source.on_frame("s", part("a", 1))

    asked = source.ask_cut(Epoch(7))
    later = source.on_frame("s", part("a", 2))
    last = source.on_frame("s", read("a", 3))

    assert asked == []
    assert stamps(later) == [("a", 2, 7)]
    assert stamps(last) == [("a", 3, 7)]
    assert last[-1] == EndEpoch(
        Epoch(7), (StreamState("s", "a", b"3"),), {0: Mark(None)}
    )


def test_new_read_waits_while_a_cut_does() -> None:
    source = boundary("a", "b")
    source.on_frame("s", part("a", 1))
    source.ask_cut(Epoch(7))

    held = source.on_frame("s", read("b", 1))
    done = source.on_frame("s", read("a", 2))

    assert held == []
    assert stamps(done) == [("a", 2, 7), ("b", 1, 8)]
    assert [type(e) for e in done] == [Stamp, EndEpoch, Stamp]


def test_cut_asked_for_while_an_earlier_one_waits_is_made_after_it() -> None:
    source = boundary("a")
    source.on_frame("s", part("a", 1))

    source.ask_cut(Epoch(7))
    source.ask_cut(Epoch(8))
    done = source.on_frame("s", read("a", 2))

    assert [e.epoch for e in ends(done)] == [7, 8]
    assert source.open_epoch == 9


def test_cut_that_is_made_is_not_made_again() -> None:
    source = boundary("a")
    source.ask_cut(Epoch(7))

    assert source.ask_cut(Epoch(7)) == []


def test_mark_inside_a_read_does_not_end_it() -> None:
    source = boundary("a")
    source.on_frame("s", part("a", 1))

    source.on_frame("s", mark("a", 2, watermark_us=5))

    assert source.ask_cut(Epoch(7)) == []


def test_mark_leaves_the_position_as_it_was() -> None:
    source = boundary("a")
    source.on_frame("s", read("a", 1))
    source.on_frame("s", mark("a", 2, watermark_us=5, is_idle=True))

    (ended,) = ends(source.ask_cut(Epoch(7)))

    assert ended.streams == (StreamState("s", "a", b"1", False, 5, is_idle=True),)


def test_barrier_carries_the_watermark_of_its_own_epoch() -> None:
    """A read of the next epoch may hold records older than its watermark."""
    source = boundary("a", "b")
    source.on_frame("s", read("a", 1, watermark_us=10))
    source.on_frame("s", replace(part("b", 1), watermark_us=10))
    source.ask_cut(Epoch(7))
    source.on_frame("s", read("a", 2, watermark_us=90))

    done = source.on_frame("s", read("b", 2, watermark_us=20))

    assert stamps(done)[-1] == ("a", 2, 8)
    assert ends(done)[0].marks == {0: Mark(10)}


def test_held_source_finishes_its_read_and_begins_none() -> None:
    source = boundary("a", "b")
    source.on_frame("s", part("a", 1))
    source.hold(True)

    assert stamps(source.on_frame("s", read("a", 2))) == [("a", 2, 7)]
    assert source.on_frame("s", read("b", 1)) == []
    assert source.on_frame("s", read("a", 3)) == []
    assert stamps(source.hold(False)) == [("b", 1, 7), ("a", 3, 7)]


@pytest.mark.parametrize(
    ("frames", "fault"),
    [
        ([read("x", 1)], "never named"),
        ([read("a", 2)], "frame 2 follows frame 0"),
        ([read("a", 1), read("a", 1)], "frame 1 follows frame 1"),
        ([read("a", 1, is_end=True), read("a", 2)], "after the end"),
        ([read("a", 1, more=True)], "has a position"),
        ([read("a", 1, more=True, position=b"", is_end=True)], "an end"),
        ([read("a", 1, position=b"")], "has batches"),
        ([part("a", 1), mark("a", 2, is_end=True)], "inside a read"),
    ],
)
def test_frame_that_breaks_the_contract_is_refused(
    frames: list[Frame], fault: str
) -> None:
    source = boundary("a")
    for frame in frames[:-1]:
        source.on_frame("s", frame)

    with pytest.raises(ProtocolError, match=fault):
        source.on_frame("s", frames[-1])


def test_frame_behind_an_end_that_still_waits_is_refused() -> None:
    source = boundary("a")
    source.hold(True)
    source.on_frame("s", read("a", 1, is_end=True))

    with pytest.raises(ProtocolError, match="after the end"):
        source.on_frame("s", read("a", 2))


def test_local_stream_is_forgotten_with_its_end() -> None:
    source = boundary("a", is_local=True)
    source.on_frame("s", read("a", 1, is_end=True))

    (ended,) = ends(source.ask_cut(Epoch(7)))

    assert [s.is_forgotten for s in ended.streams] == [True]
    assert not source.knows("s", "a")


def test_shared_stream_is_remembered_after_its_end() -> None:
    source = boundary("a")
    source.on_frame("s", read("a", 1, is_end=True))

    source.ask_cut(Epoch(7))

    assert source.knows("s", "a")
    assert source.open_streams("s") == []


def test_watermark_is_the_end_of_time_once_a_complete_source_has_ended() -> None:
    source = boundary("a")
    source.on_frame("s", read("a", 1, is_end=True))
    (first,) = ends(source.ask_cut(Epoch(7)))

    source.add_source("s", is_complete=True)

    assert first.marks == {0: Mark(is_idle=True)}
    assert source.has_work()
    (second,) = ends(source.ask_cut(Epoch(8)))
    assert second.marks == {0: Mark(WATERMARK_END_US)}
    assert source.is_exhausted()
    assert not source.has_work()


def test_appearance_of_a_stream_is_work() -> None:
    source = boundary()
    assert not source.has_work()

    source.appear("s", "a", is_local=False)

    assert source.has_work()


ACTIONS = st.sampled_from(["part", "read", "mark", "cut", "hold", "release"])


@given(st.lists(st.tuples(ACTIONS, st.sampled_from("abc")), max_size=60))
def test_every_frame_enters_once_in_order_and_no_read_is_in_two_epochs(
    story: list[tuple[str, str]],
) -> None:
    source = boundary("a", "b", "c")
    numbers = dict.fromkeys("abc", 0)
    sent: dict[str, list[Frame]] = {name: [] for name in "abc"}
    effects: list[Effect] = []
    asked = 6
    story += [(action, name) for name in "abc" for action in ("read",)]
    for action, name in [*story, ("release", "a")]:
        if action in ("part", "read", "mark"):
            numbers[name] += 1
            make = {"part": part, "read": read, "mark": mark}[action]
            sent[name].append(make(name, numbers[name]))
            effects += source.on_frame("s", sent[name][-1])
        elif action == "cut":
            asked = max(asked + 1, source.open_epoch)
            effects += source.ask_cut(Epoch(asked))
        else:
            effects += source.hold(action == "hold")

    assert [e.epoch for e in ends(effects)] == list(range(7, asked + 1))
    now = 7
    position: dict[str, bytes | None] = dict.fromkeys("abc")
    epoch_of_read: dict[str, int | None] = dict.fromkeys("abc")
    entered: dict[str, list[Frame]] = {name: [] for name in "abc"}
    for effect in effects:
        if isinstance(effect, EndEpoch):
            assert effect.epoch == now
            now += 1
            for state in effect.streams:
                assert state.position == position[state.stream]
            continue
        frame = effect.frame
        assert effect.epoch == now
        entered[frame.stream].append(frame)
        if frame.is_mark:
            continue
        begun = epoch_of_read[frame.stream]
        assert begun in (None, now), "a read is cut"
        epoch_of_read[frame.stream] = now if frame.more else None
        if not frame.more:
            position[frame.stream] = frame.position
    assert entered == sent
