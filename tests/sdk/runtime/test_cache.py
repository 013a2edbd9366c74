"""What the cache of a stage knows, and what it must ask for."""

import zlib
from dataclasses import dataclass

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

import bettong as bt
from bettong.codecs import msgpack
from bettong.keys import key_codec
from bettong.plan import StateSpec
from bettong.runtime.cache import StageCache, StateCodecError

PARTITIONS = 4
KEYS = [f"k{i}".encode() for i in range(12)]


@dataclass
class Count:
    count: int = 0


def make_cache(**limits: int) -> StageCache:
    return StageCache(
        partitions=PARTITIONS,
        key_codec=key_codec(str),
        state=StateSpec("count", msgpack(Count), Count),
        **limits,
    )


def partition_of(key: bytes) -> int:
    return zlib.crc32(key) % PARTITIONS


def add_one(cache: StageCache, key: bytes) -> None:
    """Do what a generated loop does for a record."""
    keys = cache.keys
    entry = keys.get(key) or keys.miss(key)
    assert entry is not None, "the key is to be asked for"
    if entry.mark != keys.mark:
        entry.mark = keys.mark
        keys.touch(entry)
    if entry.state is None:
        entry.state = Count()
    entry.state.count += 1


def delete(cache: StageCache, key: bytes) -> None:
    add_one(cache, key)
    entry = cache.keys.get(key)
    assert entry is not None
    entry.state = None


def flushed(cache: StageCache) -> dict[bytes, int | None]:
    found: dict[bytes, int | None] = {}
    codec = msgpack(Count)
    for rows in cache.flush(cache.open_epoch):
        for index, (key, value) in enumerate(zip(rows.keys, rows.values, strict=True)):
            assert partition_of(key) == rows.partition
            is_absent = index in rows.absent
            found[key] = None if is_absent else codec.decode(value).count
    return found


def test_new_key_of_a_fresh_partition_is_not_asked_for() -> None:
    cache = make_cache()

    cache.reset(committed_epoch=0, partitions=range(4), fresh=range(4))

    assert cache.missing(KEYS) == []


def test_new_key_of_a_partition_with_rows_is_asked_for_once() -> None:
    cache = make_cache()

    cache.reset(committed_epoch=0, partitions=range(4), fresh=())

    assert cache.missing([*KEYS, *KEYS]) == KEYS
    assert cache.keys.miss(KEYS[0]) is None


def test_only_touched_keys_are_flushed() -> None:
    cache = make_cache()
    cache.reset(committed_epoch=0, partitions=range(4), fresh=range(4))
    for key in KEYS:
        add_one(cache, key)
    flushed(cache)

    add_one(cache, KEYS[3])
    add_one(cache, KEYS[3])

    assert flushed(cache) == {KEYS[3]: 3}
    assert flushed(cache) == {}


def test_state_set_to_none_is_deleted_and_made_anew() -> None:
    cache = make_cache()
    cache.reset(committed_epoch=0, partitions=range(4), fresh=range(4))
    add_one(cache, KEYS[0])
    flushed(cache)

    delete(cache, KEYS[0])
    first = flushed(cache)
    add_one(cache, KEYS[0])

    assert first == {KEYS[0]: None}
    assert flushed(cache) == {KEYS[0]: 1}


def test_reset_drops_what_was_touched_after_the_epoch_and_keeps_the_rest() -> None:
    cache = make_cache()
    cache.reset(committed_epoch=0, partitions=range(4), fresh=range(4))
    add_one(cache, KEYS[0])
    flushed(cache)
    add_one(cache, KEYS[1])
    flushed(cache)
    add_one(cache, KEYS[2])

    cache.reset(committed_epoch=1, partitions=range(4), fresh=())

    assert KEYS[0] in cache
    assert cache.missing(KEYS) == [KEYS[1], KEYS[2]]
    assert cache.open_epoch == 2
    assert flushed(cache) == {}


def test_key_deleted_after_the_epoch_is_asked_for() -> None:
    cache = make_cache()
    cache.reset(committed_epoch=0, partitions=range(4), fresh=range(4))
    add_one(cache, KEYS[0])
    flushed(cache)
    delete(cache, KEYS[0])
    flushed(cache)

    cache.reset(committed_epoch=1, partitions=range(4), fresh=())

    assert cache.missing([KEYS[0]]) == [KEYS[0]]


def test_committed_deletions_leave_nothing_behind() -> None:
    cache = make_cache()
    cache.reset(committed_epoch=0, partitions=range(4), fresh=range(4))
    delete(cache, KEYS[0])
    flushed(cache)

    cache.on_committed(1)

    assert len(cache) == 0
    assert cache.missing([KEYS[0]]) == []


def test_fetched_key_is_dropped_by_a_reset_below_its_epoch() -> None:
    cache = make_cache()
    cache.reset(committed_epoch=3, partitions=range(4), fresh=())
    cache.install([KEYS[0]], [msgpack(Count).encode(Count(7))], [])

    cache.reset(committed_epoch=3, partitions=range(4), fresh=())

    assert cache.missing([KEYS[0]]) == [KEYS[0]]


def test_partition_that_is_lost_and_regained_is_not_complete() -> None:
    cache = make_cache()
    cache.reset(committed_epoch=0, partitions=range(4), fresh=range(4))
    mine = partition_of(KEYS[0])
    others = [p for p in range(4) if p != mine]

    cache.reset(committed_epoch=0, partitions=others, fresh=())
    cache.reset(committed_epoch=0, partitions=range(4), fresh=())

    assert cache.complete == set(others)
    assert cache.missing([KEYS[0]]) == [KEYS[0]]


def test_evicted_keys_are_those_longest_untouched_and_are_asked_for() -> None:
    cache = make_cache(keys_max=8)
    cache.reset(committed_epoch=0, partitions=range(4), fresh=range(4))
    for key in KEYS[:6]:
        add_one(cache, key)
    flushed(cache)
    for key in KEYS[4:]:
        add_one(cache, key)
    flushed(cache)

    # An eighth more than the excess, so that it is not done at each flush.
    assert len(cache) == 7
    gone = [key for key in KEYS if key not in cache]
    assert set(KEYS[:4]) <= set(gone)
    assert cache.missing(KEYS) == gone


def test_partition_with_too_many_keys_to_ask_for_is_no_longer_complete() -> None:
    cache = make_cache(must_ask_max=4)
    cache.reset(committed_epoch=0, partitions=range(4), fresh=range(4))
    for key in KEYS:
        add_one(cache, key)

    cache.reset(committed_epoch=0, partitions=range(4), fresh=())

    assert len(cache.complete) < 4
    assert cache.missing(KEYS) == KEYS


def test_cache_of_size_zero_keeps_nothing_beyond_an_epoch() -> None:
    cache = make_cache(keys_max=0)
    cache.reset(committed_epoch=0, partitions=range(4), fresh=range(4))
    for key in KEYS:
        add_one(cache, key)

    assert len(flushed(cache)) == len(KEYS)
    assert len(cache) == 0


def test_state_that_cannot_be_encoded_names_its_key_and_keeps_the_epoch_open() -> None:
    cache = make_cache()
    cache.reset(committed_epoch=0, partitions=range(4), fresh=range(4))
    add_one(cache, KEYS[0])
    add_one(cache, KEYS[1])
    entry = cache.keys.get(KEYS[1])
    assert entry is not None
    entry.state.count = object()

    with pytest.raises(StateCodecError) as raised:
        cache.flush(1)

    assert raised.value.key == KEYS[1]
    assert raised.value.code is bt.ErrorCode.CODEC
    assert cache.open_epoch == 1


def test_columns_are_read_without_making_the_dict_of_a_dataclass() -> None:
    cache = make_cache()
    cache.reset(committed_epoch=0, partitions=range(4), fresh=range(4))
    add_one(cache, KEYS[0])

    rows = cache.flush(1)

    assert rows[0].values == [msgpack(Count).encode(Count(1))]


class CacheAgainstTruth(RuleBasedStateMachine):
    """Random work and resets beside dicts that hold the truth of every epoch."""

    def __init__(self) -> None:
        super().__init__()
        self.cache = make_cache(keys_max=8, must_ask_max=12)
        # Rows after each epoch; the last is that of the open one.
        self.epochs: list[dict[bytes, int]] = [{}]
        self.committed = 0
        self.owned = set(range(PARTITIONS))
        self.cache.reset(
            committed_epoch=0, partitions=self.owned, fresh=range(PARTITIONS)
        )
        self.epochs.append({})

    def _fetch(self, key: bytes) -> None:
        missing = self.cache.missing([key])
        if missing:
            count = self.epochs[-1].get(key)
            value = b"" if count is None else msgpack(Count).encode(Count(count))
            self.cache.install([key], [value], [] if count is not None else [0])

    @rule(key=st.sampled_from(KEYS))
    def add(self, key: bytes) -> None:
        if partition_of(key) in self.owned:
            self._fetch(key)
            add_one(self.cache, key)
            self.epochs[-1][key] = self.epochs[-1].get(key, 0) + 1

    @rule(key=st.sampled_from(KEYS))
    def remove(self, key: bytes) -> None:
        if partition_of(key) in self.owned:
            self._fetch(key)
            delete(self.cache, key)
            self.epochs[-1].pop(key, None)

    @rule()
    def flush(self) -> None:
        before = self.epochs[-2]
        rows = dict(before)
        for key, count in flushed(self.cache).items():
            if count is None:
                rows.pop(key, None)
            else:
                rows[key] = count
        assert rows == self.epochs[-1]
        self.epochs.append(dict(rows))

    @rule(lag=st.integers(0, 3))
    def commit(self, lag: int) -> None:
        self.committed = max(self.committed, len(self.epochs) - 2 - lag)
        self.cache.on_committed(self.committed)

    @rule(owned=st.sets(st.integers(0, PARTITIONS - 1), min_size=1))
    def reset(self, owned: set[int]) -> None:
        truth = self.epochs[self.committed]
        # A cache starts from nothing where it owned nothing: rows stay at the engine.
        self.owned = owned
        used = {partition_of(key) for key in truth}
        self.cache.reset(
            committed_epoch=self.committed, partitions=owned, fresh=owned - used
        )
        self.epochs = [*self.epochs[: self.committed + 1], dict(truth)]

    @invariant()
    def cached_state_is_the_true_one(self) -> None:
        for key in KEYS:
            entry = self.cache.keys.get(key)
            if entry is not None:
                truth = self.epochs[-1].get(key)
                state = entry.state
                assert (None if state is None else state.count) == truth
            elif partition_of(key) in self.owned and not self.cache.missing([key]):
                assert key not in self.epochs[-1], "a row that nobody asks for"


TestCacheAgainstTruth = CacheAgainstTruth.TestCase
