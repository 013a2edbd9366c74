"""Standard input and output, through pipes that stand in for the terminal."""

import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from tests.contract.source_driver import DEADLINE_S, read_to_end, records_of, take

import bettong as bt

FENCE = bt.Fence(b"h" * 16, 1)


@dataclass
class Pipe:
    """Both ends of a pipe; -1: closed."""

    reading: int
    writing: int

    def close_writing(self) -> None:
        os.close(self.writing)
        self.writing = -1

    def close_reading(self) -> None:
        os.close(self.reading)
        self.reading = -1


@pytest.fixture
def pipe() -> Iterator[Pipe]:
    pipe = Pipe(*os.pipe())
    yield pipe
    for end in (pipe.reading, pipe.writing):
        if end >= 0:
            os.close(end)


@pytest.fixture
def source(pipe: Pipe, monkeypatch: pytest.MonkeyPatch) -> bt.StdinSource:
    monkeypatch.setenv("BETTONG_STDIN_FD", str(pipe.reading))
    source = bt.StdinSource(record_bytes_max=100)
    source.start()
    return source


@pytest.fixture
def writer(pipe: Pipe, monkeypatch: pytest.MonkeyPatch) -> bt.Writer:
    monkeypatch.setenv("BETTONG_STDOUT_FD", str(pipe.writing))
    writer, position = bt.StdoutSink().open(0, FENCE)
    assert position is bt.UNKNOWN
    return writer


def test_lines_come_as_they_are_typed_until_the_end(
    pipe: Pipe, source: bt.StdinSource
) -> None:
    (stream,), is_final = source.streams()
    reader = source.open(stream, None)

    assert is_final
    assert reader.read() is None
    os.write(pipe.writing, b"one\ntw")
    assert take(source, reader, 1) == ["one"]
    assert reader.read() is None
    os.write(pipe.writing, b"o\nthree")
    pipe.close_writing()
    reads = read_to_end(source, reader)
    assert records_of(reads) == ["two", "three"]
    assert reads[-1].position == (13).to_bytes(8, "big")
    reader.close()
    assert source.streams() == ([], True)


def test_wait_ends_with_input_and_not_before(
    pipe: Pipe, source: bt.StdinSource
) -> None:
    began_at = time.monotonic()
    source.wait(0.05)
    assert time.monotonic() - began_at >= 0.05

    os.write(pipe.writing, b"x")
    source.wait(DEADLINE_S)
    assert time.monotonic() - began_at < DEADLINE_S


def test_input_of_another_process_or_place_is_refused(
    pipe: Pipe, source: bt.StdinSource
) -> None:
    (stream,), _ = source.streams()
    os.write(pipe.writing, b"one\n")
    reader = source.open(stream, None)
    read = reader.read()
    assert read is not None

    assert source.open(stream, read.position) is reader
    for name, position in ((stream, None), (stream, b"?"), ("stdin#0", read.position)):
        with pytest.raises(bt.SourceError) as caught:
            source.open(name, position)
        assert not caught.value.is_retryable


@pytest.mark.parametrize(
    ("sent", "reason"), [(b"ok\n\xff\n", "byte 3: .*UTF-8"), (b"x" * 101, "limit of")]
)
def test_faulty_input_is_an_error_that_names_its_place(
    pipe: Pipe, source: bt.StdinSource, sent: bytes, reason: str
) -> None:
    reader = source.open(source.streams()[0][0], None)
    os.write(pipe.writing, sent)
    if sent.startswith(b"ok"):
        assert take(source, reader, 1) == ["ok"]

    with pytest.raises(bt.SourceError, match=reason) as caught:
        reader.read()

    assert not caught.value.is_retryable


def test_outputs_are_printed_one_a_line(pipe: Pipe, writer: bt.Writer) -> None:
    writer.write(7, [b"seven", b""])
    assert writer.flush() == 8
    writer.skip(9)
    assert writer.flush() == 9
    writer.close()

    assert os.read(pipe.reading, 100) == b"seven\n\n"


@pytest.mark.parametrize("blocking", [True, False])
def test_full_pipe_is_waited_for(pipe: Pipe, writer: bt.Writer, blocking: bool) -> None:
    os.set_blocking(pipe.writing, blocking)
    parts: list[bytes] = []

    def read_all() -> None:
        while sum(map(len, parts)) < 1_000_000:
            parts.append(os.read(pipe.reading, 4096))

    reader = threading.Thread(target=read_all)
    reader.start()
    writer.write(1, [b"x" * 999] * 1000)
    reader.join(DEADLINE_S)

    assert b"".join(parts) == (b"x" * 999 + b"\n") * 1000


def test_reader_that_went_away_is_an_error(pipe: Pipe, writer: bt.Writer) -> None:
    pipe.close_reading()

    with pytest.raises(bt.SinkError, match="may have gone") as caught:
        writer.write(1, [b"x"])

    assert not caught.value.is_retryable


def test_descriptor_that_is_not_there_is_an_error(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("BETTONG_STDIN_FD", "BETTONG_STDOUT_FD"):
        monkeypatch.setenv(name, "9999")

    with pytest.raises(bt.SourceError, match="no standard input"):
        bt.StdinSource().start()
    with pytest.raises(bt.SinkError, match="no standard output"):
        bt.StdoutSink().open(0, FENCE)


def test_without_the_environment_they_are_the_process_s_own(tmp_path: Path) -> None:
    program = (
        "import bettong as bt\n"
        "source, sink = bt.StdinSource(), bt.StdoutSink()\n"
        "source.start()\n"
        "reader = source.open(source.streams()[0][0], None)\n"
        "writer, _ = sink.open(0, bt.Fence(b'h' * 16, 1))\n"
        "sequence = 1\n"
        "while True:\n"
        "    read = reader.read()\n"
        "    writer.write(sequence, sink.codec.encode_many(read.records))\n"
        "    sequence += len(read.records)\n"
        "    if read.end: break\n"
        "assert writer.flush() == 3\n"
    )
    path = tmp_path / "input.txt"
    path.write_text("one\ntwo\nthrée")
    with path.open("rb") as file:
        result = subprocess.run(
            [sys.executable, "-c", program],
            stdin=file,
            capture_output=True,
            timeout=60,
            check=True,
        )

    assert result.stdout.decode() == "one\ntwo\nthrée\n"
