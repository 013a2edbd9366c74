"""Carries committed data over to new names, in two steps that may be repeated.

Streams and output logs live in the partition that their name hashes to, so that a
new name may move them. First everything is copied, and made durable; then the old
names are dropped. A crash in between loses nothing: the operator says it again.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from bettong_engine.core.ids import sink_home, stream_partition
from bettong_engine.core.output_log import OutputLog
from bettong_engine.core.partition import Partition


def copy_renamed(partitions: Sequence[Partition], renames: Mapping[str, str]) -> None:
    """Copy what is stored under old names to new ones, where those live."""
    count = len(partitions)
    for partition in partitions:
        for old, new in renames.items():
            partition.copy_stage(old, new)
        for (source, stream), state in list(partition.streams.items()):
            if source in renames:
                new = renames[source]
                home = partitions[stream_partition(new, stream, count)]
                home.streams[new, stream] = replace(state, source=new)
        for (sink, place), log in list(partition.logs.items()):
            delta = log.snapshot()
            if sink in renames and delta is not None:
                new = renames[sink]
                delta.sink = new
                copy = OutputLog(new, place)
                copy.restore(delta)
                partitions[sink_home(new, place, count)].logs[new, place] = copy


def drop_names(partitions: Sequence[Partition], names: frozenset[str]) -> None:
    """Drop what is stored under these names."""
    for partition in partitions:
        partition.drop_names(names)
