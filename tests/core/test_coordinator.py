"""Generations and commits: one transaction at a time, nothing announced before it."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.core.coordinator_world import W, World, cuts, kinds, messages

from bettong_engine.core.coordinator import (
    ApplicationFinished,
    CoordinatorLimits,
    CoordinatorState,
    Drained,
    Effect,
    GenerationRecord,
    ReadRecord,
    Record,
    Send,
    StateChanged,
    StepDown,
    Transact,
)
from bettong_engine.core.ids import Epoch, Generation, Incarnation, Term
from bettong_engine.core.messages import (
    Cause,
    Committed,
    Cut,
    Finished,
    HoldSources,
    Install,
    Installed,
    NeedGeneration,
    NeedPause,
    Prepared,
    Probed,
    StartGeneration,
    WorkAvailable,
)

LOST = Cause("UNSPECIFIED", "a plugin is gone")
FOREIGN = Cause("SINK_FOREIGN", "the target is another's")


def test_generation_is_written_before_anybody_hears_of_it() -> None:
    world = World()

    begun = world.it.on_start()
    probing = world.apply(begun)
    assigning = world.probed()
    installing = world.apply(assigning)
    running = world.installed()

    assert kinds(begun) == ["StateChanged", "Transact"]
    assert messages(probing, StartGeneration) == [
        StartGeneration(Term(2), Generation(5), Epoch(6), (b"", b""))
    ]
    assert kinds(assigning) == ["StateChanged", "Transact"]
    assert [type(m) for m in messages(installing, Install)] == [Install]
    assert world.store.record.generation.assignment is not None
    assert kinds(running) == ["StateChanged"]
    assert world.it.state is CoordinatorState.RUNNING


def test_epoch_is_announced_only_once_its_commit_is_durable() -> None:
    world = World().started()
    world.cut(7)

    prepared = world.prepared(7)
    assert kinds(prepared) == ["Transact"]
    applied = world.apply(prepared)

    assert messages(applied, Committed) == [Committed(Generation(5), Epoch(7))]
    assert world.store.record.commit.digests == (b"", b"7")
    assert world.it.committed_epoch == 7


def test_epochs_commit_in_order_one_transaction_at_a_time() -> None:
    world = World().started()
    for epoch in (7, 8, 9):
        world.cut(epoch)

    assert world.prepared(8) == []
    first = world.prepared(7)
    assert world.prepared(9) == []
    second = world.apply(first)
    third = world.apply(second)
    last = world.apply(third)

    assert kinds(second) == ["Committed", "Transact"]
    assert kinds(last) == ["Committed"]
    assert world.it.committed_epoch == 9


def test_no_more_epochs_are_in_flight_than_allowed() -> None:
    world = World(CoordinatorLimits(epochs_in_flight_max=2)).started()
    world.cut(7)
    world.cut(8)
    world.now_ms += 2_000

    assert world.work(9) == []
    assert world.it.wake_at_ms() is None
    assert cuts(world.apply(world.prepared(7))) == [9]


def test_work_of_an_epoch_that_is_cut_already_is_old_news() -> None:
    world = World().started()
    world.cut(7)
    world.now_ms += 2_000

    assert world.work(7) == []
    assert world.it.wake_at_ms() is None


def test_cuts_are_spaced_by_what_epochs_cost() -> None:
    world = World().started()
    world.cut(7)
    world.apply(world.prepared(7, cpu_us=20_000))
    world.cut(8)

    # (5 ms + 20 ms / 0.1) / 2
    assert world.work(9) == []
    assert world.it.wake_at_ms() == world.now_ms + 102
    assert cuts(world.it.on_tick(world.now_ms + 101)) == []
    assert cuts(world.it.on_tick(world.now_ms + 102)) == [9]


def test_urgent_work_does_not_wait_for_its_turn() -> None:
    world = World().started()
    world.cut(7)

    assert cuts(world.work(8)) == []
    assert cuts(world.work(8, is_urgent=True)) == [8]


def test_processing_time_never_falls() -> None:
    world = World().started()
    world.cut(7)
    world.apply(world.prepared(7))
    before = world.store.record.commit.processing_time_us
    world.now_ms -= 1_900

    effects = world.work(8, is_urgent=True)

    assert [m.processing_time_us for m in messages(effects, Cut) if isinstance(m, Cut)]
    assert messages(effects, Cut) == [Cut(Generation(5), Epoch(8), before)]


@pytest.mark.parametrize("state", list(CoordinatorState))
def test_loss_in_any_state_leads_to_one_new_generation(
    state: CoordinatorState,
) -> None:
    world = World()
    held: list[Effect] = []
    if state is not CoordinatorState.IDLE:
        held = world.it.on_start()
    if state is CoordinatorState.DEPOSED:
        (tried,) = (e for e in held if isinstance(e, Transact))
        world.it.on_conflict(tried.token)
    elif state not in (CoordinatorState.IDLE, CoordinatorState.FENCING):
        world.apply(held)
    if state is CoordinatorState.WAITING:
        world.probed(missing=("count",))
    elif world.it.state is CoordinatorState.PROBING is not state:
        held = world.probed()
        if state is not CoordinatorState.ASSIGNING:
            world.apply(held)
    if state in (CoordinatorState.RUNNING, CoordinatorState.FINISHED):
        world.installed()
    if state is CoordinatorState.FINISHED:
        world.it.on_message(Finished(W, world.it.generation), world.now_ms)
    assert world.it.state is state
    before = world.it.generation

    effects = world.it.on_message(NeedGeneration(W, LOST), world.now_ms)

    if state in (CoordinatorState.DEPOSED, CoordinatorState.FINISHED):
        assert effects == []
        return
    if state is CoordinatorState.FENCING:
        # The generation that is being written takes it in.
        effects = held
    elif state is CoordinatorState.ASSIGNING:
        assert effects == []
        effects = world.apply(held)
    world.run(effects)
    assert world.it.state is CoordinatorState.RUNNING
    assert world.it.generation == before + 1


def test_loss_while_a_commit_is_under_way_waits_for_its_outcome() -> None:
    world = World().started()
    world.cut(7)
    world.cut(8)
    commit = world.prepared(7)
    world.prepared(8)

    assert world.it.on_message(NeedGeneration(W, LOST), world.now_ms) == []
    effects = world.apply(commit)

    # Seven is committed and says so; eight is redone in the next generation.
    assert kinds(effects) == ["Committed", "StateChanged", "Transact"]
    probing = world.apply(effects)
    assert messages(probing, StartGeneration) == [
        StartGeneration(Term(2), Generation(6), Epoch(7), (b"", b"7"))
    ]


def test_messages_of_an_older_generation_change_nothing() -> None:
    world = World().started()
    world.cut(7)
    old = Prepared(W, Generation(5), Epoch(7), {1: b"old"}, 0)
    world.run(world.it.on_message(NeedGeneration(W, LOST), world.now_ms))

    for message in (
        old,
        Installed(W, Generation(5)),
        WorkAvailable(W, Generation(5), Epoch(7)),
        Finished(W, Generation(5)),
        NeedPause(W, Generation(5), FOREIGN),
    ):
        assert world.it.on_message(message, world.now_ms) == []
    assert world.it.pause is None


def test_end_told_while_the_next_generation_is_written_is_not_the_end() -> None:
    world = World().started()
    effects = world.it.on_message(NeedGeneration(W, LOST), world.now_ms)

    assert world.it.on_message(Finished(W, Generation(5)), world.now_ms) == []
    world.run(effects)
    assert ApplicationFinished() in world.it.on_message(
        Finished(W, Generation(6)), world.now_ms
    )
    assert world.it.state is CoordinatorState.FINISHED


# Outcomes that nobody knows.


@pytest.mark.parametrize("what", ["generation", "commit"])
@pytest.mark.parametrize("is_applied", [True, False])
def test_unknown_outcome_is_looked_up(what: str, is_applied: bool) -> None:
    world = World()
    if what == "generation":
        effects = world.it.on_start()
    else:
        world.started().cut(7)
        effects = world.prepared(7)
    (tried,) = (e for e in effects if isinstance(e, Transact))
    if is_applied:
        world.store.apply(tried)

    assert world.it.on_unknown(tried.token) == [ReadRecord(tried.token)]
    found = world.it.on_record(tried.token, world.store.record, world.now_ms)

    if not is_applied:
        assert found == [tried]
        found = world.apply(found)
    followed = StartGeneration if what == "generation" else Committed
    assert len(messages(found, followed)) == 1


def test_late_first_try_is_not_taken_for_another_coordinator() -> None:
    """Unknown, read as not applied, tried again; then the first try arrives."""
    world = World().started()
    world.cut(7)
    (tried,) = (e for e in world.prepared(7) if isinstance(e, Transact))
    world.it.on_unknown(tried.token)
    assert world.it.on_record(tried.token, world.store.record, 0) == [tried]
    assert world.store.apply(tried)
    assert not world.store.apply(tried)

    effects = world.it.on_conflict(tried.token)

    assert effects == [ReadRecord(tried.token)]
    found = world.it.on_record(tried.token, world.store.record, world.now_ms)
    assert messages(found, Committed) == [Committed(Generation(5), Epoch(7))]


def test_conflict_on_the_first_try_is_another_coordinator() -> None:
    world = World().started()
    world.cut(7)
    (tried,) = (e for e in world.prepared(7) if isinstance(e, Transact))

    effects = world.it.on_conflict(tried.token)

    assert effects[-1] == StepDown()
    assert world.it.state is CoordinatorState.DEPOSED
    assert world.it.on_message(NeedGeneration(W, LOST), world.now_ms) == []
    assert world.prepared(7) == []


@pytest.mark.parametrize("change", ["leader", "generation"])
def test_record_of_another_coordinator_ends_the_term(change: str) -> None:
    world = World().started()
    world.cut(7)
    (tried,) = (e for e in world.prepared(7) if isinstance(e, Transact))
    world.it.on_unknown(tried.token)
    held = world.store.record
    other = GenerationRecord(Generation(9), Term(3))
    record = (
        Record(held.generation, held.commit, 99, *world.store.revisions)
        if change == "leader"
        else Record(other, held.commit, 1, 99, held.commit_revision)
    )

    assert world.it.on_record(tried.token, record, world.now_ms)[-1] == StepDown()


def test_answer_to_another_transaction_is_ignored() -> None:
    world = World()
    (tried,) = (e for e in world.it.on_start() if isinstance(e, Transact))
    other = tried.token + 1

    assert world.it.on_applied(other, (1, 1), 0) == []
    assert world.it.on_conflict(other) == []
    assert world.it.on_unknown(other) == []
    assert world.it.on_record(other, world.store.record, 0) == []


# Waiting, lost, paused, drained.


def test_stage_that_nobody_offers_is_waited_for() -> None:
    world = World()
    world.apply(world.it.on_start())

    world.probed(missing=("count",))
    assert world.it.state is CoordinatorState.WAITING
    assert world.it.missing_stages == ("count",)

    world.run(world.it.on_message(NeedGeneration(W, LOST), world.now_ms))
    assert not world.it.missing_stages


def test_partition_without_a_copy_in_sync_is_never_started_empty() -> None:
    world = World()
    world.apply(world.it.on_start())

    effects = world.probed(in_sync=False)

    assert kinds(effects) == ["StateChanged"]
    assert world.it.pause is not None
    assert world.it.pause.code == "STATE_LOST"
    assert "partition 0" in world.it.pause.message
    assert world.it.on_message(NeedGeneration(W, LOST), world.now_ms) == []
    assert kinds(world.it.on_resume()) == ["StateChanged", "Transact"]


def test_pause_holds_sources_and_resume_starts_over() -> None:
    world = World().started()

    effects = world.it.on_message(NeedPause(W, Generation(5), FOREIGN), world.now_ms)

    assert messages(effects, HoldSources) == [
        HoldSources(Generation(5), FOREIGN.message)
    ]
    assert StateChanged(world.it.state, Generation(5), Epoch(6), FOREIGN) in effects
    assert world.it.on_pause(LOST) == []
    assert world.it.pause == FOREIGN
    world.now_ms += 2_000
    assert world.work(7) == []
    assert world.it.on_message(NeedGeneration(W, LOST), world.now_ms) == []
    resumed = world.run(world.it.on_resume())
    assert messages(resumed, HoldSources) == []
    assert world.it.on_resume() == []


def test_pause_commits_what_is_cut() -> None:
    world = World().started()
    world.cut(7)
    world.cut(8)
    commit = world.prepared(7)
    world.prepared(8)
    world.it.on_message(NeedGeneration(W, LOST), world.now_ms)
    world.it.on_pause(FOREIGN)

    followed = world.apply(commit)

    assert kinds(followed) == ["Committed", "Transact"]
    assert kinds(world.apply(followed)) == ["Committed"]
    assert kinds(world.it.on_resume()) == ["StateChanged", "Transact"]


def test_pause_during_a_generation_holds_sources_once_it_runs() -> None:
    world = World()
    effects = world.it.on_start()
    world.it.on_pause(FOREIGN)

    assert len(messages(world.run(effects), HoldSources)) == 1


def test_drain_cuts_once_more_and_ends_when_that_is_committed() -> None:
    world = World().started()
    world.cut(7)

    effects = world.it.on_drain(world.now_ms)

    assert kinds(effects) == ["HoldSources", "Cut"]
    assert kinds(world.apply(world.prepared(7))) == ["Committed"]
    assert kinds(world.apply(world.prepared(8))) == ["Committed", "Drained"]


def test_drain_goes_on_in_the_next_generation() -> None:
    world = World().started()
    world.it.on_drain(world.now_ms)
    lost = world.it.on_message(NeedGeneration(W, LOST), world.now_ms)

    running = world.run(lost)

    assert kinds(running) == ["StateChanged", "HoldSources", "Cut"]
    assert Drained() in world.apply(world.prepared(7))


@pytest.mark.parametrize("why", ["waiting", "lost", "paused"])
def test_drain_ends_when_nothing_can_be_committed(why: str) -> None:
    world = World().started()
    world.it.on_drain(world.now_ms)
    if why == "paused":
        assert Drained() in world.it.on_pause(FOREIGN)
        return
    world.apply(world.it.on_message(NeedGeneration(W, LOST), world.now_ms))

    effects = (
        world.probed(missing=("count",))
        if why == "waiting"
        else world.probed(in_sync=False)
    )

    assert Drained() in effects


STORY = st.sampled_from(
    ["work", "prepared", "applied", "unknown", "late", "lost", "tick", "answer"]
)


@given(st.lists(STORY, max_size=80))
def test_committed_epochs_are_never_taken_back_and_always_announced_after(
    story: list[str],
) -> None:
    world = World()
    in_flight: list[Transact] = []
    announced: list[int] = []
    cut_to: dict[int, int] = {}

    def do(effects: list[Effect]) -> None:
        for effect in effects:
            match effect:
                case Transact():
                    in_flight.append(effect)
                case ReadRecord(token):
                    do(world.it.on_record(token, world.store.record, world.now_ms))
                case Send(_, Committed(_, epoch)):
                    assert world.store.record.commit.epoch >= epoch, "too early"
                    announced.append(epoch)
                case Send(_, StartGeneration(_, generation, epoch)):
                    assert epoch == world.store.record.commit.epoch, "not the last"
                    cut_to[generation] = epoch
                    answer = Probed(W, Incarnation(b""), generation, (True, True), ())
                    do(world.it.on_message(answer, world.now_ms))
                case Send(_, Install(generation)):
                    do(world.it.on_message(Installed(W, generation), world.now_ms))
                case Send(_, Cut(generation, epoch)):
                    assert epoch == cut_to[generation] + 1
                    cut_to[generation] = epoch
                case StepDown():
                    raise AssertionError("nobody else is there")

    do(world.it.on_start())
    for step in [*story, *["applied"] * 4]:
        generation = world.it.generation
        now_cut = cut_to.get(generation, 0)
        world.now_ms += 7
        if step == "work":
            do(world.work(now_cut + 1))
        elif step == "prepared" and now_cut > world.it.committed_epoch:
            for epoch in range(world.it.committed_epoch + 1, now_cut + 1):
                do(world.prepared(epoch))
        elif step in ("applied", "unknown", "late") and in_flight:
            tried = in_flight.pop(0)
            is_done = world.store.apply(tried) if step != "late" else False
            if step != "applied":
                do(world.it.on_unknown(tried.token))
            elif is_done:
                do(
                    world.it.on_applied(
                        tried.token, world.store.revisions, world.now_ms
                    )
                )
            else:
                do(world.it.on_conflict(tried.token))
        elif step == "lost":
            do(world.it.on_message(NeedGeneration(W, LOST), world.now_ms))
        elif step == "tick":
            do(world.it.on_tick(world.now_ms))

    assert announced == sorted(set(announced))
    assert world.it.open_epochs <= CoordinatorLimits().epochs_in_flight_max
