"""A partition against a naive model: open epochs above committed state."""

from copy import deepcopy
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bettong_engine.core.delta import (
    OutputBatch,
    PartitionDelta,
    RowColumns,
    StoredDelta,
    StreamState,
    TimerColumns,
)
from bettong_engine.core.ids import Epoch, Generation, PartitionId
from bettong_engine.core.partition import Partition
from bettong_engine.core.timers import EVENT_TIME
from bettong_engine.errors import StateCorruptedError
from bettong_engine.net.delta_codec import decode_delta, encode_delta

Name = tuple[str, int, bytes, bytes]


def partition() -> Partition:
    return Partition(PartitionId(3))


def prepare(
    part: Partition,
    epoch: int,
    *,
    streams: list[StreamState] | None = None,
    watermarks: dict[str, int] | None = None,
) -> StoredDelta:
    return part.prepare(
        Epoch(epoch),
        Generation(1),
        streams=streams or [],
        sinks=[],
        watermarks=watermarks or {},
        encode=encode_delta,
    )


def write(
    part: Partition, epoch: int, rows: list[tuple[Name, bytes | None, int]]
) -> None:
    """Write rows of (name, value or None for deleted, schema version)."""
    for (stage, state, key, entry), value, version in rows:
        columns = RowColumns(
            keys=[key],
            values=[value or b""],
            states=[state] if state else (),
            entries=[entry] if entry else (),
            versions=[version] if version else (),
            absent=[0] if value is None else (),
        )
        part.on_stage_rows(Epoch(epoch), stage, columns, None)


def reloaded(part: Partition, deltas: list[StoredDelta]) -> Partition:
    """Return a partition made from a snapshot's bytes and the deltas after it."""
    snapshot = decode_delta(encode_delta(part.snapshot()))
    copy = partition()
    copy.load(snapshot, part.digest, [(decode_delta(d.body), d) for d in deltas])
    return copy


def test_rows_of_an_open_epoch_are_seen_at_once_and_dropped_with_it() -> None:
    part = partition()
    write(part, 1, [(("s", 0, b"k", b""), b"one", 0)])
    prepare(part, 1)
    part.commit(Epoch(1))
    write(part, 2, [(("s", 0, b"k", b""), None, 0)])

    assert part.row_of("s", 0, b"k", b"") is None
    part.drop_open()
    assert part.row_of("s", 0, b"k", b"") == b"one"


def test_digest_of_an_epoch_that_is_not_prepared_is_not_known() -> None:
    part = partition()
    write(part, 1, [(("s", 0, b"k", b""), b"one", 0)])

    assert part.digest_at(Epoch(0)) == b""
    assert part.digest_at(Epoch(1)) is None
    stored = prepare(part, 1)
    assert part.digest_at(Epoch(1)) == stored.digest
    assert part.digest_at(Epoch(5)) == stored.digest
    part.commit(Epoch(1))
    assert part.digest_at(Epoch(0)) is None


def test_watermark_outlives_compaction_without_any_row() -> None:
    part = partition()
    part.on_stage_rows(Epoch(1), "s", None, None)
    prepare(part, 1, watermarks={"s": 70})
    part.commit(Epoch(1))

    assert reloaded(part, []).watermarks == {"s": 70}


def test_forgotten_stream_is_gone_with_its_commit() -> None:
    part = partition()
    prepare(part, 1, streams=[StreamState("in", "a", b"1")])
    part.commit(Epoch(1))

    gone = StreamState("in", "a", b"2", is_ended=True, is_forgotten=True)
    prepare(part, 2, streams=[gone])
    assert list(part.streams) == [("in", "a")]
    part.commit(Epoch(2))

    assert part.streams == {}


def test_outputs_leave_with_the_commit_of_their_epoch_only() -> None:
    part = partition()
    delta = part.log_of("out", 0).prepare([OutputBatch(2, b"ab")], ())
    assert delta is not None
    part.prepare(
        Epoch(1),
        Generation(1),
        streams=[],
        sinks=[delta],
        watermarks={},
        encode=encode_delta,
    )

    assert part.log_of("out", 0).batches_after(0) == []
    ((log, batches),) = part.commit(Epoch(1))
    assert log is part.log_of("out", 0)
    assert [b.first_sequence for b in batches] == [1]


@pytest.mark.parametrize("damage", ["gap", "digest"])
def test_store_that_lost_a_delta_is_refused(damage: str) -> None:
    part = partition()
    deltas = []
    for epoch in (1, 2, 3):
        write(part, epoch, [(("s", 0, b"k", b""), b"%d" % epoch, 0)])
        deltas.append(prepare(part, epoch))
    if damage == "gap":
        del deltas[1]
    else:
        deltas[1], deltas[2] = (
            StoredDelta(d.partition, d.epoch, d.generation, b"x" * 16, d.body)
            for d in deltas[1:]
        )

    with pytest.raises(StateCorruptedError, match="does not follow epoch"):
        partition().load(None, b"", [(decode_delta(d.body), d) for d in deltas])


@dataclass
class Model:
    """Committed rows and timers, and those of each open epoch: whole copies."""

    rows: dict[Name, bytes | tuple[int, bytes]] = field(default_factory=dict)
    timers: dict[tuple[str, bytes], int] = field(default_factory=dict)


NAMES = st.tuples(
    st.sampled_from(["s", "t"]),
    st.sampled_from([0, 1]),
    st.sampled_from([b"k", b"l"]),
    st.sampled_from([b"", b"e", b"f"]),
)
ROWS = st.lists(
    st.tuples(
        NAMES, st.none() | st.sampled_from([b"", b"1", b"2"]), st.sampled_from([0, 2])
    ),
    max_size=4,
)
STEPS = st.one_of(
    st.tuples(st.just("write"), ROWS),
    st.tuples(st.just("timer"), st.none() | st.integers(0, 9)),
    st.tuples(
        st.sampled_from(["prepare", "commit", "drop", "reload", "replay"]), st.none()
    ),
)


def check(part: Partition, model: Model) -> None:
    for stage in ("s", "t"):
        for state in (0, 1):
            for key in (b"k", b"l"):
                entries = {}
                for entry in (b"", b"e", b"f"):
                    row = part.row_of(stage, state, key, entry)
                    assert row == model.rows.get((stage, state, key, entry))
                    if entry and row is not None:
                        entries[entry] = row
                assert part.entries_of(stage, state, key) == entries
        due = [(at, key, "n") for (s, key), at in model.timers.items() if s == stage]
        assert part.timers_of(stage).due(EVENT_TIME, 9) == sorted(due)


@settings(max_examples=150, deadline=None)
@given(st.lists(STEPS, max_size=30))
def test_partition_is_what_the_model_says(story: list[tuple[str, object]]) -> None:
    part, epoch = partition(), 1
    newest, committed = Model(), Model()
    prepared: list[tuple[StoredDelta, Model]] = []
    history: list[tuple[PartitionDelta, StoredDelta]] = []
    for action, value in story:
        if action == "write":
            write(part, epoch, value)  # type: ignore[arg-type]
            for name, row, version in value:  # type: ignore[attr-defined]
                if row is None:
                    newest.rows.pop(name, None)
                else:
                    newest.rows[name] = (version, row) if version else row
        elif action == "timer":
            columns = TimerColumns([b"k"], ["n"], [EVENT_TIME], [value or 0])  # type: ignore[list-item]
            if value is None:
                columns = TimerColumns([b"k"], ["n"], [EVENT_TIME], [0], [0])
            part.on_stage_rows(Epoch(epoch), "s", None, columns)
            newest.timers.pop(("s", b"k"), None)
            if value is not None:
                newest.timers["s", b"k"] = value  # type: ignore[assignment]
        elif action == "prepare":
            prepared.append((prepare(part, epoch), deepcopy(newest)))
            epoch += 1
        elif action == "commit" and prepared:
            stored, committed = prepared.pop(0)
            part.commit(stored.epoch)
            history.append((decode_delta(stored.body), stored))
            assert part.digest == stored.digest
        elif action in ("drop", "reload", "replay"):
            if action == "drop":
                part.drop_open()
            elif action == "reload":
                digest = part.digest
                part.drop_open()
                part = reloaded(part, [])
                assert part.digest == digest
            else:
                digest, part = part.digest, partition()
                part.load(None, b"", history)
                assert part.digest == digest
            prepared.clear()
            newest, epoch = deepcopy(committed), part.epoch + 1
        check(part, newest)
