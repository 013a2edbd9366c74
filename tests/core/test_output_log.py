"""Numbers of outputs: without gaps, and the same in every generation."""

from hypothesis import given
from hypothesis import strategies as st

from bettong_engine.core.delta import OutputBatch, SinkDelta
from bettong_engine.core.output_log import OutputLog


def outputs(*counts: int) -> list[OutputBatch]:
    return [OutputBatch(count, b"x" * count) for count in counts]


def committed(log: OutputLog, *counts: int) -> SinkDelta:
    """Prepare and commit one epoch."""
    delta = log.prepare(outputs(*counts), ())
    assert delta is not None
    log.commit(delta)
    return delta


def test_open_epochs_number_on_from_each_other() -> None:
    log = OutputLog("out", 0)

    first = log.prepare(outputs(3, 2), ())
    second = log.prepare(outputs(1), ())

    assert first is not None
    assert second is not None
    assert (first.first_sequence, second.first_sequence) == (1, 6)


def test_numbers_of_epochs_taken_back_are_given_again() -> None:
    log = OutputLog("out", 0)
    committed(log, 3)
    log.prepare(outputs(4), ())

    log.reset()

    again = log.prepare(outputs(1), ())
    assert again is not None
    assert again.first_sequence == 4


def test_epoch_without_news_needs_no_delta() -> None:
    log = OutputLog("out", 0)
    committed(log, 3)

    assert log.prepare([], ()) is None
    log.durable = 2
    assert log.has_unrecorded_progress()
    recorded = log.prepare([], ())
    assert recorded is not None
    assert recorded.durable_sequence == 2
    assert not log.has_unrecorded_progress()
    assert log.prepare([], ()) is None


def test_progress_recorded_in_an_epoch_taken_back_is_recorded_again() -> None:
    log = OutputLog("out", 0)
    committed(log, 3)
    log.durable = 2
    log.prepare([], ())

    log.reset()

    assert log.has_unrecorded_progress()


def test_only_whole_batches_that_are_durable_by_commit_are_trimmed() -> None:
    log = OutputLog("out", 0)
    committed(log, 2, 2)
    log.durable = 3

    assert log.batch_of(1) is not None
    delta = log.prepare([], ())
    assert delta is not None
    log.commit(delta)

    assert log.trimmed_to == 3
    assert log.batch_of(2) is None
    assert log.batch_of(3) is not None
    assert log.bytes == 2


@given(
    st.lists(
        st.one_of(
            st.lists(st.integers(1, 4), max_size=3),
            st.sampled_from(["commit", "reset", "durable", "restore"]),
        ),
        max_size=40,
    )
)
def test_sequence_names_the_same_record_for_ever(story: list[object]) -> None:
    log = OutputLog("out", 0)
    open_deltas: list[SinkDelta] = []
    names: dict[int, bytes] = {}
    made = 0
    for step in story:
        if isinstance(step, list):
            batches = []
            for count in step:
                made += 1
                batches.append(OutputBatch(count, f"batch {made}".encode()))
            if (delta := log.prepare(batches, ())) is not None:
                open_deltas.append(delta)
        elif step == "commit" and open_deltas:
            for numbered in log.commit(open_deltas.pop(0)):
                for sequence in range(
                    numbered.first_sequence, numbered.last_sequence + 1
                ):
                    assert sequence not in names, "a number is given twice"
                    names[sequence] = numbered.batch.records
        elif step == "reset":
            open_deltas.clear()
            log.reset()
        elif step == "durable":
            log.durable = log.committed_to
        elif step == "restore" and (snapshot := log.snapshot()) is not None:
            open_deltas.clear()
            log = OutputLog("out", 0)
            log.restore(snapshot)
            log.reset()

        assert log.trimmed_to <= log.durable <= log.committed_to <= log.prepared_to
    assert list(names) == list(range(1, len(names) + 1))
    for numbered in log.batches_after(log.trimmed_to):
        assert names[numbered.last_sequence] == numbered.batch.records
    held = {
        s
        for b in log.batches_after(log.trimmed_to)
        for s in range(b.first_sequence, b.last_sequence + 1)
    }
    assert set(range(log.trimmed_to + 1, log.committed_to + 1)) <= held
