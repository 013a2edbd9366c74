"""Blames an exception of user code on a step and a record."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from bettong.errors import (
    BettongError,
    CodecError,
    ErrorCode,
    KeyTypeError,
    TooLargeError,
)
from bettong.program.emitter import Emitter


class RecordFailedError(BettongError):
    """User code raised on a record under the policy FAIL; the cause is chained.

    step: whose function it is, or which output refused the value.
    key: canonical bytes of the record's key; None: the record has none.
    value: what the program got; may be None where it is not known.
    index: place of the record in the batch; None: not known.
    """

    def __init__(
        self,
        cause: BaseException,
        *,
        step: str,
        key: bytes | None = None,
        value: object = None,
        index: int | None = None,
    ) -> None:
        super().__init__(f"step {step!r}: {type(cause).__name__}: {cause}")
        self.cause = cause
        self.step = step
        self.key = key
        self.value = value
        self.index = index
        self.code = code_of(cause)
        self.__cause__ = cause


def code_of(cause: BaseException) -> ErrorCode:
    """Return the wire code of what was raised: its own, or USER_CODE."""
    if isinstance(cause, CodecError | KeyTypeError | TooLargeError):
        return cause.code
    return ErrorCode.USER_CODE


@dataclass(frozen=True, slots=True)
class SkippedRecord:
    """A record that the policy took out; nothing of it is left behind."""

    step: str
    key: bytes | None
    value: object
    error: BaseException


# Gets each skipped record as it is met.
OnSkip = Callable[[SkippedRecord], None]


class Blame:
    """Finds step and cause for the exceptions of one generated text."""

    def __init__(self, emitter: Emitter, owner: str) -> None:
        self._emitter = emitter
        self._owner = owner

    def find(self, error: BaseException) -> tuple[str, BaseException, dict[str, Any]]:
        """Return the step, the cause and the local variables of the failed call."""
        found = self._emitter.frame_of(error)
        if found is None:
            return self._owner, error, {}
        entry, step = found
        variables = dict(entry.tb_frame.f_locals)
        key_call = self._emitter.key_of_line.get(entry.tb_lineno)
        if key_call is not None and entry.tb_next is None:
            # `key.encode()` on what is no str: let the codec say it properly.
            name, codec = key_call
            try:
                codec.encode(variables.get(name))
            except BettongError as typed:
                typed.__cause__ = error
                return step or self._owner, typed, variables
        return step or self._owner, error, variables

    def skip(
        self, error: BaseException, key: bytes | None, value: object
    ) -> SkippedRecord:
        """Describe a record that is skipped because of `error`."""
        step, cause, _ = self.find(error)
        return SkippedRecord(step=step, key=key, value=value, error=cause)
