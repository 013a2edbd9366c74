"""What every store does, whatever it keeps its data in."""

from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

import pytest
from tests.store.values import META, commit, delta, deltas, epochs, loaded, snapshot

from bettong_engine.store.interface import (
    LEADER_KEY,
    Applied,
    Conflict,
    CoordinationStore,
    DeltaStore,
    LoadedPartition,
    Versioned,
)
from bettong_engine.store.memory import MemoryStore
from bettong_engine.store.single import SingleStore


class Store(CoordinationStore, DeltaStore, Protocol):
    """Both contracts, as `single` keeps them."""


@pytest.fixture(params=["memory", "single"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    made: MemoryStore | SingleStore
    if request.param == "memory":
        made = MemoryStore()
    else:
        made = SingleStore(tmp_path / "data")
        made.open()
    yield made
    made.close()


@pytest.fixture(params=["memory", "memory without deltas", "single", "marker"])
def records(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    made: MemoryStore | SingleStore
    if request.param.startswith("memory"):
        made = MemoryStore(keeps_deltas=request.param == "memory")
    else:
        made = SingleStore(tmp_path / "data", is_memory=request.param == "marker")
        made.open()
    yield made
    made.close()


# Records.


def test_key_that_was_never_put_is_missing(records: Store) -> None:
    records.transact({}, {"a": b"1"})

    assert records.get(["b"]) == {}
    assert records.get([]) == {}


def test_all_puts_of_a_transaction_have_its_revision(records: Store) -> None:
    result = records.transact({"a": 0}, {"a": b"1", "b": b""})

    assert isinstance(result, Applied)
    assert records.get(["a", "b"]) == {
        "a": Versioned(b"1", result.revision),
        "b": Versioned(b"", result.revision),
    }


def test_revisions_rise_and_a_record_keeps_its_own(records: Store) -> None:
    first = records.transact({}, {"a": b"1"})
    second = records.transact({}, {"b": b"2"})

    assert isinstance(first, Applied)
    assert isinstance(second, Applied)
    assert 0 < first.revision < second.revision
    assert records.get(["a"])["a"].revision == first.revision


def test_guard_at_the_revision_lets_through(records: Store) -> None:
    commit(records, 1)
    commit(records, 2)

    assert records.get(["commit"])["commit"].value == b"2"


@pytest.mark.parametrize("revision", [0, 2, 99])
def test_guard_at_another_revision_is_a_conflict(records: Store, revision: int) -> None:
    records.transact({}, {"a": b"1", "b": b"1"})
    known = records.get(["a", "b"])
    assert known["a"].revision == 1

    result = records.transact({"a": revision, "c": 0}, {"a": b"2", "b": b"2"})

    assert result == Conflict({"a": known["a"]})
    assert records.get(["a", "b"]) == known


def test_guard_on_a_missing_key_is_a_conflict_without_current(records: Store) -> None:
    assert records.transact({"a": 1}, {"a": b"2"}) == Conflict({})
    assert records.get(["a"]) == {}


def test_term_is_higher_than_all_before_and_guards_by_its_revision(
    records: Store,
) -> None:
    first = records.campaign(b"one")
    records.transact({LEADER_KEY: first}, {"a": b"1"})
    second = records.campaign(b"two")

    assert second > first > 0
    assert records.get([LEADER_KEY])[LEADER_KEY] == Versioned(b"two", second)
    assert isinstance(records.transact({LEADER_KEY: first}, {"a": b"2"}), Conflict)
    assert isinstance(records.transact({LEADER_KEY: second}, {"a": b"3"}), Applied)


def test_leadership_stands_from_the_campaign_to_the_end(records: Store) -> None:
    before = records.keepalive()
    records.campaign(b"one")

    assert (before, records.keepalive()) == (False, True)
    records.close()
    assert not records.keepalive()


def test_watcher_is_told_what_was_put_and_nothing_of_conflicts(records: Store) -> None:
    told: list[frozenset[str]] = []
    records.watch(told.append)

    records.campaign(b"one")
    records.transact({"a": 0}, {"a": b"1", "b": b"1"})
    records.transact({"a": 0}, {"a": b"2"})

    assert told == [frozenset({LEADER_KEY}), frozenset({"a", "b"})]


# What the application is.


def test_application_is_what_was_created_last_updated(store: Store) -> None:
    before = store.meta()
    store.create(META)
    store.update_application(b"another")

    meta = store.meta()
    assert before is None
    assert meta is not None
    assert meta.application == b"another"
    assert (meta.cluster_id, meta.history) == (META.cluster_id, META.history)


# Deltas.


def test_nothing_is_loaded_from_a_new_store(store: Store) -> None:
    assert list(store.load()) == []


def test_delta_is_durable_with_the_next_transaction_and_not_before(
    store: Store,
) -> None:
    store.append(1, deltas(1, [3, 1]))
    before = list(store.load())
    commit(store, 1)

    assert before == []
    assert list(store.load()) == [
        LoadedPartition(1, None, deltas(1, [1])),
        LoadedPartition(3, None, deltas(1, [3])),
    ]


def test_delta_is_durable_after_sync(store: Store) -> None:
    store.append(1, deltas(1, [0]))
    store.sync()
    store.sync()

    assert epochs(store) == {0: [1]}


def test_delta_waits_on_after_a_conflict(store: Store) -> None:
    store.append(1, deltas(1, [0]))
    assert isinstance(store.transact({"commit": 7}, {"commit": b"1"}), Conflict)
    before = epochs(store)
    commit(store, 1)

    assert (before, epochs(store)) == ({}, {0: [1]})


def test_deltas_are_loaded_ascending_however_they_came(store: Store) -> None:
    store.append(1, deltas(1, [0]))
    store.append(1, deltas(1, [1]))
    store.append(2, deltas(2, [1, 0]))
    commit(store, 1)
    store.append(2, deltas(2, [2]))
    store.append(5, deltas(5, [0]))
    commit(store, 2)

    assert epochs(store) == {0: [1, 2, 5], 1: [1, 2], 2: [2]}


@pytest.mark.parametrize("size", [0, 1, 5_000, 3_000_000])
def test_body_comes_back_as_it_was(store: Store, size: int) -> None:
    one, other = delta(0, 1, b"\0\xff" * size), delta(1, 1, b"x")
    store.append(1, [one, other])
    store.put_snapshot(snapshot(2, 0, b"\0\xff" * size))
    commit(store, 1)

    assert loaded(store)[0].deltas == [one]
    assert loaded(store)[1].deltas == [other]
    assert loaded(store)[2].snapshot == snapshot(2, 0, b"\0\xff" * size)


def test_epoch_without_deltas_leaves_nothing(store: Store) -> None:
    store.append(1, [])
    commit(store, 1)

    assert list(store.load()) == []


def test_truncation_drops_later_epochs_waiting_and_durable(store: Store) -> None:
    store.append(1, deltas(1, [0, 1]))
    store.append(2, deltas(2, [0, 1]))
    commit(store, 1)
    store.append(3, deltas(3, [0]))
    store.truncate_after(1)
    store.append(2, deltas(2, [1], size=9))
    commit(store, 2)

    assert epochs(store) == {0: [1], 1: [1, 2]}
    assert loaded(store)[1].deltas[1] == deltas(2, [1], size=9)[0]


def test_truncation_keeps_what_waits_up_to_its_epoch(store: Store) -> None:
    store.append(1, deltas(1, [0]))
    store.append(2, deltas(2, [0]))
    store.truncate_after(1)
    store.truncate_after(9)
    commit(store, 1)

    assert epochs(store) == {0: [1]}


# Snapshots.


def test_snapshot_takes_the_place_of_deltas_up_to_its_epoch(store: Store) -> None:
    for epoch in (1, 2, 3):
        store.append(epoch, deltas(epoch, [0, 1]))
        commit(store, epoch)

    store.put_snapshot(snapshot(0, 2))

    assert loaded(store) == {
        0: LoadedPartition(0, snapshot(0, 2), deltas(3, [0])),
        1: LoadedPartition(
            1, None, [*deltas(1, [1]), *deltas(2, [1]), *deltas(3, [1])]
        ),
    }


def test_snapshot_replaces_the_one_before_it_also_of_the_same_epoch(
    store: Store,
) -> None:
    store.put_snapshot(snapshot(0, 3, b"long" * 9000))
    store.put_snapshot(snapshot(0, 3, b"short"))
    store.put_snapshot(snapshot(0, 5, b""))

    assert list(store.load()) == [LoadedPartition(0, snapshot(0, 5, b""), [])]


def test_snapshot_between_append_and_commit_leaves_what_waits_alone(
    store: Store,
) -> None:
    store.append(1, deltas(1, [0]))
    commit(store, 1)
    store.append(2, deltas(2, [0, 1]))

    store.put_snapshot(snapshot(0, 1))
    between = loaded(store)
    commit(store, 2)

    assert between == {0: LoadedPartition(0, snapshot(0, 1), [])}
    assert epochs(store) == {0: [2], 1: [2]}


def test_snapshot_of_an_epoch_that_waits_is_a_bug(store: Store) -> None:
    store.append(1, deltas(1, [0]))

    with pytest.raises(AssertionError, match="not durable"):
        store.put_snapshot(snapshot(0, 1))


def test_snapshot_older_than_the_one_before_it_is_a_bug(store: Store) -> None:
    store.put_snapshot(snapshot(0, 2))

    with pytest.raises(AssertionError, match="older"):
        store.put_snapshot(snapshot(0, 1))


def test_append_of_an_older_epoch_is_a_bug(store: Store) -> None:
    store.append(2, deltas(2, [0]))

    with pytest.raises(AssertionError, match="later"):
        store.append(1, deltas(1, [0]))


def test_tidy_changes_nothing(store: Store) -> None:
    for epoch in range(1, 20):
        store.append(epoch, deltas(epoch, [0, 1], size=50_000))
        commit(store, epoch)
        store.tidy()

    assert epochs(store) == {0: list(range(1, 20)), 1: list(range(1, 20))}
