"""Measures everything and writes the figures into bench/README.md."""

import argparse
import datetime
import platform
from pathlib import Path

from bench import latency, memory, throughput

HERE = Path(__file__).parent
README = HERE / "README.md"
BEGIN, END = "<!-- figures: begin -->", "<!-- figures: end -->"


def cpu_model():
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor()


def plot(found, words, delays, path):
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(11, 4))
    names = [c.name for c in found[:-1]]
    rates = [
        sorted(c.words_a_second(words))[len(c.rounds) // 2] / 1e3 for c in found[:-1]
    ]
    left.barh(names[::-1], rates[::-1])
    left.set_xlabel("thousand words a second (median)")
    right.hist(delays["all"], bins=100, range=(0, delays["p99"] * 2))
    right.set_xlabel("ms from source to line in the file")
    right.set_title(f"{delays['rate']:,} records a second")
    figure.tight_layout()
    figure.savefig(path, dpi=110)


def main():
    parser = argparse.ArgumentParser(prog="python -m bench")
    parser.add_argument("--quick", action="store_true", help="smaller, less exact")
    parser.add_argument("--words", type=int, default=0)
    parser.add_argument("--rounds", type=int, default=0)
    parser.add_argument("--memory-seconds", type=int, default=0)
    options = parser.parse_args()
    words = options.words or (500_000 if options.quick else 5_000_000)
    rounds = options.rounds or (1 if options.quick else 3)
    seconds = options.memory_seconds or (30 if options.quick else 300)
    root = HERE.parent / "build" / "bench"
    found = throughput.measure(root, words=words, rounds=rounds)
    delays = latency.measure(root, rate=20_000, seconds=10 if options.quick else 20)
    sizes = memory.by_key(root, keys=100_000 if options.quick else 1_000_000)
    steady = memory.steady(root, rate=10_000, seconds=seconds)
    plot(found, words, delays, HERE / "figures.png")
    lines = [
        f"Measured {datetime.datetime.now(datetime.UTC):%Y-%m-%d} with `make bench`"
        f" ({words:,} words, {rounds} rounds) on 2 shared cores, {cpu_model()},"
        f" Python {platform.python_version()}.",
        "",
        *throughput.table(found, words),
        "",
        "CPU, µs a word, start-up of the interpreters included:",
        "",
        *throughput.cpu_table(found, words),
        "",
        f"Latency at {delays['rate']:,} records a second, from the record's making in the"
        f" source to its line in the exactly-once file ({delays['records']:,} records):"
        f" **p50 {delays['p50']:.1f} ms, p99 {delays['p99']:.1f} ms**, max"
        f" {delays['max']:.1f} ms; fsync of this disk p50 {delays['fsync_p50']:.2f} ms.",
        "",
        f"Memory over {seconds} s at 10,000 records a second, MiB after a fifth of the"
        " run and at its end: "
        + ", ".join(f"{r} {a:.0f} and {b:.0f}" for r, (a, b) in sorted(steady.items()))
        + ".",
        "",
        f"Memory a key at {100_000 if options.quick else 1_000_000:,} keys (word count):"
        f" engine {sizes['engine']:.0f} bytes, computation {sizes['compute']:.0f} bytes.",
        "",
        "![throughput and latency](figures.png)",
    ]
    text = README.read_text()
    head, tail = text.split(BEGIN)[0], text.split(END)[1]
    README.write_text(f"{head}{BEGIN}\n" + "\n".join(lines) + f"\n{END}{tail}")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
