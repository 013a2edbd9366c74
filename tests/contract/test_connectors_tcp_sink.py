"""The TCP sink, with a real server over loopback."""

import socket
import threading
import time
from collections.abc import Iterator

import pytest
from tests.contract.source_driver import DEADLINE_S

import bettong as bt

FENCE = bt.Fence(b"h" * 16, 1)


@pytest.fixture
def server() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(DEADLINE_S)
        yield server


def address_of(server: socket.socket) -> str:
    return f"127.0.0.1:{server.getsockname()[1]}"


def open_to(server: socket.socket, sink: bt.TcpSink) -> tuple[bt.Writer, socket.socket]:
    writer, position = sink.open(0, FENCE)
    assert position is bt.UNKNOWN
    connection, _ = server.accept()
    connection.settimeout(DEADLINE_S)
    return writer, connection


def received(connection: socket.socket) -> bytes:
    return b"".join(iter(lambda: connection.recv(65536), b""))


@pytest.mark.parametrize(
    ("framing", "sequence", "expected"),
    [
        ("lines", False, b"apple\n\nfig\n"),
        ("lines", True, b"9\tapple\n10\t\n11\tfig\n"),
        ("length4", False, b"\0\0\0\5apple\0\0\0\0\0\0\0\3fig"),
        (
            "length4",
            True,
            b"\0\0\0\x0d\0\0\0\0\0\0\0\x09apple"
            b"\0\0\0\x08\0\0\0\0\0\0\0\x0a"
            b"\0\0\0\x0b\0\0\0\0\0\0\0\x0bfig",
        ),
    ],
)
def test_outputs_are_framed(
    server: socket.socket, framing: str, sequence: bool, expected: bytes
) -> None:
    sink = bt.TcpSink(
        address_of(server),
        framing=framing,  # type: ignore[arg-type]
        sequence=sequence,
    )
    writer, connection = open_to(server, sink)

    writer.write(9, sink.codec.encode_many(["apple", b""]))
    writer.write(11, sink.codec.encode_many(["fig"]))
    durable = writer.flush()
    writer.close()

    assert received(connection) == expected
    assert durable == 11
    assert sink.guarantee is bt.Guarantee.AT_LEAST_ONCE
    connection.close()


def test_what_a_tcp_source_takes_apart_is_what_was_written() -> None:
    source = bt.TcpSource("127.0.0.1:0", framing="length4")
    source.start()
    sink = bt.TcpSink(source.address, framing="length4")
    writer, _ = sink.open(0, FENCE)
    values = [f"{number}\n" * (number % 50) for number in range(5000)]

    writer.write(1, sink.codec.encode_many(values))
    writer.close()
    source.wait(DEADLINE_S)
    reader = source.open(source.streams()[0][0], None)
    got: list[str] = []
    while not (read := reader.read()) or not read.end:
        got += read.records if read else []
    source.stop()

    assert got == values


def test_skipped_output_is_passed_over(server: socket.socket) -> None:
    writer, connection = open_to(server, bt.TcpSink(address_of(server)))

    writer.write(1, [b"a"])
    writer.skip(2)
    assert writer.flush() == 2
    writer.close()

    assert received(connection) == b"a\n"
    connection.close()


def test_server_that_is_not_there_is_tried_again(server: socket.socket) -> None:
    sink = bt.TcpSink(address_of(server))
    server.close()

    with pytest.raises(bt.SinkError, match=r"cannot connect to .*running") as caught:
        sink.open(0, FENCE)

    assert caught.value.is_retryable


def test_closed_server_is_noticed_before_outputs_count_as_durable(
    server: socket.socket,
) -> None:
    writer, connection = open_to(server, bt.TcpSink(address_of(server)))
    connection.shutdown(socket.SHUT_WR)
    writer.write(1, [b"a"])

    with pytest.raises(bt.SinkError, match="closed the connection") as caught:
        writer.flush()
    assert caught.value.is_retryable
    with pytest.raises(bt.SinkError, match="broke"):
        writer.write(2, [b"b"])
    with pytest.raises(bt.SinkError, match="broke"):
        writer.flush()
    writer.close()
    connection.close()


def test_what_the_server_says_is_ignored(server: socket.socket) -> None:
    writer, connection = open_to(server, bt.TcpSink(address_of(server)))
    connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")
    writer.write(1, [b"a"])

    assert writer.flush() == 1
    assert writer.flush() == 1
    connection.sendall(b"x" * 500_000)
    writer.write(2, [b"b"])
    writer.close()

    assert received(connection) == b"a\nb\n"
    connection.close()


def test_server_that_does_not_read_is_given_up(server: socket.socket) -> None:
    sink = bt.TcpSink(address_of(server), timeout_s=0.2)
    writer, connection = open_to(server, sink)
    began_at = time.monotonic()

    # More than any buffers between hold.
    records = [b"x" * 1_000_000] * 100
    with pytest.raises(bt.SinkError, match=r"has not read for 0\.2 s") as caught:
        writer.write(1, records)

    assert caught.value.is_retryable
    assert time.monotonic() - began_at < DEADLINE_S
    writer.close()
    connection.close()


def test_slow_server_gets_everything(server: socket.socket) -> None:
    """The writer waits while buffers are full; the server reads a bit at a time."""
    writer, connection = open_to(server, bt.TcpSink(address_of(server)))
    block = [b"x" * 999] * 1000
    parts: list[bytes] = []

    def read_slowly() -> None:
        while part := connection.recv(4096):
            parts.append(part)

    reader = threading.Thread(target=read_slowly)
    reader.start()
    for first_sequence in range(1, 20_001, 1000):
        writer.write(first_sequence, block)
    durable = writer.flush()
    writer.close()
    reader.join(DEADLINE_S)
    connection.close()

    assert durable == 20_000
    assert b"".join(parts) == (b"x" * 999 + b"\n") * 20_000
