"""The file source: changed files are errors, followed files go on."""

import os
from pathlib import Path

import pytest
from tests.contract.source_driver import next_read, read_to_end, records_of, take

import bettong as bt


def read_once(path: Path, position: bytes | None = None) -> bt.Read:
    """Return the one read that a small file gives."""
    source = bt.FileSource(path)
    reader = source.open(str(path), position)
    reads = read_to_end(source, reader)
    reader.close()
    return bt.Read(records_of(reads), reads[-1].position, reads[-1].end)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "input.txt"
    path.write_text("one\ntwo\nthree\n")
    return path


def test_file_that_grew_goes_on_behind_the_position(path: Path) -> None:
    before = read_once(path)
    with path.open("a") as file:
        file.write("four\n")

    assert read_once(path, before.position).records == ["four"]


def test_truncated_file_is_refused_on_open(path: Path) -> None:
    position = read_once(path).position
    path.write_text("one\n")

    with pytest.raises(bt.SourceError, match="has 4 bytes, but was read up") as caught:
        read_once(path, position)

    assert caught.value.code is bt.ErrorCode.SOURCE_TRUNCATED
    assert not caught.value.is_retryable


def test_rewritten_file_is_refused_on_open(path: Path) -> None:
    position = read_once(path).position
    path.write_text("one\nTWO\nthree\nfour\n")

    with pytest.raises(bt.SourceError, match="was rewritten") as caught:
        read_once(path, position)

    assert caught.value.code is bt.ErrorCode.SOURCE_TRUNCATED


def test_bad_utf8_is_named_by_file_and_byte_after_the_records_before_it(
    path: Path,
) -> None:
    path.write_bytes(b"one\ntwo\nb\xe4d\nfour\n")
    source = bt.FileSource(path)
    reader = source.open(str(path), None)

    assert take(source, reader, 2) == ["one", "two"]
    with pytest.raises(bt.SourceError, match=rf"{path}, byte 8: .*codec=raw_bytes"):
        reader.read()
    reader.close()
    raw = bt.FileSource(path, codec=bt.raw_bytes)
    reader = raw.open(str(path), None)
    assert take(raw, reader, 4)[2] == b"b\xe4d"
    reader.close()


def test_line_over_the_limit_is_an_error_that_names_its_place(path: Path) -> None:
    path.write_text("short\n" + "x" * 600_000 + "\n")
    source = bt.FileSource(path, record_bytes_max=500_000)
    reader = source.open(str(path), None)

    assert take(source, reader, 1) == ["short"]
    with pytest.raises(bt.SourceError, match=r"byte 6: .*limit of 500000") as caught:
        reader.read()
    reader.close()

    assert caught.value.code is bt.ErrorCode.TOO_LARGE
    assert not caught.value.is_retryable


def test_records_larger_than_a_block_are_read_whole(path: Path) -> None:
    lines = ["x" * 600_000, "y" * 3, "z" * 1_000_000]
    path.write_text("\n".join(lines))

    assert read_once(path).records == lines


def test_glob_and_list_name_each_file_once_in_order(tmp_path: Path) -> None:
    for name in ("b.log", "a.log", "c.txt", "sub/d.log"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    source = bt.FileSource(
        [tmp_path / "b.log", f"{tmp_path}/*.log", f"{tmp_path}/**/d.*"]
    )

    source.start()
    streams, is_final = source.streams()

    names = [os.path.relpath(stream, tmp_path) for stream in streams]
    assert names == ["b.log", "a.log", "sub/d.log"]
    assert is_final


def test_name_with_brackets_of_a_file_that_exists_is_no_glob(tmp_path: Path) -> None:
    path = tmp_path / "data[1].txt"
    path.write_text("x")

    assert list(bt.FileSource(path).streams()[0]) == [str(path)]


@pytest.mark.parametrize("name", ["missing.txt", "*.csv"])
def test_missing_file_is_found_at_start(tmp_path: Path, name: str) -> None:
    with pytest.raises(bt.SourceError, match=r"no such file: .*follow=True") as caught:
        bt.FileSource(tmp_path / name).start()

    assert not caught.value.is_retryable


def test_directory_is_refused_with_the_glob_to_write(tmp_path: Path) -> None:
    with pytest.raises(bt.SourceError, match=r"is a directory; .*/\*'"):
        bt.FileSource(tmp_path).start()


def test_pipe_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")

    with pytest.raises(bt.SourceError, match="pipe or a device"):
        bt.FileSource(tmp_path / "pipe").open(str(tmp_path / "pipe"), None)


def test_file_that_vanished_may_come_back(path: Path) -> None:
    source = bt.FileSource(path)
    source.start()
    path.unlink()

    with pytest.raises(bt.SourceError, match="cannot open") as caught:
        source.open(str(path), None)

    assert caught.value.is_retryable


def test_followed_file_gives_whole_lines_as_it_grows(path: Path) -> None:
    source = bt.FileSource(path, follow=True)
    reader = source.open(str(path), None)
    assert take(source, reader, 3) == ["one", "two", "three"]

    with path.open("ab", buffering=0) as file:
        file.write(b"fo")
        assert reader.read() is None
        file.write(b"ur\nfi")
        grown = next_read(source, reader)
        assert (grown.records, grown.end) == (["four"], False)
        file.write(b"ve\n")
        assert take(source, reader, 1) == ["five"]
    reader.close()

    resumed = source.open(str(path), grown.position)
    assert take(source, resumed, 1) == ["five"]
    resumed.close()


def test_followed_glob_takes_up_new_files(tmp_path: Path) -> None:
    source = bt.FileSource(f"{tmp_path}/*.log", follow=True)
    source.start()
    assert source.streams() == ([], False)

    (tmp_path / "new.log").touch()

    assert source.streams() == ([f"{tmp_path}/new.log"], False)


def test_followed_file_that_is_truncated_is_an_error(path: Path) -> None:
    source = bt.FileSource(path, follow=True)
    reader = source.open(str(path), None)
    take(source, reader, 3)
    os.truncate(path, 5)

    with pytest.raises(bt.SourceError, match="truncated: it has 5 bytes") as caught:
        reader.read()
    reader.close()

    assert caught.value.code is bt.ErrorCode.SOURCE_TRUNCATED


def test_followed_file_that_is_replaced_is_an_error(path: Path) -> None:
    source = bt.FileSource(path, follow=True)
    reader = source.open(str(path), None)
    take(source, reader, 3)
    path.rename(path.with_suffix(".old"))
    path.write_text("another file\n")

    with pytest.raises(bt.SourceError, match="was replaced by another file"):
        reader.read()
    reader.close()


def test_followed_file_that_is_deleted_is_waited_for(path: Path) -> None:
    source = bt.FileSource(path, follow=True)
    reader = source.open(str(path), None)
    take(source, reader, 3)
    path.unlink()

    with pytest.raises(bt.SourceError, match="No such file") as caught:
        reader.read()
    reader.close()

    assert caught.value.is_retryable


def test_idle_file_is_polled_by_sleeping(path: Path) -> None:
    source = bt.FileSource(path, follow=True)
    reader = source.open(str(path), None)
    take(source, reader, 3)
    cpu_before = os.times().user + os.times().system

    for _ in range(10):
        assert reader.read() is None
        source.wait(0.1)
    reader.close()

    assert os.times().user + os.times().system - cpu_before < 0.1
