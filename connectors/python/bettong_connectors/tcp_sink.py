"""Sends outputs to a TCP server, at least once.

TCP has no way to ask a receiver what it has processed. So an output counts as durable
when the kernel has taken it for a connection that the receiver has not closed:
outputs on their way when the receiver or its host dies may be lost, and after a
reconnect some are sent again. With `sequence=True` each output carries its number,
by which a receiver drops repetitions and sees gaps.
"""

import contextlib
import socket
from collections.abc import Sequence

from bettong.connector import (
    UNKNOWN,
    Fence,
    Guarantee,
    Sink,
    SinkPosition,
    Unknown,
    Writer,
)
from bettong.errors import SinkError
from bettong_connectors.address import parse_address
from bettong_connectors.framing import Framing, join
from bettong_connectors.text_or_bytes import TextOrBytesCodec

_IGNORED_BYTES = 64 * 1024
_IGNORED_READS_MAX = 64


class TcpSink(Sink):
    r"""Outputs, str or bytes, to one TCP server.

    Args:
        address: of the server, "127.0.0.1:7001".
        framing: "lines" or "length4" (4 bytes big-endian, then so many bytes).
        sequence: put the number of the output before it: in decimal with a tab
            behind ("lines": `17\tapple`), or as 8 bytes big-endian inside the frame
            ("length4").
        timeout_s: how long to wait for a connection, and for a server that does not
            read. Then it is an error, and the runner connects anew.

    What the server sends is ignored. When it closes its side, the sink reconnects.
    """

    partitions = 1
    guarantee = Guarantee.AT_LEAST_ONCE
    takes_bytes = True

    def __init__(
        self,
        address: str,
        *,
        framing: Framing = "lines",
        sequence: bool = False,
        timeout_s: float = 10.0,
    ) -> None:
        self._host, self._port = parse_address(address)
        self._address = address
        self.codec = TextOrBytesCodec(framing)
        self._framing = framing
        self._has_sequence = sequence
        self._timeout_s = timeout_s

    def open(
        self, partition: int, fence: Fence
    ) -> tuple[Writer, SinkPosition | Unknown]:
        """Connect. The server cannot say what it has, nor shut out an older writer."""
        try:
            connection = socket.create_connection(
                (self._host, self._port), timeout=self._timeout_s
            )
        except OSError as error:
            raise SinkError(
                f"cannot connect to {self._address}: {error.strerror or error}; is"
                f" the server running? For a look: `nc -lk {self._port}`"
            ) from error
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        return _TcpWriter(self, connection), UNKNOWN


class _TcpWriter(Writer):
    """One connection. An error ends it.

    The server may then hold half a record, and only a new connection begins cleanly.
    """

    def __init__(self, sink: TcpSink, connection: socket.socket) -> None:
        self._address = sink._address
        self._framing = sink._framing
        self._has_sequence = sink._has_sequence
        self._timeout_s = sink._timeout_s
        self._socket = connection
        self._sequence = 0

    def write(self, first_sequence: int, records: Sequence[bytes]) -> None:
        """Hand the outputs to the kernel; waits while the server does not read."""
        if self._has_sequence:
            records = self._numbered(first_sequence, records)
        try:
            self._socket.sendall(join(self._framing, records))
        except TimeoutError as error:
            self._socket.close()
            raise SinkError(
                f"{self._address} has not read for {self._timeout_s:g} s"
            ) from error
        except OSError as error:
            raise self._broken(error) from error
        self._sequence = first_sequence + len(records) - 1

    def flush(self) -> int:
        """Check that the server is still there; all was sent by `write`."""
        try:
            self._socket.settimeout(0)
            is_closed = not self._socket.recv(_IGNORED_BYTES)
        except BlockingIOError:
            is_closed = False
        except OSError as error:
            raise self._broken(error) from error
        if is_closed:
            self._socket.close()
            raise SinkError(
                f"{self._address} closed the connection; outputs since the last"
                " flush are sent again"
            )
        self._socket.settimeout(self._timeout_s)
        return self._sequence

    def skip(self, sequence: int) -> None:
        """Move on; TCP servers refuse nothing, so this is for completeness."""
        self._sequence = sequence

    def close(self) -> None:
        """Disconnect; what the kernel has is still sent.

        Unread input would make the kernel reset the connection instead, and the
        server lose what it has not read yet.
        """
        with contextlib.suppress(OSError):
            self._socket.settimeout(0)
            self._socket.shutdown(socket.SHUT_WR)
            for _ in range(_IGNORED_READS_MAX):
                if not self._socket.recv(_IGNORED_BYTES):
                    break
        self._socket.close()

    def _numbered(
        self, first_sequence: int, records: Sequence[bytes]
    ) -> Sequence[bytes]:
        numbered = enumerate(records, first_sequence)
        if self._framing == "lines":
            return [b"%d\t%b" % pair for pair in numbered]
        return [number.to_bytes(8, "big") + record for number, record in numbered]

    def _broken(self, error: OSError) -> SinkError:
        self._socket.close()
        return SinkError(
            f"the connection to {self._address} broke: {error.strerror or error}"
        )
