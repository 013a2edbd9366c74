"""The wire codes of errors."""

import pytest

import bettong as bt
from bettong_proto.plugin.v1 import error_pb2


def test_codes_have_the_names_and_numbers_of_the_protocol() -> None:
    ours = {f"ERROR_CODE_{code.name}": code.value for code in bt.ErrorCode}

    assert ours == dict(error_pb2.ErrorCode.items())


@pytest.mark.parametrize(
    ("error", "code", "retryable"),
    [
        (bt.GraphError("bad"), bt.ErrorCode.APPLICATION_INVALID, False),
        (bt.CodecError("bad"), bt.ErrorCode.CODEC, False),
        (bt.KeyTypeError("bad"), bt.ErrorCode.BAD_KEY, False),
        (bt.SourceError("down"), bt.ErrorCode.SOURCE_UNAVAILABLE, True),
        (
            bt.SourceError("gone", is_retryable=False),
            bt.ErrorCode.SOURCE_BAD_POSITION,
            False,
        ),
        (
            bt.SourceError(
                "cut", is_retryable=False, code=bt.ErrorCode.SOURCE_TRUNCATED
            ),
            bt.ErrorCode.SOURCE_TRUNCATED,
            False,
        ),
        (bt.SinkError("down"), bt.ErrorCode.SINK_UNAVAILABLE, True),
        (bt.SinkError("no", is_retryable=False), bt.ErrorCode.SINK_UNAVAILABLE, False),
        (bt.UserCodeError("bad", step="s"), bt.ErrorCode.USER_CODE, False),
        (bt.RecordRefusedError(7, "bad"), bt.ErrorCode.USER_CODE, False),
        (bt.ProtocolError("bad"), bt.ErrorCode.PROTOCOL, False),
        (bt.TooLargeError("bad"), bt.ErrorCode.TOO_LARGE, False),
        (bt.FencedError("old"), bt.ErrorCode.FENCED, False),
        (
            bt.RejectedError("no", code=bt.ErrorCode.BAD_TOKEN),
            bt.ErrorCode.BAD_TOKEN,
            False,
        ),
    ],
)
def test_error_has_its_code_and_says_whether_to_try_again(
    error: bt.BettongError, code: bt.ErrorCode, retryable: bool
) -> None:
    assert error.code is code
    assert bt.is_retryable(error) is retryable


def test_messages_name_the_place() -> None:
    assert str(bt.GraphError("bad", step="s")) == "step 's': bad"
    assert str(bt.UserCodeError("bad", step="s")) == "step 's': bad"
    assert str(bt.CodecError("bad", index=3)) == "value 3: bad"
    assert str(bt.KeyTypeError("bad", index=3)) == "key 3: bad"
    assert str(bt.RecordRefusedError(7, "too long")) == "output 7 is refused: too long"
    rejected = bt.RejectedError(
        "old engine", code=bt.ErrorCode.NO_COMMON_REVISION, remedy="install 2.0"
    )
    assert str(rejected) == "old engine (install 2.0)"
