"""The TCP source, with real clients over loopback."""

import logging
import socket
import time
from collections.abc import Iterator
from contextlib import closing

import pytest
from tests.contract.source_driver import (
    next_read,
    next_streams,
    read_to_end,
    records_of,
    take,
)

import bettong as bt
from bettong_connectors.address import parse_address


@pytest.fixture
def source() -> Iterator[bt.TcpSource]:
    source = bt.TcpSource("127.0.0.1:0", record_bytes_max=1000, connections_max=8)
    source.start()
    yield source
    source.stop()


def connect(source: bt.TcpSource) -> socket.socket:
    return socket.create_connection(parse_address(source.address), timeout=20)


def open_one(source: bt.TcpSource) -> bt.Reader:
    return source.open(next_streams(source, 1)[0], None)


def is_disconnected(client: socket.socket) -> bool:
    try:
        return client.recv(1) == b""
    except ConnectionResetError:
        return True


def test_lines_of_a_client_arrive_in_order_until_it_ends(source: bt.TcpSource) -> None:
    with connect(source) as client:
        reader = open_one(source)
        client.sendall(b"one\ntwo\nthr")
        assert take(source, reader, 2) == ["one", "two"]
        client.sendall(b"ee\nlast")

    reads = read_to_end(source, reader)

    assert records_of(reads) == ["three", "last"]
    assert reads[-1].position == len(b"one\ntwo\nthree\nlast").to_bytes(8, "big")


def test_frames_with_lengths_may_hold_anything() -> None:
    source = bt.TcpSource("127.0.0.1:0", framing="length4", codec=bt.raw_bytes)
    source.start()
    with closing(connect(source)) as client:
        client.sendall(b"\0\0\0\3a\nb\0\0\0\0\0\0\0\1\xff")
        reader = open_one(source)
        assert take(source, reader, 3) == [b"a\nb", b"", b"\xff"]
    source.stop()


def test_stream_is_named_until_its_reader_is_closed(source: bt.TcpSource) -> None:
    with connect(source) as client:
        client.sendall(b"one\n")
    reader = open_one(source)
    read_to_end(source, reader)

    assert len(source.streams()[0]) == 1
    assert not source.streams()[1]
    reader.close()
    assert source.streams() == ([], False)


def test_streams_of_two_starts_have_different_ids() -> None:
    ids: set[str] = set()
    for _ in range(2):
        source = bt.TcpSource("127.0.0.1:0")
        source.start()
        with connect(source), connect(source):
            ids |= {stream.split("#")[1] for stream in next_streams(source, 2)}
        source.stop()

    assert len(ids) == 4


def test_connection_cannot_be_opened_at_another_place(source: bt.TcpSource) -> None:
    with connect(source) as client:
        client.sendall(b"one\n")
        stream = next_streams(source, 1)[0]
        reader = source.open(stream, None)
        read = next_read(source, reader)
        for position in (None, bytes(8), b"", b"x" * 17):
            with pytest.raises(bt.SourceError) as caught:
                source.open(stream, position)
            assert not caught.value.is_retryable

        assert source.open(stream, read.position) is reader
    reader.close()
    with pytest.raises(bt.SourceError, match="is gone and cannot be opened again"):
        source.open(stream, None)


@pytest.mark.parametrize(
    ("sent", "kept", "reason"),
    [
        (b"good\n" + b"x" * 2000, ["good"], "over the limit of 1000 bytes"),
        (b"good\n\xff\xfe\nmore\n", ["good"], "not UTF-8"),
        (b"\x16\x03\x01\x02\x00\x81\n", [], "not UTF-8"),
    ],
)
def test_client_with_a_faulty_record_is_disconnected_alone(
    source: bt.TcpSource,
    sent: bytes,
    kept: list[str],
    reason: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    with connect(source) as good, connect(source) as bad:
        streams = next_streams(source, 2)
        readers = {
            stream.split("#")[0]: source.open(stream, None) for stream in streams
        }
        peers = ["{}:{}".format(*client.getsockname()) for client in (good, bad)]
        bad.sendall(sent)

        with caplog.at_level(logging.ERROR):
            reads = read_to_end(source, readers[peers[1]])
        assert is_disconnected(bad)
        good.sendall(b"still here\n")
        rest = take(source, readers[peers[0]], 1)

    assert records_of(reads) == kept
    assert rest == ["still here"]
    assert reason in caplog.text
    assert peers[1] in caplog.text
    assert f"at byte {len(kept) * 5}" in caplog.text


def test_frame_that_is_cut_off_is_logged_and_no_record(
    caplog: pytest.LogCaptureFixture,
) -> None:
    source = bt.TcpSource("127.0.0.1:0", framing="length4")
    source.start()
    with connect(source) as client:
        client.sendall(b"\0\0\0\1a\0\0\0\5bc")
    reads = read_to_end(source, open_one(source))
    source.stop()

    assert records_of(reads) == ["a"]
    assert reads[-1].position == bytes([0] * 7 + [5])
    assert "ends inside a record" in caplog.text


def test_connection_reset_keeps_what_was_whole(
    source: bt.TcpSource, caplog: pytest.LogCaptureFixture
) -> None:
    client = connect(source)
    client.sendall(b"one\ntw")
    reader = open_one(source)
    first = take(source, reader, 1)
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    client.close()

    rest = read_to_end(source, reader)

    assert first == ["one"]
    assert (records_of(rest), rest[-1].position) == ([], bytes([0] * 7 + [4]))
    assert "reset by peer; unfinished: 2 bytes" in caplog.text


def test_clients_over_the_limit_wait_their_turn(
    source: bt.TcpSource, caplog: pytest.LogCaptureFixture
) -> None:
    clients = [connect(source) for _ in range(10)]
    for number, client in enumerate(clients):
        client.sendall(b"%d\n" % number)
        client.shutdown(socket.SHUT_WR)
    got: list[str] = []

    while len(got) < len(clients):
        streams = source.streams()[0]
        assert 0 < len(streams) <= 8
        reader = source.open(streams[0], None)
        got += records_of(read_to_end(source, reader))
        reader.close()

    assert sorted(got) == [str(number) for number in range(10)]
    assert "8 are open, which is connections_max" in caplog.text
    for client in clients:
        client.close()


def test_many_clients_are_read_side_by_side() -> None:
    source = bt.TcpSource("127.0.0.1:0")
    source.start()
    clients = [connect(source) for _ in range(100)]
    readers = [source.open(stream, None) for stream in next_streams(source, 100)]
    for number, client in enumerate(clients):
        client.sendall(b"".join(b"%d.%d\n" % (number, line) for line in range(20)))
        client.close()

    got = [records_of(read_to_end(source, reader)) for reader in readers]
    source.stop()

    assert sorted(got, key=lambda lines: int(lines[0].split(".")[0])) == [
        [f"{number}.{line}" for line in range(20)] for number in range(100)
    ]


def send_until_full(client: socket.socket, block: bytes) -> int:
    """Return how many bytes went out before the buffers between were full."""
    sent = 0
    while sent < 100_000_000:
        try:
            sent += client.send(block[sent % len(block) :])
        except BlockingIOError:
            break
    return sent


def test_client_is_slowed_down_when_nobody_reads(source: bt.TcpSource) -> None:
    line = b"x" * 999 + b"\n"
    with connect(source) as client:
        reader = open_one(source)
        client.setblocking(False)
        sent = send_until_full(client, line * 1000)
        assert sent < 100_000_000

        read = next_read(source, reader)
        assert len(read.records) <= 1000
        client.setblocking(True)
        client.sendall(line[sent % 1000 :])
        client.shutdown(socket.SHUT_WR)
        count = len(read.records) + len(records_of(read_to_end(source, reader)))

    assert count == sent // 1000 + 1


def test_wait_is_ended_by_data_and_by_a_client(source: bt.TcpSource) -> None:
    began_at = time.monotonic()
    with connect(source) as client:
        source.wait(60)
        reader = open_one(source)
        assert reader.read() is None
        client.sendall(b"one\n")
        source.wait(60)
        assert take(source, reader, 1) == ["one"]

    assert time.monotonic() - began_at < 30


def test_data_that_nobody_reads_ends_one_wait_only(source: bt.TcpSource) -> None:
    with connect(source) as client:
        reader = open_one(source)
        assert reader.read() is None
        client.sendall(b"one\n")
        source.wait(60)
        began_at = time.monotonic()

        source.wait(0.05)

        assert time.monotonic() - began_at >= 0.05
        assert take(source, reader, 1) == ["one"]


def test_address_in_use_is_named_with_what_to_do(source: bt.TcpSource) -> None:
    with pytest.raises(
        bt.SourceError, match=rf"{source.address}: Address already in use; another"
    ) as caught:
        bt.TcpSource(source.address).start()

    assert caught.value.is_retryable


def test_port_is_free_again_after_stop(source: bt.TcpSource) -> None:
    with connect(source) as client:
        open_one(source)
        address = source.address
        source.stop()
        assert is_disconnected(client)

    source.start()
    assert source.address == address


def test_ipv6_is_served() -> None:
    source = bt.TcpSource("[::1]:0")
    source.start()
    with connect(source) as client:
        client.sendall(b"six\n")
        stream = next_streams(source, 1)[0]
        assert take(source, source.open(stream, None), 1) == ["six"]
    source.stop()

    assert stream.startswith("[::1]:")


@pytest.mark.parametrize(
    "address", ["", "7000", "localhost", "host:", ":7000", "h:x", "h:70000", "::1:70"]
)
def test_address_that_is_none_is_refused_when_the_program_is_built(
    address: str,
) -> None:
    with pytest.raises(bt.GraphError):
        bt.TcpSource(address)
