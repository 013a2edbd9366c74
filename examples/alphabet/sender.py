"""Sends votes, a letter and a number a line, as length-framed records.

python sender.py ADDRESS VOTES
"""

import socket
import struct
import sys
from pathlib import Path

# Length of what follows, the letter, its votes.
FRAME = struct.Struct(">I1sI")


def main() -> None:
    """Send a file, and wait until the other side has read it."""
    host, port = sys.argv[1].rsplit(":", 1)
    rows = [line.split() for line in Path(sys.argv[2]).read_text().splitlines()]
    with socket.create_connection((host, int(port))) as connection:
        for letter, votes in rows:
            connection.sendall(FRAME.pack(5, letter.encode(), int(votes)))
        connection.shutdown(socket.SHUT_WR)
        # The source closes its side when it has come to the end.
        connection.recv(1)
    print(f"{len(rows)} votes sent")


if __name__ == "__main__":
    main()
