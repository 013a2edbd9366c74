"""What the engine's errors say, to people and on the wire."""

import pytest

from bettong_engine import errors
from bettong_proto.plugin.v1 import error_pb2

CODES = {name.removeprefix("ERROR_CODE_") for name in error_pb2.ErrorCode.keys()}  # noqa: SIM118


def subclasses(kind: type[errors.BettongError]) -> list[type[errors.BettongError]]:
    return [kind, *(s for k in kind.__subclasses__() for s in subclasses(k))]


@pytest.mark.parametrize("kind", subclasses(errors.BettongError))
def test_code_is_one_of_the_protocol(kind: type[errors.BettongError]) -> None:
    assert kind.code in CODES


def test_message_says_where_it_happened() -> None:
    error = errors.ProtocolError(
        "PROTOCOL", "barrier out of order", channel="a", epoch=7
    )

    assert error.code == "PROTOCOL"
    assert str(error) == "barrier out of order (channel='a', epoch=7)"
    assert str(errors.ConfigError("no such file")) == "no such file"


def test_only_the_world_is_worth_another_try() -> None:
    full = errors.StoreUnavailableError("the disk is full", retry_after_ms=7)

    assert errors.is_retryable(full)
    assert full.retry_after_ms == 7
    assert not errors.is_retryable(errors.StoreUnknownError("who knows"))
    assert not errors.is_retryable(errors.ProtocolError("PROTOCOL", "no"))
    assert not errors.is_retryable(OSError())
