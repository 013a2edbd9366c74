"""Small whole stories of one worker: epochs, generations, streams, sinks, timers."""

import json
from collections.abc import Sequence

import pytest
from tests.core.worker_world import (
    COMPUTE,
    DEAD,
    SINK,
    SOURCE,
    World,
    barriers,
    delivered,
    in_sync,
    records,
    told,
    topology,
)

from bettong_engine.core.boundary import Frame, SourceBatch
from bettong_engine.core.dataflow import Grant, ToStage
from bettong_engine.core.delivery import Open, SkipOutput
from bettong_engine.core.delta import RowColumns, StreamState
from bettong_engine.core.effects import (
    DropInstance,
    HoldSource,
    NotifyCommitted,
    OpenStream,
    ResetSource,
    SendRows,
    SendTimers,
    StoreDeltas,
    ToSinkPlugin,
)
from bettong_engine.core.ids import (
    WATERMARK_END_US,
    Epoch,
    Generation,
    InstanceId,
    Term,
)
from bettong_engine.core.limits import WorkerLimits
from bettong_engine.core.messages import (
    Cause,
    Committed,
    Finished,
    HoldSources,
    Installed,
    NeedGeneration,
    NeedPause,
    Prepared,
    StartGeneration,
    WorkAvailable,
)
from bettong_engine.core.timers import PROCESSING_TIME
from bettong_engine.errors import ProtocolError

BAD = Cause("RECORD", "too long")
GONE = Cause("UNSPECIFIED", "the process ended")


def resets(effects: Sequence[object]) -> list[ResetSource]:
    return [e for e in effects if isinstance(e, ResetSource)]


def test_nothing_of_an_epoch_is_visible_before_its_commit() -> None:
    world = World().started()
    assert told(world.frame("a", b"x"), WorkAvailable) == []  # told at the start

    cut = world.cut(1)
    prepared = world.compute(1, {b"x": b"1"}, (b"x => 1",))
    assert delivered(cut + prepared) == []
    assert [type(e) for e in prepared] == [StoreDeltas]
    (told_prepared,) = told(
        world.worker.on_stored(Generation(1), Epoch(1), 5), Prepared
    )
    committed = world.commit(prepared, 1)

    assert isinstance(told_prepared, Prepared)
    assert delivered(committed) == [[b"x => 1"]]
    notices = [e for e in committed if isinstance(e, NotifyCommitted)]
    assert [n.streams for n in notices] == [(StreamState("in", "a", b"1"),)]
    assert world.row(b"x") == b"1"


def test_generation_takes_back_what_is_not_committed() -> None:
    world = World().started()
    world.frame("a", b"x")
    world.epoch({b"x": b"1"}, (b"x => 1",))
    world.frame("a", b"x")
    world.cut(2)
    world.compute(2, {b"x": b"2"}, (b"x => 2",))
    assert world.row(b"x") == b"2"

    begun = world.start_generation()
    installed = world.install()

    assert in_sync(begun)
    assert world.row(b"x") == b"1"
    (reset,) = resets(installed)
    assert (reset.epoch, reset.streams) == (1, (StreamState("in", "a", b"1"),))
    assert told(installed, Installed) == [Installed(world.worker.id, Generation(2))]
    # The same number names the record of the second try.
    world.open_sinks()
    world.frame("a", b"x")
    world.cut(2)
    again = world.commit(world.compute(2, {b"x": b"2"}, (b"x => 2",)), 2)
    assert delivered(again) == [[b"x => 2"]]


def test_commit_that_nobody_announced_is_kept_by_the_next_generation() -> None:
    world = World().started()
    world.frame("a", b"x")
    world.cut(1)
    world.store(world.compute(1, {b"x": b"1"}, (b"x => 1",)))
    world.decide(1)

    begun = world.start_generation()
    installed = world.install()
    opened = world.open_sinks()

    assert in_sync(begun)
    assert world.row(b"x") == b"1"
    assert resets(installed)[0].streams == (StreamState("in", "a", b"1"),)
    assert delivered(opened) == [[b"x => 1"]]


def test_prepared_epoch_that_was_not_committed_is_dropped() -> None:
    world = World().started()
    world.frame("a", b"x")
    world.cut(1)
    world.store(world.compute(1, {b"x": b"1"}, (b"x => 1",)))

    begun = world.start_generation()
    world.install()

    assert in_sync(begun)
    assert world.row(b"x") is None
    assert delivered(world.open_sinks()) == []


def test_copy_that_differs_from_the_commit_is_not_in_sync() -> None:
    world = World().started()
    world.frame("a", b"x")
    world.epoch({b"x": b"1"})
    world.digests = [b"z" * 16] * 4

    assert not in_sync(world.start_generation())


def test_restarted_worker_goes_on_from_its_disk() -> None:
    world = World().started()
    world.frame("a", b"x", watermark_us=50)
    world.epoch({b"x": b"1"}, (b"x => 1",))

    world.restart()
    world.attach()
    begun = world.start_generation()
    (reset,) = resets(world.install())

    assert in_sync(begun)
    assert world.row(b"x") == b"1"
    assert reset.streams == (StreamState("in", "a", b"1", watermark_us=50),)
    assert delivered(world.open_sinks()) == [[b"x => 1"]]


def test_late_start_of_an_older_generation_truncates_nothing() -> None:
    world = World().started()
    world.frame("a", b"x")
    world.epoch({b"x": b"1"})
    world.next_generation()
    digests = (b"",) * 4

    for term, generation in ((1, 1), (1, 2), (0, 9)):
        late = StartGeneration(Term(term), Generation(generation), Epoch(0), digests)
        assert world.worker.on_coordinator(late) == []
    assert world.row(b"x") == b"1"
    assert world.worker.committed_epoch == 1


def test_messages_of_an_older_generation_change_nothing() -> None:
    world = World().started()
    world.frame("a", b"x")
    world.cut(1)
    world.compute(1, {b"x": b"1"})
    world.next_generation()
    old = Generation(1)
    batch = SourceBatch(0, 0, 1, records(b"x"))
    rows = RowColumns([b"x"], [b"9"])
    worker = world.worker

    for effects in (
        worker.on_frame(SOURCE, old, Frame("a", 2, (batch,), position=b"2")),
        worker.on_stage_output(COMPUTE, old, 0, batch),
        worker.on_delta(COMPUTE, old, Epoch(1), 0, [(0, rows, None)]),
        worker.on_barrier_ack(COMPUTE, old, Epoch(1), 0, 0),
        worker.on_state_get(COMPUTE, old, 1, 0, [(0, b"x", b"")]),
        worker.on_compute_reset(COMPUTE, old),
        worker.on_stored(old, Epoch(1), 0),
        worker.on_sink_opened(SINK, 0, old, (b"foreign", 9)),
        worker.on_progress(SINK, 0, old, 99),
        worker.on_refused(SINK, 0, old, 99, BAD),
        worker.on_coordinator(Committed(old, Epoch(1))),
        worker.on_coordinator(HoldSources(old, "stop")),
    ):
        assert effects == []
    assert world.row(b"x") is None


def test_credit_of_an_older_generation_is_none_of_this_one() -> None:
    world = World().started()
    world.start_generation()
    world.install(is_answered=False)

    old = world.worker.on_consumed(COMPUTE, 0, 1 << 30, 1 << 40)
    world.worker.on_compute_reset(COMPUTE, Generation(2))
    new = world.worker.on_consumed(COMPUTE, 0, 1 << 20, 1 << 30)

    assert old == []
    assert [type(e) for e in new] == [Grant]
    assert [e.records for e in new if isinstance(e, Grant)] == [
        world.limits.flow.credit_records + (1 << 20)
    ]


def test_cut_waits_for_a_read_that_is_under_way() -> None:
    world = World().started()
    world.frame("a", b"x", more=True)

    waiting = world.cut(1)
    ended = world.frame("a", b"y")

    assert barriers(waiting) == []
    assert [b.epoch for b in barriers(ended)] == [1]


def test_read_of_the_next_epoch_comes_behind_the_barrier() -> None:
    world = World().started(("a", "b"))
    world.frame("a", b"x", more=True)
    world.cut(1)
    world.frame("b", b"z")

    ended = world.frame("a", b"y")

    kinds = [type(e).__name__ for e in ended if isinstance(e, ToStage) or barriers([e])]
    assert kinds == ["ToStage", "SendBarrier", "ToStage"]


def test_state_is_answered_with_rows_of_open_epochs() -> None:
    world = World().started()
    world.frame("a", b"x")
    world.cut(1)
    world.compute(1, {b"x": b"1"})

    (answer,) = world.worker.on_state_get(
        COMPUTE, Generation(1), 5, 0, [(0, b"x", b""), (0, b"y", b"")]
    )

    assert isinstance(answer, SendRows)
    assert [(r.key, r.row) for r in answer.rows] == [(b"x", b"1"), (b"y", None)]


# Peers that break the contract.


def test_frame_that_is_half_taken_is_never_committed() -> None:
    """Its position would be kept, and the records behind the fault lost."""
    world = World().started()
    good, bad = (SourceBatch(0, target, 1, records(b"x")) for target in (0, 9))
    frame = Frame("a", 1, (good, bad), position=b"2")
    with pytest.raises(ProtocolError, match="no target 9"):
        world.worker.on_frame(SOURCE, Generation(1), frame)

    world.cut(1)
    effects = world.compute(1, {b"x": b"1"})

    assert [e for e in effects if isinstance(e, StoreDeltas)] == []


@pytest.mark.parametrize("epoch", [0, 2, 10**9])
def test_delta_or_ack_out_of_place_is_refused(epoch: int) -> None:
    world = World().started()
    world.cut(1)
    where = (COMPUTE, Generation(1), Epoch(epoch), 0)

    with pytest.raises(ProtocolError):
        world.worker.on_delta(*where, [])
    with pytest.raises(ProtocolError):
        world.worker.on_barrier_ack(*where, 0)


def test_delta_for_a_partition_that_does_not_exist_is_refused() -> None:
    world = World().started()
    world.cut(1)

    with pytest.raises(ProtocolError, match="not its own"):
        world.worker.on_delta(
            COMPUTE, Generation(1), Epoch(1), 0, [(4, RowColumns([b"x"], [b"1"]), None)]
        )


def test_unknown_names_are_refused_when_they_attach() -> None:
    worker = World().worker

    with pytest.raises(ProtocolError, match="no stage is called 'cuont'"):
        worker.on_compute_attached(COMPUTE, ["cuont"])
    with pytest.raises(ProtocolError, match="no source is called 'im'"):
        worker.on_source_attached(SOURCE, "im", is_local=False)
    with pytest.raises(ProtocolError, match="no sink is called 'uot'"):
        worker.on_sink_attached(SINK, "uot")
    with pytest.raises(ProtocolError, match="another stream kind"):
        worker.on_source_attached(SOURCE, "in", is_local=True)


# Plugins come and go.


@pytest.mark.parametrize("instance", [SOURCE, COMPUTE, SINK])
def test_loss_of_a_plugin_asks_for_a_generation(instance: InstanceId) -> None:
    world = World().started()

    effects = world.worker.on_lost(instance, GONE)

    assert told(effects, NeedGeneration) == [NeedGeneration(world.worker.id, GONE)]
    assert world.worker.on_lost(instance, GONE) == []


def test_install_without_a_computation_waits_for_the_next() -> None:
    world = World().started()
    begun = world.start_generation()
    assert in_sync(begun)
    world.worker.on_lost(COMPUTE, GONE)

    assert world.install() == []


def test_second_source_fences_the_first_and_waits_for_its_generation() -> None:
    world = World().started()
    newer = InstanceId(11)

    effects = world.worker.on_source_attached(newer, "in", is_local=False)
    listed = world.worker.on_streams_found(newer, ["a", "b"], is_complete=False)

    assert [e.instance for e in effects if isinstance(e, DropInstance)] == [SOURCE]
    assert len(told(effects, NeedGeneration)) == 1
    assert resets(effects) == []
    assert [e for e in listed if isinstance(e, OpenStream)] == []
    (reset,) = resets(world.next_generation())
    assert (reset.instance, [s.stream for s in reset.streams]) == (newer, ["a", "b"])


def test_plugin_that_comes_back_is_reset_in_the_next_generation_only() -> None:
    """Its frames would not go on from those that the first one sent."""
    world = World().started()
    world.frame("a", b"x")
    world.worker.on_lost(SOURCE, GONE)
    world.worker.on_lost(SINK, GONE)
    source, sink = InstanceId(11), InstanceId(13)

    attached = world.worker.on_source_attached(source, "in", is_local=False)
    attached += world.worker.on_sink_attached(sink, "out")

    assert attached == []
    effects = world.next_generation()
    assert [r.instance for r in resets(effects)] == [source]
    opened = [e.message for e in effects if isinstance(e, ToSinkPlugin)]
    assert Open(sink, 0, Generation(2)) in opened


def test_source_that_comes_late_is_reset_at_once() -> None:
    world = World()
    world.worker.on_compute_attached(COMPUTE, ["count"])
    world.next_generation()

    effects = world.worker.on_source_attached(SOURCE, "in", is_local=False)
    listed = world.worker.on_streams_found(SOURCE, ["a"], is_complete=False)

    assert [r.instance for r in resets(effects)] == [SOURCE]
    assert [e.stream.stream for e in listed if isinstance(e, OpenStream)] == ["a"]
    assert len(told(listed, WorkAvailable)) == 1
    assert world.worker.on_streams_found(SOURCE, ["a"], is_complete=False) == []


# Local streams.


def test_local_streams_that_nobody_names_end_where_they_are_committed() -> None:
    world = World(topology(is_local=True)).started(("a", "b"))
    world.frame("a", b"x")
    world.frame("b", b"y")
    world.epoch({b"x": b"1"})
    world.restart()
    world.worker.on_compute_attached(COMPUTE, ["count"])
    attached = world.worker.on_source_attached(SOURCE, "in", is_local=True)
    attached += world.next_generation()

    # A reset would close all that it does not name: the plugin speaks first.
    assert resets(attached) == []
    listed = world.worker.on_streams_found(SOURCE, ["b", "c"], is_complete=False)

    (reset,) = resets(listed)
    assert reset.streams == (StreamState("in", "b", b"1"), StreamState("in", "c"))
    world.epoch({})
    found = {s for p in world.worker.partitions for _, s in p.streams}
    assert found == {"b", "c"}


def test_local_stream_is_forgotten_with_the_commit_of_its_end() -> None:
    world = World(topology(is_local=True)).started()
    world.frame("a", b"x", is_end=True)

    committed = world.epoch({b"x": b"1"})

    (notice,) = (e for e in committed if isinstance(e, NotifyCommitted))
    assert notice.streams[0].is_forgotten
    assert [p.streams for p in world.worker.partitions] == [{}] * 4
    assert resets(world.next_generation())[0].streams == ()


def test_local_stream_whose_end_was_taken_back_is_named_again() -> None:
    world = World(topology(is_local=True)).started()
    world.frame("a", b"x", is_end=True)
    world.cut(1)

    assert resets(world.next_generation())[0].streams == (StreamState("in", "a"),)


def test_end_that_was_committed_without_a_word_is_not_named_again() -> None:
    world = World(topology(is_local=True)).started()
    world.frame("a", b"x", is_end=True)
    world.cut(1)
    world.store(world.compute(1, {b"x": b"1"}))
    world.decide(1)

    assert resets(world.next_generation())[0].streams == ()


# Sinks.


def test_refused_output_becomes_a_dead_letter_and_is_skipped() -> None:
    world = World().started()
    world.frame("a", b"x")
    world.epoch({}, (b"one", b"two", b"three"))

    refused = world.worker.on_refused(SINK, 0, Generation(1), 2, BAD)
    assert len(told(refused, WorkAvailable)) == 1
    committed = world.epoch({})

    (letters,) = delivered(committed, DEAD)
    letter = json.loads(letters[0])
    assert (letter["step"], letter["sequence"]) == ("out", 2)
    skips = [
        e.message.sequence
        for e in committed
        if isinstance(e, ToSinkPlugin) and isinstance(e.message, SkipOutput)
    ]
    assert skips == [2]
    assert delivered(committed) == [[b"one", b"two", b"three"]]


@pytest.mark.parametrize("where", ["no dead letters", "in the dead letters"])
def test_refused_output_that_has_no_place_to_go_pauses(where: str) -> None:
    world = World(topology(has_dead_letters=where != "no dead letters")).started()
    world.frame("a", b"x")
    world.epoch({}, (b"one",))
    instance = SINK
    if where == "in the dead letters":
        instance = DEAD
        world.worker.on_refused(SINK, 0, Generation(1), 1, BAD)
        world.epoch({})

    effects = world.worker.on_refused(instance, 0, Generation(1), 1, BAD)

    assert told(effects, NeedPause) == [NeedPause(world.worker.id, Generation(1), BAD)]


def test_foreign_target_pauses_and_gets_nothing() -> None:
    world = World()
    world.attach()
    world.next_generation()

    effects = world.worker.on_sink_opened(SINK, 0, Generation(1), (b"other", 4))

    (pause,) = told(effects, NeedPause)
    assert isinstance(pause, NeedPause)
    assert pause.cause.code == "SINK_FOREIGN"


def test_full_output_log_holds_the_sources_until_the_sink_has_caught_up() -> None:
    size = len(records(b"x" * 100))
    limits = WorkerLimits(output_log_bytes_max=size)
    world = World(limits=limits).started()
    world.frame("a", b"k")
    world.cut(1)
    full = world.compute(1, {}, (b"x" * 100,))
    full += world.commit(full, 1)

    held = world.frame("a", b"k")
    urgent = world.worker.on_progress(SINK, 0, Generation(1), 1)
    freed = world.epoch({})

    assert [e.is_held for e in full if isinstance(e, HoldSource)] == [True]
    assert [e for e in held if isinstance(e, ToStage)] == []
    assert len(told(urgent, WorkAvailable)) == 1
    assert [e.is_held for e in freed if isinstance(e, HoldSource)] == [False]
    assert len([e for e in freed if isinstance(e, ToStage)]) == 1


def test_progress_alone_is_recorded_after_a_while() -> None:
    world = World().started()
    world.worker.on_tick(1_000)
    world.frame("a", b"x")
    world.epoch({}, (b"one",))

    at_once = world.worker.on_progress(SINK, 0, Generation(1), 1)
    assert told(at_once, WorkAvailable) == []
    assert world.worker.wake_at_ms() == 2_000
    assert told(world.worker.on_tick(1_999), WorkAvailable) == []
    assert len(told(world.worker.on_tick(2_000), WorkAvailable)) == 1
    # Told once: the worker does not ask to be woken for it again.
    assert world.worker.wake_at_ms() is None
    world.epoch({})
    logs = [p.logs.get(("out", 0)) for p in world.worker.partitions]
    assert [log.trimmed_to for log in logs if log is not None] == [1]


def test_uncommitted_bytes_ask_for_an_urgent_cut() -> None:
    world = World(limits=WorkerLimits(uncommitted_bytes_max=4)).started()
    world.epoch({})

    first = world.frame("a", b"1")
    second = world.frame("a", b"2")
    third = world.frame("a", b"3")

    urgency = [
        [m.is_urgent for m in told(e, WorkAvailable) if isinstance(m, WorkAvailable)]
        for e in (first, second, third)
    ]
    assert urgency == [[False], [True], []]


# Time.


def test_end_of_all_input_fires_event_timers_then_finishes() -> None:
    world = World().started()
    world.frame("a", b"x", watermark_us=10)
    world.epoch({}, timers={b"x": 500})
    world.frame("a", is_end=True)
    world.worker.on_streams_found(SOURCE, [], is_complete=True)

    ended = world.cut(2)
    (fired,) = (e for e in ended if isinstance(e, SendTimers))
    assert fired.timers.keys == [b"x"]
    assert [b.watermark_us for b in barriers(ended)] == [WATERMARK_END_US]
    committed = world.commit(world.compute(2, {}, (b"window",), timers={b"x": None}), 2)

    # Not before the last output is durable.
    assert told(committed, Finished) == []
    assert delivered(committed) == [[b"window"]]
    progress = world.worker.on_progress(SINK, 0, Generation(1), 1)
    assert told(progress, Finished) == [Finished(world.worker.id, Generation(1))]
    assert told(world.worker.on_tick(9_000), Finished) == []


def test_processing_timer_is_work_when_due_and_not_while_it_fires() -> None:
    world = World().started()
    world.worker.on_tick(1)
    world.frame("a", b"x")
    world.cut(1)
    effects = world.compute(1, {}, timers={b"x": 7_000}, kind=PROCESSING_TIME)
    world.commit(effects, 1)

    assert world.worker.wake_at_ms() == 8
    assert told(world.worker.on_tick(6), WorkAvailable) == []
    assert len(told(world.worker.on_tick(8), WorkAvailable)) == 1
    cut = world.cut(2, time_us=8_000)
    assert told(cut, WorkAvailable) == []
    (sent,) = (e for e in cut if isinstance(e, SendTimers))
    assert sent.timers.keys == [b"x"]
    assert told(world.worker.on_tick(9), WorkAvailable) == []
    world.compute(2, {}, timers={b"x": None}, kind=PROCESSING_TIME)
    assert told(world.worker.on_tick(10), WorkAvailable) == []
    assert world.worker.wake_at_ms() is None


def test_watermark_does_not_fall_over_a_restart_without_any_state() -> None:
    world = World().started()
    world.frame("a", b"x", watermark_us=70)
    world.epoch({})
    world.restart()
    world.attach(("a", "b"))
    world.next_generation()
    world.frame("b", b"y")  # Speaks, and has never said a watermark.

    effects = world.cut(2)

    assert [b.watermark_us for b in barriers(effects)] == [70]
