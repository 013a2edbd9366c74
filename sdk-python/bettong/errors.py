"""The errors of the SDK, sorted by who has to act, each with its wire code.

An error message says what happened, where, and what to do about it. Codes are those
of `bettong.plugin.v1.ErrorCode`, without the prefix that protobuf wants.
"""

from enum import IntEnum


class ErrorCode(IntEnum):
    """The stable codes that an error has on the wire, in logs and in every SDK."""

    UNSPECIFIED = 0
    BAD_TOKEN = 1
    NO_COMMON_REVISION = 2
    MISSING_CAPABILITY = 3
    HANDSHAKE_TIMEOUT = 4
    PROTOCOL = 5
    UNSUPPORTED = 6
    TOO_LARGE = 7
    FENCED = 8
    APPLICATION_INVALID = 9
    APPLICATION_CHANGED = 10
    UNKNOWN_NAME = 11
    USER_CODE = 12
    CODEC = 13
    BAD_KEY = 14
    SOURCE_UNAVAILABLE = 15
    SOURCE_BAD_POSITION = 16
    SOURCE_TRUNCATED = 17
    SINK_UNAVAILABLE = 18
    SINK_FOREIGN = 19
    SINK_AHEAD = 20
    SINK_GAP = 21
    STATE_SCHEMA = 22
    STATE_LOST = 23
    STORE_UNAVAILABLE = 24
    STORE_CORRUPT = 25
    PLUGIN_CRASHED = 26
    PLUGIN_SILENT = 27
    BATCH_TIMEOUT = 28


class BettongError(Exception):
    """Any error that the SDK raises; `code` is what goes over the wire."""

    code: ErrorCode = ErrorCode.UNSPECIFIED


class GraphError(BettongError):
    """The pipeline is built wrongly. Raised before anything runs.

    step: name of the step at fault; empty: the application as a whole.
    """

    code = ErrorCode.APPLICATION_INVALID

    def __init__(self, message: str, *, step: str = "") -> None:
        super().__init__(f"step {step!r}: {message}" if step else message)
        self.step = step


class CodecError(BettongError):
    """A value that its codec cannot write, or bytes that it cannot read.

    index: place of the value in the column; None: a single value.
    """

    code = ErrorCode.CODEC

    def __init__(self, message: str, *, index: int | None = None) -> None:
        super().__init__(message if index is None else f"value {index}: {message}")
        self.message = message
        self.index = index


class KeyTypeError(BettongError):
    """A key of a type that has no canonical bytes, or not those of its codec."""

    code = ErrorCode.BAD_KEY

    def __init__(self, message: str, *, index: int | None = None) -> None:
        super().__init__(message if index is None else f"key {index}: {message}")
        self.message = message
        self.index = index


class SourceError(BettongError):
    """A source that cannot read.

    is_retryable: False if trying again cannot help: a position that is garbage or
        is no longer there.
    """

    def __init__(
        self,
        message: str,
        *,
        is_retryable: bool = True,
        code: ErrorCode | None = None,
    ) -> None:
        super().__init__(message)
        self.is_retryable = is_retryable
        self.code = code or (
            ErrorCode.SOURCE_UNAVAILABLE
            if is_retryable
            else ErrorCode.SOURCE_BAD_POSITION
        )


class SinkError(BettongError):
    """A sink that cannot write.

    is_retryable: False if trying again cannot help; the sink is then closed until
        the operator acts.
    """

    def __init__(
        self,
        message: str,
        *,
        is_retryable: bool = True,
        code: ErrorCode = ErrorCode.SINK_UNAVAILABLE,
    ) -> None:
        super().__init__(message)
        self.is_retryable = is_retryable
        self.code = code


class RecordRefusedError(BettongError):
    """A record that the target of a sink will never take; all before it are written.

    sequence: of the refused output.
    reason: the target's own words.
    """

    code = ErrorCode.USER_CODE

    def __init__(self, sequence: int, reason: str) -> None:
        super().__init__(f"output {sequence} is refused: {reason}")
        self.sequence = sequence
        self.reason = reason


class UserCodeError(BettongError):
    """A function of the user raised; the cause is chained.

    step: name of the step whose function it is.
    key: canonical bytes of the record's key; None: the record has none.
    stream, position: where the record came from, as far as it is known.
    """

    code = ErrorCode.USER_CODE

    def __init__(
        self,
        message: str,
        *,
        step: str,
        key: bytes | None = None,
        stream: str = "",
        position: bytes = b"",
    ) -> None:
        super().__init__(f"step {step!r}: {message}")
        self.step = step
        self.key = key
        self.stream = stream
        self.position = position


class TimerError(BettongError, ValueError):
    """A timer of a wrong kind, name or due time; raised inside the user's function."""

    code = ErrorCode.USER_CODE


class ProtocolError(BettongError):
    """The engine broke the contract of PROTOCOL.md. The session ends."""

    code = ErrorCode.PROTOCOL


class TooLargeError(BettongError):
    """A record, key, state value or position over a limit that the engine set."""

    code = ErrorCode.TOO_LARGE


class FencedError(BettongError):
    """A newer instance exists; this one has to stop quietly."""

    code = ErrorCode.FENCED


class RejectedError(BettongError):
    """The engine refused the session or the application.

    remedy: what to install or to change, in the engine's words.
    """

    def __init__(self, message: str, *, code: ErrorCode, remedy: str = "") -> None:
        super().__init__(f"{message} ({remedy})" if remedy else message)
        self.code = code
        self.remedy = remedy


class LaunchError(BettongError):
    """The embedded engine cannot be started from this program."""

    code = ErrorCode.UNSPECIFIED


def is_retryable(error: BaseException) -> bool:
    """Return whether the same attempt may succeed later without anyone acting."""
    return isinstance(error, SourceError | SinkError) and error.is_retryable
