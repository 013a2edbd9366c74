"""From a record's making in the source to its line in the output file."""

import os
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path

PROGRAM = Path(__file__).parent / "programs" / "bettong_latency.py"
WARM_UP_S = 3


def measure(root, *, rate, seconds):
    """Return (p50, p99, max) in ms, the records seen, and the disk's fsync p50."""
    place = root / "latency"
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir(parents=True)
    output = place / "out.txt"
    count = rate * (seconds + WARM_UP_S)
    command = [
        sys.executable, "-m", "bettong_engine.cli.main", "run", "--plain",
        "--data-dir", str(place / "data"),
        str(PROGRAM), str(rate), str(count), str(output),
    ]  # fmt: skip
    process = subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    found = []
    rest = b""
    offset = 0
    while process.poll() is None or (
        output.exists() and output.stat().st_size > offset
    ):
        if not output.exists():
            time.sleep(0.01)
            continue
        with output.open("rb") as file:
            file.seek(offset)
            data = file.read()
        now = time.monotonic_ns()
        offset += len(data)
        lines = (rest + data).split(b"\n")
        rest = lines.pop()
        found += [(now - int(line)) / 1e6 for line in lines]
        time.sleep(0.001)
    if process.returncode != 0:
        raise RuntimeError("the latency run failed")
    if len(found) != count:
        raise RuntimeError(f"{len(found)} records came, {count} were made")
    steady = sorted(found[rate * WARM_UP_S :])
    return {
        "rate": rate,
        "records": len(steady),
        "p50": statistics.median(steady),
        "p99": steady[int(len(steady) * 0.99)],
        "max": steady[-1],
        "fsync_p50": fsync_p50_ms(place),
        "all": steady,
    }


def fsync_p50_ms(place):
    """Return how long a small write takes to be durable here."""
    times = []
    handle = os.open(place / "fsync", os.O_CREAT | os.O_WRONLY)
    for _ in range(200):
        begun = time.perf_counter()
        os.write(handle, b"x" * 4096)
        os.fdatasync(handle)
        times.append((time.perf_counter() - begun) * 1e3)
    os.close(handle)
    return statistics.median(times)
