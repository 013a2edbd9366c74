"""Timers of a stage: live ones against a plain dictionary."""

from hypothesis import given
from hypothesis import strategies as st

from bettong_engine.core.delta import TimerColumns
from bettong_engine.core.timers import (
    EVENT_TIME,
    HEAP_SLACK,
    PROCESSING_TIME,
    TimerName,
    TimerTable,
)


def columns(changes: list[tuple[TimerName, int | None]]) -> TimerColumns:
    return TimerColumns(
        keys=[key for (key, _, _), _ in changes],
        names=[name for (_, _, name), _ in changes],
        kinds=[kind for (_, kind, _), _ in changes],
        due_us=[due_us or 0 for _, due_us in changes],
        deleted=[i for i, (_, due_us) in enumerate(changes) if due_us is None],
    )


def test_timer_stays_due_until_a_delta_says_that_it_fired() -> None:
    table = TimerTable()
    table.apply_live(columns([((b"k", EVENT_TIME, "t"), 5)]))

    assert table.due(EVENT_TIME, 4) == []
    assert table.due(EVENT_TIME, 5) == [(5, b"k", "t")]
    assert table.due(EVENT_TIME, 5) == [(5, b"k", "t")]
    assert table.due(PROCESSING_TIME, 5) == []
    table.apply_live(columns([((b"k", EVENT_TIME, "t"), None)]))
    assert table.due(EVENT_TIME, 5) == []


def test_timer_that_is_moved_for_ever_leaves_bounded_waste() -> None:
    table = TimerTable()

    for due_us in range(10_000):
        table.apply_live(columns([((b"k", EVENT_TIME, "t"), due_us)]))

    assert len(table._heaps[EVENT_TIME]) <= HEAP_SLACK + 3
    assert table.next_due_us(EVENT_TIME) == 9_999


NAMES = st.tuples(
    st.sampled_from([b"a", b"b"]),
    st.sampled_from([EVENT_TIME, PROCESSING_TIME]),
    st.sampled_from(["", "t"]),
)
CHANGES = st.lists(st.tuples(NAMES, st.none() | st.integers(-3, 9)), max_size=5)


@given(
    st.lists(
        st.tuples(st.sampled_from(["apply", "commit", "reset"]), CHANGES), max_size=20
    )
)
def test_live_timers_are_what_a_dictionary_would_hold(
    story: list[tuple[str, list[tuple[TimerName, int | None]]]],
) -> None:
    table = TimerTable()
    live: dict[TimerName, int] = {}
    kept: dict[TimerName, int] = {}
    for action, changes in story:
        if action == "reset":
            table.reset()
            live = dict(kept)
            continue
        table.apply_live(columns(changes))
        targets = [live]
        if action == "commit":
            table.commit(columns(changes))
            targets.append(kept)
        for target in targets:
            for name, due_us in changes:
                if due_us is None:
                    target.pop(name, None)
                else:
                    target[name] = due_us

        assert table.committed == kept
        for kind in (EVENT_TIME, PROCESSING_TIME):
            wanted = sorted((d, n[0], n[2]) for n, d in live.items() if n[1] == kind)
            assert table.due(kind, 4) == [item for item in wanted if item[0] <= 4]
            assert table.next_due_us(kind) == (wanted[0][0] if wanted else None)
