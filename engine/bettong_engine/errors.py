"""Names what can go wrong, sorted by who must act.

Every error carries a wire code, one of the names of ErrorCode in PROTOCOL.md
without its prefix, and reads as one sentence or two: what happened, where, what to
do. A bug is none of these: it is an `assert`, and the process stops.
"""


class BettongError(Exception):
    """Root of the engine's errors. code: a name of ErrorCode."""

    code: str = "UNSPECIFIED"

    def __init__(self, message: str, **where: object) -> None:
        super().__init__(message)
        self.message = message
        self.where = where

    def __str__(self) -> str:
        """Return the message, and where it happened as far as that is known."""
        if not self.where:
            return self.message
        place = ", ".join(f"{name}={value!r}" for name, value in self.where.items())
        return f"{self.message} ({place})"


class ConfigError(BettongError):
    """The operator has to change a setting. Raised only while starting."""


class ProtocolError(BettongError):
    """The peer broke the contract: its session ends."""

    def __init__(self, code: str, message: str, **where: object) -> None:
        super().__init__(message, **where)
        self.code = code


class TooLargeError(BettongError):
    """Something is larger than can be kept. Never retried."""

    code = "TOO_LARGE"


class RetryableError(BettongError):
    """The world is in the way; the same call may succeed after `retry_after_ms`."""

    def __init__(
        self, message: str, *, retry_after_ms: int = 100, **where: object
    ) -> None:
        super().__init__(message, **where)
        self.retry_after_ms = retry_after_ms


class StoreUnavailableError(RetryableError):
    """The disk refuses, and what was asked for has surely not happened."""

    code = "STORE_UNAVAILABLE"


class StoreUnknownError(BettongError):
    """Nobody knows whether a transaction is durable: read again, then decide.

    Not retryable as it is: a blind retry could meet its own first try.
    """

    code = "STORE_UNAVAILABLE"


class StateCorruptedError(BettongError):
    """What is stored is not what was written, or not ours: stop, restore."""

    code = "STORE_CORRUPT"


class StateLostError(BettongError):
    """No copy of committed state is left: the operator decides. Sticky."""

    code = "STATE_LOST"


def is_retryable(error: BaseException) -> bool:
    """Tell whether the same call, unchanged, may succeed later."""
    return isinstance(error, RetryableError)
