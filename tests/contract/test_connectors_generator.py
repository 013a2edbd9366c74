"""The generator: rate, count, streams, failures of the function."""

import pytest
from tests.contract.source_driver import read_to_end, records_of

import bettong as bt


class Clock:
    """Time that passes only when told, or by sleeping."""

    def __init__(self) -> None:
        self.now_s = 100.0
        self.slept_s: list[float] = []

    def __call__(self) -> float:
        return self.now_s

    def sleep(self, seconds: float) -> None:
        self.slept_s.append(seconds)
        self.now_s += seconds


def paced(rate: float, clock: Clock, streams: int = 1) -> bt.GeneratorSource:
    return bt.GeneratorSource(
        lambda index: index,
        rate_per_second=rate,
        streams=streams,
        clock=clock,
        sleep=clock.sleep,
    )


def count_in(source: bt.GeneratorSource, clock: Clock, seconds: float) -> list[int]:
    """Return the sizes of the reads in a time, waiting whenever all are idle."""
    readers = [source.open(stream, None) for stream in source.streams()[0]]
    until, sizes = clock.now_s + seconds, list[int]()
    while clock.now_s < until:
        reads = [read for reader in readers if (read := reader.read())]
        sizes += [len(read.records) for read in reads]
        if not reads:
            source.wait(min(0.1, until - clock.now_s))
    return sizes


@pytest.mark.parametrize("rate", [0.5, 3, 100, 20_000])
@pytest.mark.parametrize("streams", [1, 4])
def test_rate_is_kept_in_small_bursts(rate: float, streams: int) -> None:
    clock = Clock()

    sizes = count_in(paced(rate, clock, streams), clock, 10)

    assert sum(sizes) == pytest.approx(rate * 10, abs=2 * streams, rel=0.01)
    assert max(sizes) <= max(1, rate * 0.002)


def test_pause_is_not_made_up_for() -> None:
    clock = Clock()
    source = paced(1000, clock)
    reader = source.open("0-of-1", None)

    clock.now_s += 60
    read = reader.read()

    assert read is not None
    assert len(read.records) == 51
    assert reader.read() is None


def test_wait_sleeps_until_a_record_is_due_and_no_longer_than_asked() -> None:
    clock = Clock()
    source = paced(2, clock)
    reader = source.open("0-of-1", None)
    reader.read()

    source.wait(0.1)
    source.wait(5)

    assert clock.slept_s == pytest.approx([0.1, 0.4])
    assert reader.read() is not None


def test_streams_deal_the_indices_in_turn() -> None:
    source = bt.GeneratorSource(lambda index: index, count=8, streams=3)

    dealt = [
        records_of(read_to_end(source, source.open(stream, None)))
        for stream in source.streams()[0]
    ]

    assert dealt == [[0, 3, 6], [1, 4, 7], [2, 5]]


def test_position_is_the_next_index() -> None:
    source = bt.GeneratorSource(lambda index: index, count=8, streams=3)
    read = source.open("1-of-3", None).read()

    assert read is not None
    assert read.position == (10).to_bytes(8, "big")


@pytest.mark.parametrize("stream", ["0-of-2", "3-of-3", "x", "-1-of-3"])
def test_stream_of_another_count_is_refused(stream: str) -> None:
    source = bt.GeneratorSource(lambda index: index, streams=3)

    with pytest.raises(bt.SourceError, match=f"there is no stream {stream}"):
        source.open(stream, None)


def test_position_of_another_stream_is_refused() -> None:
    source = bt.GeneratorSource(lambda index: index, streams=3)

    with pytest.raises(bt.SourceError, match="no position of stream"):
        source.open("1-of-3", (3).to_bytes(8, "big"))


def test_failing_function_is_named_after_the_records_before_it() -> None:
    source = bt.GeneratorSource(lambda index: 1 // (3 - index))
    reader = source.open("0-of-1", None)

    read = reader.read()

    assert read is not None
    assert (list(read.records), read.end) == ([0, 0, 1], False)
    for _ in range(2):
        with pytest.raises(bt.SourceError, match="at index 3: ZeroDivision") as caught:
            reader.read()
        assert not caught.value.is_retryable


@pytest.mark.parametrize(
    "arguments", [{"rate_per_second": 0}, {"streams": 0}, {"count": -1}]
)
def test_settings_out_of_range_are_refused(arguments: dict[str, int]) -> None:
    with pytest.raises(bt.GraphError, match=next(iter(arguments))):
        bt.GeneratorSource(lambda index: index, **arguments)  # type: ignore[arg-type]
