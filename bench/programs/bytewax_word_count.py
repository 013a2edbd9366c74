"""Word count in Bytewax, in its fastest usual form: batches in, batches split."""

import os

from bytewax import operators as op
from bytewax.connectors.files import FileSink, FileSource
from bytewax.dataflow import Dataflow

INPUT = os.environ["BENCH_INPUT"]
OUTPUT = os.environ["BENCH_OUTPUT"]


def split(lines):
    return [(word, word) for line in lines for word in line.split()]


def count(state, word):
    state = (state or 0) + 1
    return state, f"{word} => {state}"


flow = Dataflow("word_count")
lines = op.input("lines", flow, FileSource(INPUT, batch_size=1000))
words = op.flat_map_batch("split", lines, split)
counts = op.stateful_map("count", words, count)
op.output("counts", counts, FileSink(OUTPUT))
