"""Strangers at the door: each is told why, and the pipeline never notices."""

import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from tests.e2e.bad_plugin import EndOfStreamError, Peer
from tests.e2e.raw_roles import APPLICATION
from tests.e2e.tail_pipeline import TOKEN, TailPipeline
from tests.e2e.yard import Yard

from bettong_proto.plugin.v1 import (
    application_pb2,
    compute_pb2,
    control_pb2,
    error_pb2,
    sink_pb2,
    source_pb2,
)

pytestmark = pytest.mark.e2e

HELLO_TIMEOUT_MS = 1_500
CONNECTIONS = 100


@pytest.fixture(scope="module", params=["unix", "tcp"])
def good(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[TailPipeline]:
    yard = Yard(tmp_path_factory.mktemp(request.param))
    listen = "127.0.0.1:0" if request.param == "tcp" else ""
    try:
        pipeline = TailPipeline(
            yard, listen=listen, limits=f"hello_timeout_ms = {HELLO_TIMEOUT_MS}"
        )
        yield pipeline
        engine = pipeline.engine
        assert "Traceback" not in engine.log(), engine
        assert "exception" not in engine.log(), engine
    finally:
        yard.close()


@pytest.fixture
def peer(good: TailPipeline) -> Iterator[Peer]:
    with Peer(good.address) as stranger:
        yield stranger
    good.proves_exact()


def connect(address: str) -> socket.socket:
    """Connect to the engine without a word."""
    if address.startswith("unix:"):
        plain = socket.socket(socket.AF_UNIX)
        plain.settimeout(10)
        plain.connect(address.removeprefix("unix:"))
        return plain
    host, _, port = address.rpartition(":")
    return socket.create_connection((host, int(port)), timeout=10)


def reject_of(answer: Any, peer: Peer) -> control_pb2.Reject:
    """Return the refusal, which is the last that the engine says."""
    assert answer.WhichOneof("message") == "reject"
    peer.control.ends()
    reject: control_pb2.Reject = answer.reject
    return reject


@pytest.mark.parametrize(
    "garbage",
    [
        b"GET / HTTP/1.1\r\nHost: bettong\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(range(256)),
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\xff" * 4096,
        os.urandom(1 << 16),
    ],
    ids=["http1", "tls", "torn-http2", "noise"],
)
def test_garbage_on_the_socket_is_hung_up_on(
    good: TailPipeline, garbage: bytes
) -> None:
    with connect(good.address) as stranger:
        try:
            stranger.sendall(garbage)
            while stranger.recv(4096):
                pass
        except (ConnectionResetError, BrokenPipeError):
            pass

    good.proves_exact()


def test_a_hundred_that_connect_and_say_nothing_are_hung_up_on(
    good: TailPipeline,
) -> None:
    silent = [connect(good.address) for _ in range(CONNECTIONS)]

    good.proves_exact()

    for stranger in silent:
        try:
            while stranger.recv(4096):
                pass
        except ConnectionResetError:
            pass
        stranger.close()
    good.proves_exact()


def test_garbage_inside_a_control_stream_ends_that_stream(
    good: TailPipeline, peer: Peer
) -> None:
    peer.control.send(b"\xff\xff\xff\xff no protobuf")

    peer.control.ends()

    assert good.engine.process.poll() is None


def test_session_that_says_no_hello_is_told_the_time_is_over(peer: Peer) -> None:
    begun = time.monotonic()

    reject = reject_of(peer.control.receive(), peer)

    assert reject.code == error_pb2.ERROR_CODE_HANDSHAKE_TIMEOUT
    assert time.monotonic() - begun >= HELLO_TIMEOUT_MS / 1000 * 0.9
    assert "Hello" in reject.remedy


def test_wrong_token_is_rejected_with_a_remedy(good: TailPipeline, peer: Peer) -> None:
    reject = reject_of(peer.hello("not the token"), peer)

    assert reject.code == error_pb2.ERROR_CODE_BAD_TOKEN
    assert "BETTONG_TOKEN" in reject.remedy
    assert "not the token" not in good.engine.log()
    good.engine.says("BAD_TOKEN")


@pytest.mark.parametrize(("low", "high"), [(2, 9), (0, 0)])
def test_wrong_version_is_told_the_engines(peer: Peer, low: int, high: int) -> None:
    answer = peer.hello(TOKEN, revision_min=low, revision_max=high)

    reject = reject_of(answer, peer)

    assert reject.code == error_pb2.ERROR_CODE_NO_COMMON_REVISION
    assert (reject.revision_min, reject.revision_max) == (1, 1)
    assert "install" in reject.remedy


def test_capability_that_the_engine_lacks_is_named(peer: Peer) -> None:
    answer = peer.hello(TOKEN, required_capabilities=["timers.v1", "telepathy.v1"])

    reject = reject_of(answer, peer)

    assert reject.code == error_pb2.ERROR_CODE_MISSING_CAPABILITY
    assert list(reject.missing_capabilities) == ["telepathy.v1"]
    assert reject.remedy


def test_limit_below_the_engines_is_named(peer: Peer) -> None:
    limits = control_pb2.Limits(record_bytes_max=1000)

    reject = reject_of(peer.hello(TOKEN, limits=limits), peer)

    assert reject.code == error_pb2.ERROR_CODE_UNSUPPORTED
    assert "record_bytes_max" in reject.message


def test_first_message_that_is_not_hello_is_rejected(peer: Peer) -> None:
    drained = control_pb2.ControlRequest(drained=control_pb2.Drained())
    peer.control.send(drained)

    reject = reject_of(peer.control.receive(), peer)

    assert reject.code == error_pb2.ERROR_CODE_PROTOCOL
    assert "Hello" in reject.remedy


def test_second_hello_ends_the_session_with_a_word(peer: Peer) -> None:
    assert peer.hello(TOKEN).HasField("welcome")
    hello = control_pb2.Hello(token=TOKEN.encode())
    peer.control.send(control_pb2.ControlRequest(hello=hello))

    error = peer.next_control().error

    assert error.code == error_pb2.ERROR_CODE_PROTOCOL
    assert error.error_class == error_pb2.ERROR_CLASS_PROTOCOL
    assert "Hello" in error.message
    peer.control.ends()


def test_same_process_that_dials_again_replaces_its_older_session(
    good: TailPipeline, peer: Peer
) -> None:
    incarnation = os.urandom(16)
    assert peer.hello(TOKEN, incarnation=incarnation).HasField("welcome")

    with Peer(good.address) as again:
        assert again.hello(TOKEN, incarnation=incarnation).HasField("welcome")
        error = peer.next_control().error

    assert error.code == error_pb2.ERROR_CODE_FENCED
    peer.control.ends()


@pytest.mark.parametrize(
    ("role", "fields"),
    [
        ("Source", {"source": "lines", "kind": 1}),
        ("Compute", {"stages": ["window"]}),
        ("Sink", {"sink": "windows"}),
    ],
)
@pytest.mark.parametrize("session_id", [b"", b"x" * 16], ids=["none", "wrong"])
def test_role_without_a_session_is_unauthenticated(
    peer: Peer, role: str, fields: dict[str, Any], session_id: bytes
) -> None:
    assert peer.hello(TOKEN).HasField("welcome")
    peer.session_id = session_id

    stream = peer.attach(role, **fields)

    assert stream.ends() is grpc.StatusCode.UNAUTHENTICATED


@pytest.mark.parametrize(
    ("role", "message"),
    [
        ("Source", source_pb2.SourceRequest(streams_found=source_pb2.StreamsFound())),
        ("Compute", compute_pb2.ComputeRequest(output=compute_pb2.StageOutput())),
        ("Sink", sink_pb2.SinkRequest(progress=sink_pb2.Progress(sequence=1))),
    ],
)
def test_data_stream_must_begin_with_its_attach(
    peer: Peer, role: str, message: Any
) -> None:
    assert peer.hello(TOKEN).HasField("welcome")

    stream = peer.open(role)
    stream.send(message)

    assert stream.ends() is grpc.StatusCode.FAILED_PRECONDITION


@pytest.mark.parametrize(
    ("role", "fields"),
    [
        ("Source", {"source": "no such name", "kind": 1}),
        ("Compute", {"stages": ["no such name"]}),
        ("Sink", {"sink": "no such name"}),
    ],
)
def test_unknown_name_is_told_on_control(
    peer: Peer, role: str, fields: dict[str, Any]
) -> None:
    assert peer.hello(TOKEN).HasField("welcome")
    peer.serve_control()

    peer.attach(role, **fields)

    error = peer.is_told()
    assert error.code == error_pb2.ERROR_CODE_UNKNOWN_NAME
    assert "no such name" in error.message


def test_other_kind_of_stream_is_told_on_control(peer: Peer) -> None:
    assert peer.hello(TOKEN).HasField("welcome")
    peer.serve_control()

    peer.attach("Source", source="lines", kind=application_pb2.STREAM_KIND_LOCAL)

    error = peer.is_told()
    assert error.code == error_pb2.ERROR_CODE_PROTOCOL
    assert "lines" in error.message


def test_other_application_is_refused(peer: Peer) -> None:
    assert peer.hello(TOKEN).HasField("welcome")

    reject = reject_of(peer.register(APPLICATION), peer)

    assert reject.code == error_pb2.ERROR_CODE_APPLICATION_CHANGED
    assert "'raw'" in reject.message


def test_control_message_of_another_revision_is_unsupported(peer: Peer) -> None:
    assert peer.hello(TOKEN).HasField("welcome")
    # Field 99, a string: a kind of message that this revision does not know.
    peer.control.send(b"\x9a\x06\x05hello")

    error = peer.next_control().error

    assert error.code == error_pb2.ERROR_CODE_UNSUPPORTED
    peer.control.ends()


def test_broken_application_is_invalid_before_anything_is_stored(
    tmp_path: Path, yard: Yard
) -> None:
    address = f"unix:{yard.mark}/engine.sock"
    engine = yard.engine(
        f"listen = {address!r}\ndata_dir = {str(tmp_path / 'new')!r}\n"
        f"tokens = [{TOKEN!r}]\n"
    )
    engine.says("engine_started")
    broken = application_pb2.Application(
        name="broken",
        sources=[
            application_pb2.Source(
                name="s", outputs=[application_pb2.Output(stage="nowhere")]
            )
        ],
    )

    with Peer(address) as peer:
        assert peer.hello(TOKEN).HasField("welcome")
        reject = reject_of(peer.register(broken), peer)
    assert reject.code == error_pb2.ERROR_CODE_APPLICATION_INVALID
    assert "nowhere" in reject.message
    assert not (tmp_path / "new").exists()

    with Peer(address) as peer:
        assert peer.hello(TOKEN).HasField("welcome")
        peer.serve_control()
        peer.attach("Sink", sink="counts")
        error = peer.is_told()
    assert error.code == error_pb2.ERROR_CODE_UNKNOWN_NAME
    assert "before an application is registered" in error.message

    with Peer(address) as peer:
        peer.join(TOKEN, APPLICATION)
        assert not peer.is_blamed()
    assert not engine.is_over()


def test_welcome_names_limits_and_capabilities(peer: Peer) -> None:
    welcome = peer.hello(TOKEN).welcome

    assert welcome.revision == 1
    assert {"routing.v1", "cache.survive.v1", "timers.v1"} <= {*welcome.capabilities}
    assert welcome.limits.message_bytes_max == 4 << 20
    assert len(welcome.session_id) == len(welcome.cluster_id) == 16


def test_stream_that_is_over_says_so() -> None:
    with Peer("unix:/nowhere/at/all.sock") as peer:
        assert peer.control.ends() is grpc.StatusCode.UNAVAILABLE
        with pytest.raises(EndOfStreamError):
            peer.control.receive()
