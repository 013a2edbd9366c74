"""Packs the deltas of an epoch into one row, and seals rows against damage.

Instead of a row a partition, with an index to find it by: a third of the CPU and a
fifth of the bytes for an epoch of 64 small deltas (bench/store_commit.py).

A head is one entry a delta, little-endian: partition u32, generation u64, length of
the body u32, CRC-32 of the body u32, digest (its length u8, 16 bytes). The body of
the row is the bodies one after the other. A seal is 8 bytes of BLAKE2b over a row,
the CRC of its body in place of the body; seals of all rows add up to a number that
is kept apart, so that a row can neither change nor vanish unseen.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from struct import Struct
from zlib import crc32

from bettong_engine.core.delta import DIGEST_BYTES, StoredDelta
from bettong_engine.core.ids import Epoch, Generation, PartitionId

SEAL_BYTES = 8
_SEALS = 1 << 64

_ENTRY = Struct(f"<IQII{DIGEST_BYTES + 1}p")
_LENGTH = Struct("<I")


@dataclass(frozen=True, slots=True)
class Entry:
    """What a head says of one delta. begin: of its body in the row's."""

    partition: int
    generation: int
    begin: int
    length: int
    crc: int
    digest: bytes

    def is_intact(self, body: bytes) -> bool:
        """Tell whether these are the bytes that were written."""
        return len(body) == self.length and crc32(body) == self.crc

    def delta(self, epoch: int, body: bytes) -> StoredDelta:
        """Return the delta that this was made of."""
        return StoredDelta(
            PartitionId(self.partition),
            Epoch(epoch),
            Generation(self.generation),
            self.digest,
            body,
        )


def pack(deltas: Sequence[StoredDelta]) -> tuple[bytes, bytes]:
    """Return the head and the body of a row."""
    head = b"".join(
        _ENTRY.pack(
            delta.partition,
            delta.generation,
            len(delta.body),
            crc32(delta.body),
            delta.digest,
        )
        for delta in deltas
    )
    return head, b"".join(delta.body for delta in deltas)


def unpack_head(head: bytes) -> list[Entry]:
    """Return the entries of a head. Raises struct.error if it is not one."""
    entries = []
    begin = 0
    for partition, generation, length, crc, digest in _ENTRY.iter_unpack(head):
        entries.append(Entry(partition, generation, begin, length, crc, digest))
        begin += length
    return entries


def repack(entries: Sequence[Entry], body: bytes) -> tuple[bytes, bytes]:
    """Return the head and the body of a row that keeps only these of its deltas."""
    head = b"".join(
        _ENTRY.pack(e.partition, e.generation, e.length, e.crc, e.digest)
        for e in entries
    )
    return head, b"".join(body[e.begin : e.begin + e.length] for e in entries)


def seal(kind: str, *parts: bytes | str | int) -> bytes:
    """Return the seal of a row: of what it is, and of its columns in order."""
    state = blake2b(digest_size=SEAL_BYTES, person=kind.encode())
    for part in parts:
        if isinstance(part, int):
            part = part.to_bytes(8, "little", signed=True)
        elif isinstance(part, str):
            part = part.encode()
        state.update(_LENGTH.pack(len(part)))
        state.update(part)
    return state.digest()


def sum_seals(
    total: int, *, added: Iterable[bytes] = (), removed: Iterable[bytes] = ()
) -> int:
    """Return the sum over a table that has changed; the order does not matter."""
    for value in added:
        total += int.from_bytes(value, "little")
    for value in removed:
        total -= int.from_bytes(value, "little")
    return total % _SEALS
