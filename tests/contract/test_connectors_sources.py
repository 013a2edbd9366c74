"""What every source must do, checked on each of ours."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tests.contract.source_driver import read_to_end, records_of

import bettong as bt

Make = Callable[[Path], bt.Source]

TEXTS = [f"line {number} " + "x" * (number % 700) for number in range(20_000)]


def text_file(directory: Path, ending: str = "\n") -> Path:
    path = directory / "input.txt"
    path.write_text("\n".join(TEXTS) + ending)
    return path


def file_with_short_lines(directory: Path) -> bt.Source:
    path = directory / "short.txt"
    path.write_text("\n" * 20_000)
    return bt.FileSource(path)


def empty_file(directory: Path) -> bt.Source:
    path = directory / "empty.txt"
    path.touch()
    return bt.FileSource(path)


RESUMABLE: dict[str, Make] = {
    "file": lambda directory: bt.FileSource(text_file(directory)),
    "file without last newline": lambda directory: bt.FileSource(
        text_file(directory, ending="")
    ),
    "file with short lines": file_with_short_lines,
    "file of bytes": lambda directory: bt.FileSource(
        text_file(directory), codec=bt.raw_bytes
    ),
    "empty file": empty_file,
    "generator": lambda _: bt.GeneratorSource(lambda index: index * 2, count=5000),
    "generator with streams": lambda _: bt.GeneratorSource(
        lambda index: str(index), count=5003, streams=3
    ),
    "generator from iterable": lambda _: bt.GeneratorSource.from_iterable(
        lambda: TEXTS
    ),
}


@pytest.fixture(params=RESUMABLE)
def source(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[bt.Source]:
    source = RESUMABLE[request.param](tmp_path)
    source.start()
    yield source
    source.stop()


def test_resuming_after_each_position_gives_exactly_the_rest(source: bt.Source) -> None:
    streams, is_final = source.streams()
    assert is_final
    for stream in streams:
        reader = source.open(stream, None)
        reads = read_to_end(source, reader)
        reader.close()

        for done, read in enumerate(reads, start=1):
            resumed = source.open(stream, read.position)
            rest = read_to_end(source, resumed)
            resumed.close()

            assert records_of(rest) == records_of(reads[done:])
            assert rest[-1].position == reads[-1].position


def test_reads_are_bounded_and_positions_move_with_records(source: bt.Source) -> None:
    for stream in source.streams()[0]:
        reader = source.open(stream, None)
        reads = read_to_end(source, reader)
        reader.close()

        positions = [read.position for read in reads if read.records]
        assert len(set(positions)) == len(positions)
        for read in reads:
            assert len(read.records) <= 8192
            assert len(read.position) <= 4096
            reader.committed(read.position)


def test_stream_goes_on_saying_that_it_has_ended(source: bt.Source) -> None:
    stream = source.streams()[0][0]
    reader = source.open(stream, None)
    last = read_to_end(source, reader)[-1]

    again = reader.read()
    reader.close()

    assert again is not None
    assert (list(again.records), again.position, again.end) == ([], last.position, True)


@pytest.mark.parametrize("garbage", [b"", b"?", b"\xff" * 17, b"\0" * 5000])
def test_garbage_position_is_refused_for_good(
    source: bt.Source, garbage: bytes
) -> None:
    stream = source.streams()[0][0]

    with pytest.raises(bt.SourceError) as caught:
        source.open(stream, garbage)

    assert not caught.value.is_retryable
    assert caught.value.code is bt.ErrorCode.SOURCE_BAD_POSITION


def test_building_a_source_acquires_nothing() -> None:
    bt.TcpSource("198.51.100.1:1")
    bt.FileSource("/nowhere/to/be/found")
    bt.StdinSource()
