"""Names of the numbers and ids that the machines pass around, and how keys route."""

from typing import NewType
from zlib import crc32

WorkerId = NewType("WorkerId", str)
# Random id of one start of a worker, 16 bytes. A restarted worker is a new replica.
Incarnation = NewType("Incarnation", bytes)
# One data stream of one plugin process, numbered by the worker, never reused.
InstanceId = NewType("InstanceId", int)

PartitionId = NewType("PartitionId", int)
Epoch = NewType("Epoch", int)
Generation = NewType("Generation", int)
Term = NewType("Term", int)

# The watermark of an input that has ended for good: later than any event time.
WATERMARK_END_US = 2**63 - 1


def partition_of(key: bytes, partitions: int) -> PartitionId:
    """Return the partition that owns a key. CRC-32/IEEE, in every language."""
    return PartitionId(crc32(key) % partitions)


def stream_partition(source: str, stream: str, partitions: int) -> PartitionId:
    """Return the partition that holds the position of a source stream."""
    return partition_of(f"stream/{source}/{stream}".encode(), partitions)


def sink_home(sink: str, sink_partition: int, partitions: int) -> PartitionId:
    """Return the partition that holds the output log of a sink partition."""
    return partition_of(f"sink/{sink}/{sink_partition}".encode(), partitions)
