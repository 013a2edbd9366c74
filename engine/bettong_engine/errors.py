"""What can go wrong, sorted by who must act. Codes are those of PROTOCOL.md."""


class BettongError(Exception):
    """Root of the engine's errors. code: a name of the protocol's ErrorCode."""

    code = "UNSPECIFIED"


class ConfigError(BettongError):
    """The operator has to change a setting. Raised at start only."""


class ProtocolError(BettongError):
    """A peer broke the contract: its session ends."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


class StateCorruptedError(BettongError):
    """What is stored is not what was written: stop, restore."""

    code = "STORE_CORRUPT"


class StateLostError(BettongError):
    """No copy of committed state is left: the operator decides. Sticky."""

    code = "STATE_LOST"


class StoreUnavailableError(BettongError):
    """The disk refuses to write, surely; what was given is kept for the next try."""

    code = "STORE_UNAVAILABLE"


class StoreUnknownError(BettongError):
    """Nobody knows whether a transaction is durable: read again."""

    code = "STORE_UNAVAILABLE"
