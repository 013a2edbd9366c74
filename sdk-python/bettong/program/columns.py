"""The columns that a program fills: what leaves one output, before the wire."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from bettong.errors import TooLargeError
from bettong.plan import Edge


@dataclass(slots=True)
class Columns:
    """Records of one output.

    keys: canonical key bytes; None: the output has no keys.
    values: encoded; None: each value is its key (`Records.value_is_key`).
    times: event time of each, microseconds; None: the input had none.

    Invariant: the lists that are there have equal lengths.
    """

    keys: list[bytes] | None
    values: list[bytes] | None
    times: list[int] | None

    @property
    def count(self) -> int:
        """Number of records."""
        column = self.values if self.values is not None else self.keys
        return 0 if column is None else len(column)


@dataclass(frozen=True, slots=True)
class SizeLimits:
    """What the engine accepts, in bytes.

    record: key and value of one record together. key: a key. state: one state.
    """

    record: int = 1024 * 1024
    key: int = 64 * 1024
    state: int = 1024 * 1024


DEFAULT_SIZES = SizeLimits()

Encode = Callable[[Any], bytes]


def checked(encode: Encode, bytes_max: int, what: str) -> Encode:
    """Return `encode` with a check of the size. It raises `TooLargeError`."""

    def encode_checked(value: Any) -> bytes:
        data = encode(value)
        if len(data) > bytes_max:
            raise too_large(what, len(data), bytes_max)
        return data

    return encode_checked


def too_large(what: str, size: int, bytes_max: int) -> TooLargeError:
    """Return the error for something over a limit of the engine."""
    return TooLargeError(
        f"the {what} has {size:,} bytes, the engine takes {bytes_max:,}: make it"
        " smaller, or split it"
    )


# An output in the making: [keys, values not yet encoded, times]. `values` is None
# while every value was the very object that its key function returned.
Slot = list[list[Any] | None]


def new_slot(*, has_keys: bool, has_values: bool, has_times: bool) -> Slot:
    """Return an empty slot with the columns named."""
    return [
        [] if has_keys else None,
        [] if has_values else None,
        [] if has_times else None,
    ]


# By name of the edge codec: key codecs whose keys the edge codec writes and reads
# back as equal objects, so that a value that is its key needs no column of its own.
_SAME_BY_CODEC = {
    "text": frozenset({"str"}),
    "bytes": frozenset({"bytes"}),
    "msgpack": frozenset({"str", "bytes", "int", "bool"}),
    "msgpack:int": frozenset({"int"}),
    "msgpack:bool": frozenset({"bool"}),
}


def may_be_key(edge: Edge) -> bool:
    """Return whether values of this edge may go as `value_is_key`."""
    if edge.key is None or edge.key_codec is None or edge.to_stage is None:
        return False
    return edge.key_codec.name in _SAME_BY_CODEC.get(edge.codec.name, frozenset())
