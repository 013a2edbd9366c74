"""From columns to batches: routing, cutting, limits, credit."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

import bettong as bt
from bettong.codecs import text
from bettong.keys import partition_of
from bettong.plan import Edge
from bettong.program.columns import Columns, SizeLimits
from bettong.program.failure import RecordFailedError
from bettong.runtime import limits
from bettong.runtime.batches import (
    OutputRoute,
    Router,
    make_batches,
    parse_columns,
    spread_times,
)
from bettong.runtime.credit import CreditLedger
from bettong_proto.plugin.v1 import batch_pb2

TO_STAGE = Edge(0, to_stage="next", to_sink=None, input=0, codec=text, key=str)
TO_SINK = Edge(1, to_stage=None, to_sink="out", input=0, codec=text)


@given(
    keys=st.lists(st.binary(max_size=4), max_size=30),
    targets=st.lists(st.integers(0, 3), min_size=1, max_size=8),
    has_values=st.booleans(),
    has_times=st.booleans(),
    records_max=st.integers(1, 10),
)
def test_batches_hold_each_record_once_in_order_at_its_target(
    keys: list[bytes],
    targets: list[int],
    has_values: bool,
    has_times: bool,
    records_max: int,
) -> None:
    indices = list(range(len(keys)))
    values = [str(i).encode() for i in indices] if has_values else None
    columns = Columns(keys, values, indices if has_times else None)

    batches = make_batches(
        columns, OutputRoute(TO_STAGE, tuple(targets)), SizeLimits(), records_max
    )

    found: dict[int, list[tuple[object, ...]]] = {}
    for batch in batches:
        assert 1 <= batch.count <= records_max
        part = parse_columns(batch.records)
        assert part.count == batch.count
        assert part.keys is not None
        for index, key in enumerate(part.keys):
            found.setdefault(batch.target, []).append(
                (
                    key,
                    part.values[index] if part.values is not None else None,
                    part.times[index] if part.times is not None else None,
                )
            )
    expected: dict[int, list[tuple[object, ...]]] = {}
    for index, key in enumerate(keys):
        target = targets[partition_of(key, len(targets))]
        expected.setdefault(target, []).append(
            (
                key,
                values[index] if values is not None else None,
                index if has_times else None,
            )
        )
    assert found == expected


def test_batch_of_many_bytes_is_cut_below_the_frame() -> None:
    values = [b"x" * 100_000] * 25
    columns = Columns(None, values, None)

    batches = make_batches(columns, OutputRoute(TO_SINK, (0,)), SizeLimits(), 2000)

    assert sum(batch.count for batch in batches) == 25
    assert all(len(b.records) <= limits.FRAME_BYTES_MAX for b in batches)


@pytest.mark.parametrize(
    ("columns", "what"),
    [
        (Columns([b"k" * 11], [b"v"], None), "key has 11 bytes"),
        (Columns([b"k" * 5], [b"v" * 16], None), "record has 21 bytes"),
        (Columns(None, [b"v" * 21], None), "record has 21 bytes"),
        (Columns([b"k" * 11], None, None), "key has 11 bytes"),
    ],
)
def test_record_over_a_limit_is_refused_by_name(columns: Columns, what: str) -> None:
    sizes = SizeLimits(record=20, key=10)

    with pytest.raises(RecordFailedError, match=what) as raised:
        make_batches(columns, OutputRoute(TO_STAGE, (0,)), sizes, 2000)

    assert raised.value.code is bt.ErrorCode.TOO_LARGE


def test_record_at_the_limits_passes() -> None:
    columns = Columns([b"k" * 10], [b"v" * 10], None)

    sizes = SizeLimits(record=20, key=10)
    assert make_batches(columns, OutputRoute(TO_STAGE, (0,)), sizes, 2000)


def test_sink_partition_is_the_target() -> None:
    router = Router((Edge(0, None, "out", 0, text),), {"out": 3})
    router.on_reset([batch_pb2.Route(output=0, sink_partitions=3)])

    (route,) = router.resolve()

    assert route.targets == (0, 1, 2)


def test_other_number_of_sink_partitions_at_the_engine_is_refused() -> None:
    router = Router((Edge(0, None, "out", 0, text),), {"out": 3})
    router.on_reset([batch_pb2.Route(output=0, sink_partitions=2)])

    with pytest.raises(bt.ProtocolError, match="3 partitions here and 2"):
        router.resolve()


def test_outputs_to_stages_without_key_take_the_targets_of_the_stream() -> None:
    unkeyed = Edge(1, to_stage="head", to_sink=None, input=0, codec=text)
    router = Router((TO_STAGE, unkeyed), {})
    router.on_reset([batch_pb2.Route(output=0, targets=[4, 4])])

    keyed, other = router.resolve([9])

    assert (keyed.only, other.only) == (4, 9)
    with pytest.raises(bt.ProtocolError, match="no targets for output 1"):
        router.resolve()


def test_one_event_time_stands_for_all() -> None:
    assert spread_times([7], 3) == [7, 7, 7]
    assert spread_times([], 3) is None
    assert spread_times([1, 2], 2) == [1, 2]


# Credit ----------------------------------------------------------------------


def batch(count: int, size: int) -> batch_pb2.Batch:
    return batch_pb2.Batch(output=1, target=2, count=count, records=b"x" * size)


def test_last_batch_may_overshoot_and_then_nothing_goes() -> None:
    ledger = CreditLedger()
    ledger.reset(records=10, size=1000)

    ledger.spend(batch(9, 10))
    before = ledger.may_send((1, 2))
    ledger.spend(batch(50, 10))

    assert before
    assert not ledger.may_send((1, 2))
    assert ledger.may_send((1, 3))


def test_exactly_what_was_granted_is_enough_to_wait() -> None:
    ledger = CreditLedger()
    ledger.reset(records=10, size=1000)

    ledger.spend(batch(10, 10))

    assert not ledger.may_send((1, 2))


def test_bytes_count_as_well() -> None:
    ledger = CreditLedger()
    ledger.reset(records=10, size=1000)

    ledger.spend(batch(1, 1000))

    assert not ledger.may_send((1, 2))


def test_lower_or_repeated_grant_changes_nothing() -> None:
    ledger = CreditLedger()
    ledger.reset(records=10, size=1000)
    ledger.spend(batch(6, 600))

    ledger.on_credit(batch_pb2.Credit(output=1, target=2, records=5, bytes=500))

    assert ledger.may_send((1, 2), records=3, size=399)
    assert not ledger.may_send((1, 2), records=4)
    assert not ledger.may_send((1, 2), size=400)
