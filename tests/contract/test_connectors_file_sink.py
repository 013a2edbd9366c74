"""The file sink: exactly once, whatever is cut off where."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import bettong as bt

HISTORY = b"h" * 16
FENCE = bt.Fence(HISTORY, 1)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "output.txt"


def open_writer(
    path: Path, fence: bt.Fence = FENCE, *, append: bool = False
) -> tuple[bt.Writer, bt.SinkPosition]:
    writer, position = bt.FileSink(path, append=append).open(0, fence)
    assert isinstance(position, bt.SinkPosition)
    return writer, position


def write(path: Path, first_sequence: int, *records: bytes) -> None:
    """Make some outputs durable, in one session of a writer."""
    writer, position = open_writer(path)
    assert position.sequence == first_sequence - 1
    writer.write(first_sequence, records)
    assert writer.flush() == first_sequence - 1 + len(records)
    writer.close()


def test_new_file_holds_nothing(path: Path) -> None:
    writer, position = open_writer(path)

    assert position == bt.SinkPosition(b"", 0)
    assert writer.flush() == 0
    writer.close()
    assert open_writer_and_close(path) == bt.SinkPosition(b"", 0)


def open_writer_and_close(path: Path, fence: bt.Fence = FENCE) -> bt.SinkPosition:
    writer, position = open_writer(path, fence)
    writer.close()
    return position


def test_position_is_that_of_the_last_flush(path: Path) -> None:
    write(path, 1, b"one", b"two")
    write(path, 3, b"", b"four")

    assert open_writer_and_close(path) == bt.SinkPosition(HISTORY, 4)
    assert path.read_bytes() == b"one\ntwo\n\nfour\n"


def test_what_was_not_flushed_is_cut_off(path: Path) -> None:
    write(path, 1, b"one")
    writer, _ = open_writer(path)
    writer.write(2, [b"two"])
    writer.close()
    assert path.read_bytes() == b"one\ntwo\n"

    position = open_writer_and_close(path)

    assert position == bt.SinkPosition(HISTORY, 1)
    assert path.read_bytes() == b"one\n"


def test_frames_with_lengths_may_hold_newlines(path: Path) -> None:
    sink = bt.FileSink(path, framing="length4")
    writer, _ = sink.open(0, FENCE)
    writer.write(1, sink.codec.encode_many(["a\nb", b""]))
    writer.flush()
    writer.close()

    assert path.read_bytes() == b"\0\0\0\3a\nb\0\0\0\0"


def test_skipped_output_counts_as_written(path: Path) -> None:
    writer, _ = open_writer(path)
    writer.write(1, [b"one"])
    writer.skip(2)
    writer.write(3, [b"three"])
    assert writer.flush() == 3
    writer.skip(4)
    assert writer.flush() == 4
    writer.close()

    assert open_writer_and_close(path) == bt.SinkPosition(HISTORY, 4)
    assert path.read_bytes() == b"one\nthree\n"


def test_second_writer_is_refused_while_the_first_is_open(path: Path) -> None:
    writer, _ = open_writer(path)

    with pytest.raises(bt.SinkError, match=f"held by process {os.getpid()} ") as caught:
        open_writer(path, bt.Fence(HISTORY, 2))
    assert caught.value.is_retryable

    writer.close()
    open_writer_and_close(path, bt.Fence(HISTORY, 2))


def test_older_generation_of_the_same_history_is_fenced(path: Path) -> None:
    open_writer_and_close(path, bt.Fence(HISTORY, 7))

    with pytest.raises(bt.SinkError, match=r"generation 7 .* generation 6") as caught:
        open_writer(path, bt.Fence(HISTORY, 6))

    assert caught.value.code is bt.ErrorCode.FENCED
    assert not caught.value.is_retryable
    open_writer_and_close(path, bt.Fence(HISTORY, 7))


def test_other_history_is_told_and_left_as_it_is(path: Path) -> None:
    write(path, 1, b"one")

    foreign = open_writer_and_close(path, bt.Fence(b"other", 1))

    assert foreign == bt.SinkPosition(HISTORY, 1)
    assert open_writer_and_close(path) == foreign


def test_other_history_takes_over_once_the_operator_lets_it_write(path: Path) -> None:
    write(path, 1, b"one")
    writer, _ = open_writer(path, bt.Fence(b"other", 1))
    writer.write(8, [b"eight"])
    writer.flush()
    writer.close()

    assert open_writer_and_close(path) == bt.SinkPosition(b"other", 8)
    assert path.read_bytes() == b"one\neight\n"


def test_file_that_was_opened_and_never_written_belongs_to_nobody(path: Path) -> None:
    open_writer_and_close(path, bt.Fence(b"other", 9))

    assert open_writer_and_close(path) == bt.SinkPosition(b"", 0)


@pytest.mark.parametrize("sequence", [2, 4, 1])
def test_gap_and_overlap_are_refused(path: Path, sequence: int) -> None:
    write(path, 1, b"one", b"two")
    writer, _ = open_writer(path)

    if sequence != 3:
        with pytest.raises(bt.SinkError, match=f"output 2, so output {sequence}"):
            writer.write(sequence, [b"x"])
        with pytest.raises(bt.SinkError, match=f"output 2, so output {sequence}"):
            writer.skip(sequence)
    writer.close()

    assert path.read_bytes() == b"one\ntwo\n"


def test_file_of_somebody_else_is_never_touched(path: Path) -> None:
    path.write_bytes(b"precious")

    for _ in range(2):
        with pytest.raises(bt.SinkError, match=r"8 bytes .*append=True") as caught:
            open_writer(path)
        assert not caught.value.is_retryable

    assert path.read_bytes() == b"precious"


@pytest.mark.parametrize("before", [b"precious", b"precious\n"])
def test_append_writes_behind_what_is_there(path: Path, before: bytes) -> None:
    path.write_bytes(before)
    writer, position = open_writer(path, append=True)
    assert position == bt.SinkPosition(b"", 0)
    writer.write(1, [b"one"])
    writer.close()
    writer, _ = open_writer(path, append=True)
    writer.write(1, [b"ONE"])
    writer.flush()
    writer.close()

    assert path.read_bytes() == b"precious\nONE\n"


def test_file_shorter_than_its_position_is_refused(path: Path) -> None:
    write(path, 1, b"one", b"two")
    os.truncate(path, 5)

    with pytest.raises(bt.SinkError, match="has 5 bytes, but 8 were") as caught:
        open_writer(path)

    assert not caught.value.is_retryable
    assert path.read_bytes() == b"one\nt"


def test_deleted_file_is_refused_and_not_begun_anew(path: Path) -> None:
    write(path, 1, b"one")
    path.unlink()

    with pytest.raises(bt.SinkError, match="cut or deleted"):
        open_writer(path)


def sidecar_of(path: Path) -> Path:
    return path.with_name(path.name + ".bettong")


@pytest.mark.parametrize("newest", [0, 4096])
@pytest.mark.parametrize("torn_byte", [0, 9, 17, 30, 40, 50, 80])
def test_torn_mark_gives_way_to_the_one_before(
    path: Path, newest: int, torn_byte: int
) -> None:
    write(path, 1, b"one")
    if sidecar_counter(path, newest) < sidecar_counter(path, 4096 - newest):
        open_writer_and_close(path)
    sidecar = bytearray(sidecar_of(path).read_bytes())
    sidecar[newest + torn_byte] ^= 0xFF
    sidecar_of(path).write_bytes(sidecar)

    position = open_writer_and_close(path)

    assert position in (bt.SinkPosition(b"", 0), bt.SinkPosition(HISTORY, 1))
    assert path.read_bytes() == b"one\n" * position.sequence


def sidecar_counter(path: Path, slot_at: int) -> int:
    return int.from_bytes(sidecar_of(path).read_bytes()[slot_at + 8 :][:8], "big")


def test_sidecar_without_a_whole_mark_is_refused(path: Path) -> None:
    write(path, 1, b"one")
    sidecar = bytearray(sidecar_of(path).read_bytes())
    sidecar[20] ^= 1
    sidecar[4096 + 20] ^= 1
    sidecar_of(path).write_bytes(sidecar)

    with pytest.raises(bt.SinkError, match="neither of its two marks") as caught:
        open_writer(path)

    assert not caught.value.is_retryable
    assert path.read_bytes() == b"one\n"


@pytest.mark.parametrize("garbage", [b"x", b"PK\3\4" * 5000, bytes(100)])
def test_foreign_sidecar_never_costs_data(path: Path, garbage: bytes) -> None:
    path.write_bytes(b"precious")
    sidecar_of(path).write_bytes(garbage)

    with pytest.raises(bt.SinkError):
        open_writer(path)

    assert path.read_bytes() == b"precious"


@pytest.mark.parametrize(
    ("name", "reason"),
    [("no/such/output.txt", "make its directory"), (".", "it is a directory")],
)
def test_path_that_cannot_be_is_an_error_that_says_why(
    tmp_path: Path, name: str, reason: str
) -> None:
    with pytest.raises(bt.SinkError, match=reason) as caught:
        open_writer(tmp_path / name)

    assert not caught.value.is_retryable


def test_pipe_is_refused(path: Path) -> None:
    os.mkfifo(path)

    with pytest.raises(bt.SinkError, match="pipe or a device"):
        open_writer(path)


def test_write_that_fails_half_way_ends_the_writer_and_leaves_no_trace(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(path, 1, b"one")
    writer, _ = open_writer(path)
    real = os.pwrite

    def full_after_three(file: int, data: bytes, at: int) -> int:
        if len(data) <= 3:
            raise OSError(28, "No space left on device")
        return real(file, data[:3], at)

    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", full_after_three)
        with pytest.raises(bt.SinkError, match=f"{path}: No space left") as caught:
            writer.write(2, [b"twotwo"])
    assert caught.value.is_retryable
    for call in (writer.flush, lambda: writer.write(2, [b"two"])):
        with pytest.raises(bt.SinkError, match="open it again"):
            call()
    writer.close()

    write(path, 2, b"two")
    assert path.read_bytes() == b"one\ntwo\n"


def test_failed_sync_is_never_taken_for_a_later_good_one(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer, _ = open_writer(path)
    writer.write(1, [b"one"])

    def fail(file: int) -> None:
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fdatasync", fail)
        with pytest.raises(bt.SinkError, match="Input/output error"):
            writer.flush()
    with pytest.raises(bt.SinkError, match="open it again"):
        writer.flush()
    writer.close()

    write(path, 1, b"one")


@pytest.mark.needs_tool("tmpfs")
def test_full_disk_is_an_error_that_ends_when_there_is_room(tmp_path: Path) -> None:
    mount = tmp_path / "small"
    mount.mkdir()
    subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k", "bettong-test", mount], check=True
    )
    try:
        path = mount / "output.txt"
        writer, _ = open_writer(path)
        reported: list[int] = []

        def fill() -> None:
            for sequence in range(1, 100):
                writer.write(sequence, [b"x" * 1000])
                reported.append(writer.flush())

        with pytest.raises(bt.SinkError, match=r"No space left .* free") as caught:
            fill()
        assert caught.value.is_retryable
        writer.close()
        subprocess.run(["mount", "-o", "remount,size=256k", mount], check=True)

        writer, position = open_writer(path)
        assert position.sequence == reported[-1] > 10
        for sequence in range(reported[-1] + 1, 100):
            writer.write(sequence, [b"x" * 1000])
        assert writer.flush() == 99
        writer.close()

        assert path.read_bytes() == (b"x" * 1000 + b"\n") * 99
    finally:
        subprocess.run(["umount", mount], check=True)


def test_lock_is_free_when_its_holder_was_killed(path: Path) -> None:
    program = (
        "import sys, time, bettong as bt\n"
        "writer, _ = bt.FileSink(sys.argv[1]).open(0, bt.Fence(b'h' * 16, 1))\n"
        "writer.write(1, [b'one']); writer.flush(); writer.write(2, [b'tw'])\n"
        "print('open', flush=True)\n"
        "time.sleep(600)\n"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", program, path], stdout=subprocess.PIPE
    )
    assert child.stdout is not None
    with child, child.stdout:
        assert child.stdout.readline() == b"open\n"
        with pytest.raises(bt.SinkError, match=f"held by process {child.pid} "):
            open_writer(path)
        child.kill()
        child.wait(60)

    assert open_writer_and_close(path) == bt.SinkPosition(HISTORY, 1)
    assert path.read_bytes() == b"one\n"


def test_killed_at_every_system_call_twice_in_a_row_it_ends_exact(
    tmp_path: Path,
) -> None:
    result = subprocess.run(
        [sys.executable, "-m", "tests.contract.file_sink_crashes", tmp_path],
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )

    assert result.returncode == 0, result.stderr
    points = re.fullmatch(r"(\d+) first crash points, (\d+) pairs\n", result.stdout)
    assert points is not None, result.stdout
    assert int(points[1]) > 20
    assert int(points[2]) > 300
