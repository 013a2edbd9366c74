"""Times the loops of the Python SDK, in ns a word, beside a plain dict loop.

    python bench/sdk_loops.py [--words 1000000] [--distinct 50000] [--batch 2000]

Word count over Zipf-distributed words, 10 a line, one process, no engine, no gRPC.
CPU time, the best of three. Only ratios within one run mean something.
"""

import argparse
import gc
import itertools
import random
import time
from bisect import bisect
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import bettong as bt
from bettong.plan import FailurePolicy, Plan
from bettong.program.columns import SizeLimits
from bettong.program.source import SourceProgram
from bettong.program.stage import StageProgram
from bettong.runtime.batches import OutputRoute, make_batches
from bettong.runtime.cache import StageCache
from bettong.runtime.compute import ComputeMachine
from bettong.runtime.delta import delta_frames
from bettong_proto.plugin.v1 import batch_pb2, compute_pb2

LINES_A_READ = 2_000
# Words between two barriers: what 60 ms of a fast machine bring.
WORDS_AN_EPOCH = 60_000
RUNS = 3


@dataclass
class WordCount:
    word: str = ""
    count: int = 0


def count(key: str, word: str, state: WordCount) -> Iterator[str]:
    state.word, state.count = key, state.count + 1
    yield f"{key} => {state.count}"


def count_returning(key: str, word: str, state: WordCount) -> str:
    state.word, state.count = key, state.count + 1
    return f"{key} => {state.count}"


def count_with_context(
    key: str, word: str, state: WordCount, context: bt.Context[str, WordCount]
) -> Iterator[str]:
    state.word, state.count = key, state.count + 1
    yield f"{key} => {state.count}"


def zipf_lines(words: int, distinct: int) -> list[str]:
    """Return lines of ten words, the i-th most frequent word 1/i as often."""
    rng = random.Random(1)
    weights = [1 / (i + 1) for i in range(distinct)]
    sums = list(itertools.accumulate(weights))
    names = [f"word{i:05d}"[: rng.randint(5, 9)] + str(i) for i in range(distinct)]
    chosen = [names[bisect(sums, rng.random() * sums[-1])] for _ in range(words)]
    return [" ".join(chosen[i : i + 10]) for i in range(0, words, 10)]


class NoConnector:
    """Enough of a source and of a sink to build a plan."""

    kind = bt.StreamKind.SHARED
    codec = bt.text
    takes_bytes = False
    partitions = 1
    guarantee = bt.Guarantee.EXACTLY_ONCE

    def start(self) -> None: ...

    def streams(self) -> Any: ...

    def open(self, *_: Any) -> Any: ...

    def wait(self, timeout_s: float) -> None: ...

    def stop(self) -> None: ...


def make_plan(function: Callable[..., Any], on_error: Any = "fail") -> Plan:
    app = bt.App(
        "loops",
        on_error=on_error,
        dead_letter=NoConnector() if on_error == "dead_letter" else None,
    )
    (
        app.source("lines", NoConnector())
        .flat_map(str.split, name="split")
        .key_by(lambda word: word, key=str, name="by_word")
        .stateful(function, state=WordCount, name="count")
        .sink("counts", NoConnector())
    )
    return app.plan()


def plain_loop(lines: list[str]) -> None:
    """The limit: one dict, every update formatted and encoded."""
    counts: dict[str, int] = {}
    updates: list[bytes] = []
    for line in lines:
        for word in line.split():
            counts[word] = number = counts.get(word, 0) + 1
            updates.append(f"{word} => {number}".encode())
        if len(updates) > 2_000:
            updates.clear()


def cpu_of(work: Callable[[], object]) -> float:
    begun = time.process_time()
    work()
    return time.process_time() - begun


def show(what: str, seconds: float, words: int, note: str = "") -> None:
    print(f"{what:44s}{seconds / words * 1e9:7.0f} ns/word  {note}", flush=True)


def batches_of(plan: Plan, lines: list[str], size: int) -> list[batch_pb2.Batch]:
    """Run the source program; return what it would send."""
    source = plan.sources[0]
    program = SourceProgram(source, policy=plan.on_error, sink_partitions={"counts": 1})
    route = OutputRoute(source.outputs[0], (0,) * plan.partitions)
    batches = []
    for begin in range(0, len(lines), LINES_A_READ):
        columns, _ = program.run(lines[begin : begin + LINES_A_READ], print)
        batches += make_batches(columns[0], route, SizeLimits(), size)
    return batches


def time_source(lines: list[str], words: int, size: int) -> None:
    plan = make_plan(count)
    source = plan.sources[0]
    program = SourceProgram(source, policy=plan.on_error, sink_partitions={"counts": 1})

    def run() -> None:
        for begin in range(0, len(lines), LINES_A_READ):
            program.run(lines[begin : begin + LINES_A_READ], print)

    show(
        "source program: split, key, encode",
        min(cpu_of(run) for _ in range(RUNS)),
        words,
    )
    show(
        "  and serialize",
        min(cpu_of(lambda: batches_of(plan, lines, size)) for _ in range(RUNS)),
        words,
    )


def time_stage(
    what: str,
    function: Callable[..., Any],
    lines: list[str],
    words: int,
    size: int,
    **how: Any,
) -> None:
    """Time the stage program and the flush, without the machine around them."""
    plan = make_plan(function, **how)
    stage = plan.stages[0]
    batches = batches_of(plan, lines, size)
    best = [9e9, 9e9]
    rows = 0
    for _ in range(RUNS):
        program = StageProgram(
            stage, policy=plan.on_error, sink_partitions={"counts": 1}, on_timers=print
        )
        assert stage.keyed is not None
        assert stage.key_codec is not None
        cache = StageCache(
            partitions=plan.partitions,
            key_codec=stage.key_codec,
            state=stage.keyed.state,
            keeps_saved=plan.on_error is not FailurePolicy.FAIL,
        )
        cache.reset(committed_epoch=0, partitions=range(64), fresh=range(64))
        columns = [list(batch_pb2.Records.FromString(b.records).keys) for b in batches]
        loop_s = flush_s = 0.0
        rows = pending = 0
        for keys in columns:
            begun = time.process_time()
            work = program.begin(keys, None, None)
            program.run(work, cache.keys, print)
            program.finish(work)
            loop_s += time.process_time() - begun
            pending += len(keys)
            if pending >= WORDS_AN_EPOCH:
                pending = 0
                begun = time.process_time()
                dirty = cache.flush(cache.open_epoch)
                rows += sum(len(part.keys) for part in dirty)
                for _frame in delta_frames(dirty, [], schema_version=0):
                    pass
                flush_s += time.process_time() - begun
        best = [min(best[0], loop_s), min(best[1], flush_s)]
    show(f"stage program: {what}", best[0], words)
    note = f"{best[1] / max(1, rows) * 1e9:.0f} ns a dirty key, {rows} of them"
    show("  flush and delta", best[1], words, note)


def time_machine(lines: list[str], words: int, size: int) -> None:
    """Time the compute role from parsed messages to serialized ones."""
    plan = make_plan(count)
    batches = batches_of(plan, lines, size)
    messages = []
    pending, epoch = 0, 1
    for batch in batches:
        message = compute_pb2.StageInput(
            generation=1, channel=1, count=batch.count, records=batch.records
        )
        messages.append(compute_pb2.ComputeResponse(input=message).SerializeToString())
        pending += batch.count
        if pending >= WORDS_AN_EPOCH:
            pending = 0
            barrier = compute_pb2.Barrier(generation=1, epoch=epoch)
            messages.append(
                compute_pb2.ComputeResponse(barrier=barrier).SerializeToString()
            )
            epoch += 1

    def run() -> None:
        machine = ComputeMachine(plan, sizes=SizeLimits(), cpu_clock=time.thread_time)
        machine.on_message(
            compute_pb2.ComputeResponse(
                reset=compute_pb2.ComputeReset(
                    generation=1,
                    stages=[
                        compute_pb2.StageAssignment(
                            partitions=range(64),
                            fresh_partitions=range(64),
                            routes=[batch_pb2.Route(sink_partitions=1)],
                        )
                    ],
                    credit_records=1 << 40,
                    credit_bytes=1 << 50,
                )
            )
        )
        for data in messages:
            machine.on_message(compute_pb2.ComputeResponse.FromString(data))
            while machine.has_work():
                for sent in machine.step():
                    sent.SerializeToString()

    show(
        "compute machine: bytes to bytes", min(cpu_of(run) for _ in range(RUNS)), words
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--words", type=int, default=1_000_000)
    parser.add_argument("--distinct", type=int, default=50_000)
    parser.add_argument("--batch", type=int, default=2_000)
    options = parser.parse_args()
    words, size = options.words, options.batch
    lines = zipf_lines(words, options.distinct)
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 5)
    print(f"{words:,} words, {options.distinct:,} distinct, batches of {size:,}")
    show(
        "plain dict loop",
        min(cpu_of(lambda: plain_loop(lines)) for _ in range(RUNS)),
        words,
    )
    time_source(lines, words, size)
    time_stage("generator", count, lines, words, size)
    time_stage("plain return", count_returning, lines, words, size)
    time_stage("generator with context", count_with_context, lines, words, size)
    time_stage("generator, policy skip", count, lines, words, size, on_error="skip")
    time_machine(lines, words, size)


if __name__ == "__main__":
    main()
