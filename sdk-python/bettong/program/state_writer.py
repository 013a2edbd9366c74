"""Encodes columns of states without making them slower to work with.

msgspec reads a dataclass through its `__dict__`. CPython keeps the attributes of an
instance inline until someone asks for that dict; then it makes one, and from then on
every attribute access of that instance is slower and the instance larger (measured
on 3.11: a word count went from 650 to 900 ns a word, and its flush from 770 to 880 ns
a key). So the fields are read one by one here; the bytes are the same.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from bettong.errors import CodecError
from bettong.plan import StateSpec
from bettong.program.emitter import Emitter

EncodeMany = Callable[[Sequence[Any]], list[bytes]]
EncodeOne = Callable[[Any], bytes]

_ENCODERS: dict[str, Callable[[], Callable[[Any], bytes]]] = {
    "msgpack": lambda: msgspec.msgpack.Encoder().encode,
    "json": lambda: msgspec.json.Encoder().encode,
}
_WRITE_ERRORS = (TypeError, ValueError, AttributeError, OverflowError, RecursionError)


class StateWriter:
    """Encodes the states of one step: what its codec gives, and raises the same."""

    def __init__(self, state: StateSpec) -> None:
        self._codec = state.codec
        self._type: type = type(state.factory())
        self._write: EncodeMany | None
        self._write_one: EncodeOne | None
        self._write, self._write_one = _field_writers(state, self._type)

    def encode(self, state: Any) -> bytes:
        """Encode one state. Raises `CodecError`."""
        if self._write_one is not None and state.__class__ is self._type:
            try:
                return self._write_one(state)
            except _WRITE_ERRORS:
                pass  # The codec says what is wrong.
        return self._codec.encode(state)

    def encode_many(self, states: Sequence[Any]) -> list[bytes]:
        """Encode a column. Raises `CodecError`."""
        if self._write is not None and {*map(type, states)} <= {self._type}:
            try:
                return self._write(states)
            except _WRITE_ERRORS:
                pass  # The codec says what is wrong.
        return self._codec.encode_many(states)


def _field_writers(
    state: StateSpec, state_type: type
) -> tuple[EncodeMany, EncodeOne] | tuple[None, None]:
    """Return loops over the fields of a dataclass; None: the codec does as well."""
    make = _ENCODERS.get(state.codec.name.partition(":")[0])
    if make is None or not _keeps_dict(state_type):
        return None, None
    many, one = _generate(state_type, make())
    sample = state.factory()
    try:
        expected = state.codec.encode(sample)
        is_same = many([sample]) == [expected] and one(sample) == expected
    except (*_WRITE_ERRORS, CodecError):
        return None, None
    return (many, one) if is_same else (None, None)


def _keeps_dict(state_type: type) -> bool:
    return dataclasses.is_dataclass(state_type) and any(
        "__slots__" not in vars(base) for base in state_type.__mro__[:-1]
    )


def _generate(
    state_type: type, encode: Callable[[Any], bytes]
) -> tuple[EncodeMany, EncodeOne]:
    names = [field.name for field in dataclasses.fields(state_type)]
    # A struct of the same fields is encoded faster than a dict (260, 345 ns).
    struct = msgspec.defstruct(state_type.__name__, names, gc=False)
    emitter = Emitter(f"state {state_type.__name__}")
    function = emitter.bind(encode, "encode")
    row = emitter.bind(struct, "row")
    fields = ", ".join(f"s.{name}" for name in names)
    with emitter.block("def write(states):"):
        emitter.line(f"return [{function}({row}({fields})) for s in states]")
    with emitter.block("def write_one(s):"):
        emitter.line(f"return {function}({row}({fields}))")
    return emitter.compile("write"), emitter.compile("write_one")
