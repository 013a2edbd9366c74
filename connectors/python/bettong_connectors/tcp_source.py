"""Listens on a TCP port: each client that connects is a stream of records.

A connection cannot be read twice. So what a client sent is processed exactly once
while this process lives; if the process dies, what was read and not yet committed is
gone with the connection, and the client has to connect and send it again.

Whoever reaches the port may send: listen on 127.0.0.1 or in a private network.
"""

import errno
import logging
import os
import secrets
import selectors
import socket
from collections.abc import Sequence

from bettong.codec import Codec
from bettong.codecs import text
from bettong.connector import Read, Reader, Source, StreamKind
from bettong.errors import SourceError
from bettong_connectors.address import family_of, format_address, parse_address
from bettong_connectors.framing import (
    RECORD_BYTES_MAX,
    Framing,
    FramingError,
    check_framing,
    new_decoder,
)

_log = logging.getLogger(__name__)

_RECEIVE_BYTES = 256 * 1024
_BACKLOG = 128
_POSITION_BYTES = 8


class TcpSource(Source):
    """Records from any number of clients, by lines or 4-byte lengths.

    Args:
        address: where to listen, "127.0.0.1:7000"; port 0 takes any free one, which
            `address` tells once started.
        framing: "lines" or "length4" (4 bytes big-endian, then so many bytes).
        codec: what the bytes of a record become: `text`, `raw_bytes`, `json` …
        record_bytes_max: a client that sends a larger record is disconnected; what
            it sent before is kept. So is one whose records `codec` cannot read.
        connections_max: further clients wait until one has gone.

    A client that sends faster than the pipeline takes is slowed down by TCP: no more
    than one read is buffered here.
    """

    kind = StreamKind.LOCAL

    def __init__(
        self,
        address: str,
        *,
        framing: Framing = "lines",
        codec: Codec = text,
        record_bytes_max: int = RECORD_BYTES_MAX,
        connections_max: int = 1024,
    ) -> None:
        check_framing(framing)
        self._host, self._port = parse_address(address)
        self.codec = codec
        self._framing = framing
        self._record_bytes_max = record_bytes_max
        self._connections_max = connections_max
        self._connections: dict[str, _Connection] = {}
        self._is_accepting = False
        self._accepted = 0
        # Connections of two starts never have the same id, even from one port.
        self._start_id = ""

    @property
    def address(self) -> str:
        """Where it listens; with port 0, known once started."""
        return format_address(self._host, self._port)

    def start(self) -> None:
        """Bind and listen."""
        try:
            self._listener = socket.create_server(
                (self._host, self._port),
                family=family_of(self._host),
                backlog=_BACKLOG,
            )
        except OSError as error:
            raise SourceError(_listen_problem(self.address, error)) from error
        self._listener.setblocking(False)
        self._port = self._listener.getsockname()[1]
        self._start_id = secrets.token_hex(4)
        self._selector = selectors.DefaultSelector()
        self._resume_accepting()
        _log.info("listening on %s", self.address)

    def streams(self) -> tuple[Sequence[str], bool]:
        """Return the open connections; there may always come more."""
        self._accept()
        return list(self._connections), False

    def open(self, stream: str, position: bytes | None) -> Reader:
        """Return the reader of a connection that is still open."""
        if position is not None and len(position) != _POSITION_BYTES:
            raise SourceError(
                f"{stream}: {len(position)} bytes are no position of a TCP source",
                is_retryable=False,
            )
        connection = self._connections.get(stream)
        if connection is None:
            raise SourceError(
                f"the connection {stream} is gone and cannot be opened again; its"
                " client has to connect anew",
                is_retryable=False,
            )
        if (position or bytes(_POSITION_BYTES)) != connection.position():
            raise SourceError(
                f"the connection {stream} cannot go back: what was read of it since"
                " then is gone",
                is_retryable=False,
            )
        return connection

    def wait(self, timeout_s: float) -> None:
        """Return when an idle connection has data or a client connects."""
        for key, _ in self._selector.select(timeout_s):
            if key.data is None:
                self._accept()
            else:
                # Watched again after a read that found nothing: else one that
                # nobody reads for want of credit would end every wait at once.
                key.data.unwatch()

    def stop(self) -> None:
        """Close the port and all connections."""
        connections = list(self._connections.values())
        self._connections.clear()
        for connection in connections:
            connection.close()
        self._selector.close()
        self._listener.close()

    def _accept(self) -> None:
        """Accept the clients that wait, up to the limit."""
        while len(self._connections) < self._connections_max:
            try:
                client, peer = self._listener.accept()
            except BlockingIOError:
                self._resume_accepting()
                return
            except ConnectionAbortedError:
                continue
            except OSError as error:
                self._pause_accepting(f"{error.strerror or error}; further ones wait")
                return
            client.setblocking(False)
            client.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            self._accepted += 1
            stream = f"{format_address(*peer[:2])}#{self._start_id}-{self._accepted}"
            self._connections[stream] = _Connection(self, stream, client)
        self._pause_accepting(
            f"{self._connections_max} are open, which is connections_max; further"
            " ones wait until one has gone"
        )

    def _pause_accepting(self, reason: str) -> None:
        if self._is_accepting:
            self._is_accepting = False
            self._selector.unregister(self._listener)
            _log.warning("%s takes no more connections: %s", self.address, reason)

    def _resume_accepting(self) -> None:
        if not self._is_accepting:
            self._is_accepting = True
            self._selector.register(self._listener, selectors.EVENT_READ)


class _Connection(Reader):
    """One client. The position is the count of bytes taken, 8 bytes big-endian."""

    def __init__(self, source: TcpSource, stream: str, client: socket.socket) -> None:
        self._source = source
        self._stream = stream
        self._socket = client
        self._decoder = new_decoder(
            source._framing, source.codec, source._record_bytes_max
        )
        self._has_ended = False
        self._is_watched = False

    def position(self) -> bytes:
        return self._decoder.offset.to_bytes(_POSITION_BYTES, "big")

    def read(self) -> Read | None:
        """Return what has arrived; a faulty record ends this connection only."""
        if self._has_ended:
            return self._end("")
        try:
            records = self._decoder.take()
            while not records:
                data = self._socket.recv(_RECEIVE_BYTES)
                if not data:
                    last = self._decoder.take_last()
                    self._has_ended = True
                    self._disconnect()
                    return Read(last, self.position(), end=True)
                self._decoder.feed(data)
                records = self._decoder.take()
        except BlockingIOError:
            self._watch()
            return None
        except FramingError as error:
            return self._end(f"{error} (at byte {error.offset} of the connection)")
        except OSError as error:
            lost = self._decoder.buffered_bytes()
            return self._end(f"{error.strerror or error}; unfinished: {lost} bytes")
        return Read(records, self.position())

    def committed(self, position: bytes) -> None:
        """Do nothing: a TCP client is not told."""

    def close(self) -> None:
        """Disconnect and forget the client."""
        self._disconnect()
        if self._source._connections.pop(self._stream, None) is not None:
            self._source._accept()

    def unwatch(self) -> None:
        """Let no data of this client end a wait."""
        if self._is_watched:
            self._is_watched = False
            self._source._selector.unregister(self._socket)

    def _watch(self) -> None:
        if not self._is_watched:
            self._is_watched = True
            self._source._selector.register(self._socket, selectors.EVENT_READ, self)

    def _disconnect(self) -> None:
        self.unwatch()
        self._socket.close()

    def _end(self, trouble: str) -> Read:
        """End the stream after the records before the trouble."""
        if not self._has_ended:
            self._has_ended = True
            self._disconnect()
            _log.error("connection %s closed: %s", self._stream, trouble)
        return Read((), self.position(), end=True)


def _listen_problem(address: str, error: OSError) -> str:
    what_to_do = {
        errno.EADDRINUSE: "another process listens there; end it or choose another"
        " port (`ss -ltnp` shows which process)",
        errno.EADDRNOTAVAIL: "this machine does not have that address; 0.0.0.0 means"
        " all that it has",
        errno.EACCES: "ports below 1024 need rights; choose one above",
    }.get(error.errno or 0, "check the address")
    reason = os.strerror(error.errno) if error.errno else error
    return f"cannot listen on {address}: {reason}; {what_to_do}"
