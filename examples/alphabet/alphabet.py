"""Counts the votes for each letter, from and to framed TCP.

bettong run alphabet.py [LISTEN_ADDRESS [RECEIVER_ADDRESS]]
"""

import struct
import sys
from dataclasses import dataclass

import bettong as bt

LISTEN = sys.argv[1] if len(sys.argv) > 1 else "127.0.0.1:7010"
RECEIVER = sys.argv[2] if len(sys.argv) > 2 else "127.0.0.1:7011"
# Big-endian: a letter and its votes; a letter and its total.
VOTES = struct.Struct(">1sI")
TOTAL = struct.Struct(">1sQ")


@dataclass
class Total:
    """All votes for a letter."""

    votes: int = 0


def add(letter: bytes, record: tuple[bytes, int], state: Total) -> bytes:
    """Add the votes of a record; return the new total."""
    state.votes += record[1]
    return TOTAL.pack(letter, state.votes)


app = bt.App("alphabet")
(
    app.source("votes", bt.TcpSource(LISTEN, framing="length4", codec=bt.raw_bytes))
    .map(VOTES.unpack, codec=bt.msgpack(tuple[bytes, int]))
    .key_by(lambda record: record[0], key=bytes)
    .stateful(add, state=Total)
    .sink("totals", bt.TcpSink(RECEIVER, framing="length4", sequence=True))
)

if __name__ == "__main__":
    app.run()
