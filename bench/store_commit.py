"""Measures what one epoch costs the disk store: time, CPU and bytes written.

    python bench/store_commit.py [DIRECTORY]

Disks differ by orders of magnitude, so the fsync of a plain file is printed first:
read all times beside it.
"""

import argparse
import os
import shutil
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from bettong_engine.core.delta import StoredDelta
from bettong_engine.core.ids import Epoch, Generation, PartitionId
from bettong_engine.store.interface import Applied, Meta, StoredSnapshot
from bettong_engine.store.single import SingleStore

PARTITIONS = 64
# A commit record: 64 digests and what surrounds them.
MANIFEST_BYTES = 1300


@dataclass(frozen=True, slots=True)
class Load:
    """Epochs of one shape."""

    name: str
    deltas: int
    delta_bytes: int
    epochs: int
    # Whether the engine is idle between two epochs, and has the store tidied up.
    is_idle_between: bool = False


LOADS = (
    Load("64 deltas of 100 B", 64, 100, 600),
    Load("64 deltas of 4 KiB", 64, 4 << 10, 400),
    Load("  the same, tidied", 64, 4 << 10, 400, is_idle_between=True),
    Load("1 delta of 1 MiB", 1, 1 << 20, 200),
    Load("64 deltas of 64 KiB", 64, 64 << 10, 60),
)


def main() -> None:
    """Run every load in a directory of its own."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("directory", nargs="?", type=Path, default=None)
    parent = parser.parse_args().directory
    root = Path(tempfile.mkdtemp(prefix="bettong-bench-", dir=parent))
    try:
        report("plain file, 16 KiB", *measure_plain(root / "plain"))
        for number, load in enumerate(LOADS):
            run(load, root / str(number))
        run_snapshots(root / "snapshots")
        run_restart(root / "restart")
    finally:
        shutil.rmtree(root)


def run(load: Load, directory: Path) -> None:
    """Commit epochs, one after the other."""
    store = created(directory)
    bodies = [os.urandom(load.delta_bytes) for _ in range(load.deltas)]

    def commit(epoch: int) -> None:
        store.append(epoch, deltas_of(epoch, bodies))
        put_commit(store)

    payload = load.deltas * load.delta_bytes
    between = store.tidy if load.is_idle_between else None
    report(load.name, *measured(commit, load.epochs, between), payload=payload)
    store.close()


def run_snapshots(directory: Path) -> None:
    """Put snapshots of 4 MiB between epochs, as compaction does."""
    store = created(directory)
    bodies = [os.urandom(4 << 10) for _ in range(PARTITIONS)]
    body = os.urandom(4 << 20)
    epoch = 0

    def put(number: int) -> None:
        store.put_snapshot(StoredSnapshot(number % PARTITIONS, epoch, b"d" * 16, body))

    times: list[float] = []
    written = 0
    cpu_s = 0.0
    for number in range(PARTITIONS * 2):
        for _ in range(4):
            epoch += 1
            store.append(epoch, deltas_of(epoch, bodies))
            put_commit(store)
        more = measured(lambda _, number=number: put(number), 1)  # type: ignore[misc]
        times += more[0]
        written += more[1]
        cpu_s += more[2]
    report("snapshot of 4 MiB", times, written, cpu_s, payload=len(body))
    size = store._directory.database.stat().st_size
    print(
        f"  after {epoch} epochs of 256 KiB: the file has {size >> 20} MiB, of which"
        f" {len(body) * PARTITIONS >> 20} MiB are snapshots"
    )
    store.close()


def run_restart(directory: Path) -> None:
    """Open and load a store of 256 MiB."""
    store = created(directory)
    bodies = [os.urandom(16 << 10) for _ in range(PARTITIONS)]
    for epoch in range(1, 129):
        store.append(epoch, deltas_of(epoch, bodies))
        put_commit(store)
    for partition in range(PARTITIONS):
        store.put_snapshot(
            StoredSnapshot(partition, 64, b"d" * 16, os.urandom(2 << 20))
        )
    store.close()
    store = SingleStore(directory)
    begun = time.perf_counter()
    store.open()
    opened = time.perf_counter()
    size = sum(len(p.deltas) for p in store.load())
    loaded = time.perf_counter()
    total = store._directory.database.stat().st_size
    print(
        f"restart with {total >> 20} MiB: open {1e3 * (opened - begun):.0f} ms, load"
        f" {1e3 * (loaded - opened):.0f} ms ({size} deltas)"
    )
    store.close()


def measure_plain(path: Path) -> tuple[list[float], int, float]:
    """Overwrite 16 KiB of a file and fsync, 300 times."""
    file = os.open(path, os.O_RDWR | os.O_CREAT)
    data = os.urandom(16 << 10)
    os.pwrite(file, data * 64, 0)
    os.fsync(file)

    def write(number: int) -> None:
        os.pwrite(file, data, number % 64 * len(data))
        os.fdatasync(file)

    result = measured(write, 300)
    os.close(file)
    return result


def measured(
    call: Callable[[int], None],
    times: int,
    between: Callable[[], None] | None = None,
) -> tuple[list[float], int, float]:
    """Return seconds of each call; bytes written to disk and CPU seconds of all."""
    seconds = []
    written, cpu_s = written_bytes(), time.process_time()
    for number in range(1, times + 1):
        begun = time.perf_counter()
        call(number)
        seconds.append(time.perf_counter() - begun)
        if between is not None:
            between()
    return seconds, written_bytes() - written, time.process_time() - cpu_s


def report(
    name: str, seconds: list[float], written: int, cpu_s: float, *, payload: int = 0
) -> None:
    """Print one line."""
    count = len(seconds)
    ordered = sorted(seconds)
    p50, p99 = (1e3 * ordered[int(count * part)] for part in (0.5, 0.99))
    line = (
        f"{name:22} p50 {p50:6.2f} ms  p99 {p99:6.2f} ms  max {1e3 * ordered[-1]:6.1f}"
        f" ms  CPU {1e3 * cpu_s / count:5.2f} ms  {written / count / 1024:7.0f} KiB"
    )
    if payload:
        line += (
            f" written ({written / count / payload:.2f} x)"
            f"  {payload * count / sum(seconds) / 1e6:5.0f} MB/s"
        )
    print(line, flush=True)


def created(directory: Path) -> SingleStore:
    """Return a new store, with an application in it."""
    store = SingleStore(directory)
    store.open()
    store.create(Meta(bytes(16), bytes(16), b"application", "disk", "single"))
    store.campaign(b"bench")
    return store


def deltas_of(epoch: int, bodies: list[bytes]) -> list[StoredDelta]:
    """Return one delta for each body."""
    return [
        StoredDelta(PartitionId(p), Epoch(epoch), Generation(1), b"d" * 16, body)
        for p, body in enumerate(bodies)
    ]


def put_commit(store: SingleStore) -> None:
    """Write a commit record with what waits, guarded as the engine does."""
    found = store.get(["commit"])
    revision = found["commit"].revision if found else 0
    manifest = os.urandom(MANIFEST_BYTES)
    result = store.transact({"commit": revision}, {"commit": manifest})
    assert isinstance(result, Applied)


def written_bytes() -> int:
    """Return what this process has sent to disks."""
    for line in Path("/proc/self/io").read_text().splitlines():
        if line.startswith("write_bytes:"):
            return int(line.split()[1])
    raise AssertionError("/proc/self/io has no write_bytes")


if __name__ == "__main__":
    main()
