"""Receives totals from the pipeline and writes each to a file once, as text.

python receiver.py ADDRESS OUTPUT

The sink may send outputs again, with the numbers that they had: those are dropped.
"""

import socket
import struct
import sys
from pathlib import Path
from typing import BinaryIO, TextIO

LENGTH = struct.Struct(">I")
# Number of the output, the letter, its total.
TOTAL = struct.Struct(">Q1sQ")


def receive(stream: BinaryIO, output: TextIO, last: int) -> int:
    """Write what comes on one connection; return the number of the last output."""
    while header := stream.read(LENGTH.size):
        body = stream.read(LENGTH.unpack(header)[0])
        if len(body) < TOTAL.size:
            break  # Cut off inside a record; it comes again.
        number, letter, votes = TOTAL.unpack(body)
        if number > last + 1:
            sys.exit(f"outputs {last + 1} to {number - 1} are missing")
        if number == last + 1:
            output.write(f"{letter.decode()} {votes}\n")
            output.flush()
            last = number
    return last


def main() -> None:
    """Take one connection after the other, for ever."""
    host, port = sys.argv[1].rsplit(":", 1)
    last = 0
    with (
        Path(sys.argv[2]).open("w") as output,
        socket.create_server((host, int(port))) as server,
    ):
        # With port 0 the system has chosen one.
        print(f"listening on {host}:{server.getsockname()[1]}", flush=True)
        while True:
            connection, _ = server.accept()
            with connection, connection.makefile("rb") as stream:
                last = receive(stream, output, last)


if __name__ == "__main__":
    main()
