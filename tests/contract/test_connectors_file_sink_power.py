"""The file sink when the power fails: what was not synced may be lost, or torn.

The system calls of a real sink are recorded. A disk image is then made as it may be
after a power failure at any of them: of the writes since a file's last sync each is
there, or in part, or not at all. On the image the sink must find every output that it
reported as durable, and go on from there.
"""

import itertools
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import bettong as bt

HISTORY = b"h" * 16
OUTPUTS = [b"output %d %s" % (n, b"x" * (n * 41 % 200)) for n in range(1, 16)]


@dataclass(slots=True)
class Change:
    """A write or truncation of a file; `is_sync` makes all before it durable."""

    file: str
    at: int = 0
    data: bytes = b""
    is_truncation: bool = False
    is_sync: bool = False


@dataclass(slots=True)
class Recording:
    """What the sink did to the disk, and after how many changes it reported what."""

    changes: list[Change] = field(default_factory=list, repr=False)
    durable: list[tuple[int, int]] = field(default_factory=list)

    def flush(self, writer: bt.Writer) -> None:
        sequence = writer.flush()
        self.durable.append((len(self.changes), sequence))

    def durable_after(self, count: int) -> int:
        """Return the last sequence reported as durable within so many changes."""
        return max((s for at, s in self.durable if at <= count), default=0)


def record(directory: Path, patch: pytest.MonkeyPatch) -> Recording:
    """Run two sessions of a sink; the first is cut off before its last flush."""
    recording = Recording()

    def recorded(name: str, change: Callable[..., Change]) -> Callable[..., Any]:
        real = getattr(os, name)

        def call(file: int, *arguments: Any) -> Any:
            path = os.path.basename(os.readlink(f"/proc/self/fd/{file}"))
            if path != directory.name:
                recording.changes.append(change(path, *arguments))
            return real(file, *arguments)

        return call

    patch.setattr(
        os, "pwrite", recorded("pwrite", lambda p, d, at: Change(p, at, bytes(d)))
    )
    patch.setattr(
        os,
        "ftruncate",
        recorded("ftruncate", lambda p, size: Change(p, size, is_truncation=True)),
    )
    for name in ("fsync", "fdatasync"):
        patch.setattr(os, name, recorded(name, lambda p: Change(p, is_sync=True)))

    sink = bt.FileSink(directory / "out")
    writer, _ = sink.open(0, bt.Fence(HISTORY, 1))
    writer.write(1, OUTPUTS[:3])
    recording.flush(writer)
    writer.write(4, OUTPUTS[3:5])
    writer.write(6, OUTPUTS[5:6])
    recording.flush(writer)
    writer.write(7, OUTPUTS[6:9])
    writer.close()
    writer, _ = sink.open(0, bt.Fence(HISTORY, 2))
    writer.write(7, OUTPUTS[6:8])
    recording.flush(writer)
    for number in range(8, len(OUTPUTS)):
        writer.write(number + 1, OUTPUTS[number : number + 1])
        recording.flush(writer)
    writer.close()
    return recording


@pytest.fixture(scope="module")
def recording(tmp_path_factory: pytest.TempPathFactory) -> Recording:
    with pytest.MonkeyPatch.context() as patch:
        recording = record(tmp_path_factory.mktemp("recorded"), patch)
    return recording


def image(changes: list[Change], parts: list[float]) -> dict[str, bytearray]:
    """Return the files as they may be on disk: of each unsynced change, a part."""
    kept = itertools.cycle(parts)
    files: dict[str, bytearray] = {}
    for file in {change.file: None for change in changes}:
        own = [change for change in changes if change.file == file]
        synced = max((i for i, c in enumerate(own) if c.is_sync), default=-1)
        content = files[file] = bytearray()
        for number, change in enumerate(own):
            part = 1.0 if number < synced else next(kept)
            if change.is_truncation and part == 1.0:
                del content[change.at :]
            elif change.data and part > 0:
                data = change.data[: round(len(change.data) * part)]
                content.extend(bytes(max(0, change.at - len(content))))
                content[change.at : change.at + len(data)] = data
    return files


@settings(max_examples=300, deadline=None)
@given(
    where=st.floats(0, 1),
    parts=st.lists(st.sampled_from([0.0, 1.0, 0.3, 0.9]), min_size=8, max_size=8),
)
def test_after_a_power_failure_at_any_point_nothing_durable_is_lost(
    recording: Recording,
    where: float,
    parts: list[float],
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    count = round(where * len(recording.changes))
    files = image(recording.changes[:count], parts)
    directory = tmp_path_factory.mktemp("image")
    for name, content in files.items():
        (directory / name).write_bytes(content)

    writer, position = bt.FileSink(directory / "out").open(0, bt.Fence(HISTORY, 3))

    assert isinstance(position, bt.SinkPosition)
    assert position.sequence >= recording.durable_after(count)
    have = (directory / "out").read_bytes()
    assert have == b"".join(line + b"\n" for line in OUTPUTS[: position.sequence])
    if position.sequence < len(OUTPUTS):
        writer.write(position.sequence + 1, OUTPUTS[position.sequence :])
    assert writer.flush() == len(OUTPUTS)
    writer.close()
    have = (directory / "out").read_bytes()
    assert have == b"".join(line + b"\n" for line in OUTPUTS)
