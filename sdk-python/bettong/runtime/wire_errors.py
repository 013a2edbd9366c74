"""Turns exceptions into the `Error` of the protocol.

`message` holds no record content; `detail` and `stack` may, and are shown to the
operator only.
"""

import traceback
from typing import cast

from bettong.errors import (
    BettongError,
    ErrorCode,
    FencedError,
    ProtocolError,
    SinkError,
    SourceError,
    TooLargeError,
)
from bettong.program.failure import RecordFailedError
from bettong_proto.plugin.v1 import error_pb2

# The protocol asks for at most 64 KiB a field.
TEXT_CHARS_MAX = 16 * 1024
DETAIL_CHARS_MAX = 1024


def record_error(failure: RecordFailedError, *, owner: str) -> error_pb2.Error:
    """Describe a record on which user code or a codec failed."""
    cause = failure.cause
    is_too_large = isinstance(cause, TooLargeError)
    return error_pb2.Error(
        error_class=(
            error_pb2.ERROR_CLASS_TOO_LARGE
            if is_too_large
            else error_pb2.ERROR_CLASS_RECORD
        ),
        code=to_wire(failure.code),
        message=(
            f"step {failure.step!r} of {owner!r} failed on a record with"
            f" {type(cause).__name__}: fix the step and resume, or start with the"
            " policy skip or dead_letter"
        ),
        detail=_detail(failure),
        stack=stack_of(cause),
        step=failure.step,
        key=failure.key or b"",
    )


def connector_error(
    error: SourceError | SinkError, *, where: str, stream: str = ""
) -> error_pb2.Error:
    """Describe trouble of a connector with the outside world."""
    error_class = error_pb2.ERROR_CLASS_RETRYABLE
    if not error.is_retryable:
        error_class = error_pb2.ERROR_CLASS_FATAL
    if error.code == ErrorCode.FENCED:
        error_class = error_pb2.ERROR_CLASS_FENCED
    return error_pb2.Error(
        error_class=error_class,
        code=to_wire(error.code),
        message=f"{where}: {error}",
        stack=stack_of(error) if not error.is_retryable else "",
        stream=stream,
    )


def fatal_error(
    error: BaseException, *, where: str, stream: str = "", key: bytes = b""
) -> error_pb2.Error:
    """Describe what a role cannot go on after: a broken connector, a bug."""
    error_class = error_pb2.ERROR_CLASS_FATAL
    code = error.code if isinstance(error, BettongError) else ErrorCode.UNSPECIFIED
    if isinstance(error, ProtocolError):
        error_class = error_pb2.ERROR_CLASS_PROTOCOL
    elif isinstance(error, FencedError):
        error_class = error_pb2.ERROR_CLASS_FENCED
    return error_pb2.Error(
        error_class=error_class,
        code=to_wire(code),
        message=f"{where}: {type(error).__name__}: {error}"[:TEXT_CHARS_MAX],
        stack=stack_of(error),
        stream=stream,
        key=key,
    )


def stack_of(error: BaseException) -> str:
    """Return the stack of an exception, its end if it is long."""
    return "".join(traceback.format_exception(error))[-TEXT_CHARS_MAX:]


def _detail(failure: RecordFailedError) -> str:
    cause = failure.cause
    if failure.value is None:
        return f"{cause}"[:DETAIL_CHARS_MAX]
    try:
        value = repr(failure.value)
    except Exception as error:  # the user's own __repr__ may raise anything
        value = f"<{type(failure.value).__name__}; its repr raised {error!r}>"
    return f"{cause}; the value was {value[:DETAIL_CHARS_MAX]}"


def to_wire(code: ErrorCode) -> "error_pb2.ErrorCode.ValueType":
    """Return the code of the protocol; the numbers are the same."""
    # Enum values are plain ints at run time; only the stubs tell them apart.
    return cast("error_pb2.ErrorCode.ValueType", int(code))
