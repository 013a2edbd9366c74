"""The codecs of values: text, raw bytes, msgpack, json, protobuf, pickle.

Columns are coded by loops that run in C where CPython has one; the slow path that
finds the index of a bad value runs only once something has failed.
"""

import pickle
from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeVar

import msgspec

from bettong.codec import Codec
from bettong.errors import CodecError
from bettong.hints import hint_name, plain_types

_MSGPACK_TYPES = frozenset(
    (type(None), bool, int, float, str, bytes, list, dict),
)
_ENCODE_ERRORS = (TypeError, ValueError, OverflowError, RecursionError, AttributeError)
_DECODE_ERRORS = (ValueError, TypeError, OverflowError, RecursionError)


class TextCodec:
    """str as UTF-8."""

    name = "text"
    value_type: Any = str

    def encode(self, value: Any) -> bytes:
        """Return the UTF-8 of a str."""
        try:
            return str.encode(value)
        except (TypeError, UnicodeEncodeError) as error:
            raise CodecError(_text_problem(value)) from error

    def decode(self, data: bytes) -> Any:
        """Return the str of UTF-8 bytes."""
        try:
            return data.decode()
        except UnicodeDecodeError as error:
            raise CodecError(_not_utf8(error)) from error

    def encode_many(self, values: Sequence[Any]) -> list[bytes]:
        """Encode a column; about 35 ns a word."""
        try:
            return list(map(str.encode, values))
        except (TypeError, UnicodeEncodeError):
            return _encode_each(self.encode, values)

    def decode_many(self, column: Sequence[bytes]) -> list[Any]:
        """Decode a column; about 42 ns a word."""
        try:
            return [data.decode() for data in column]
        except UnicodeDecodeError:
            return _decode_each(self.decode, column)


class RawBytesCodec:
    """bytes as they are."""

    name = "bytes"
    value_type: Any = bytes

    def encode(self, value: Any) -> bytes:
        """Return the bytes themselves."""
        if type(value) is not bytes:
            raise CodecError(
                f'codec "bytes" takes bytes, got {_type_name(value)};'
                " convert it in a map, or declare another codec"
            )
        return value

    def decode(self, data: bytes) -> Any:
        """Return the bytes themselves."""
        return data

    def encode_many(self, values: Sequence[Any]) -> list[bytes]:
        """Check and copy a column."""
        if {*map(type, values)} <= {bytes}:
            return list(values)
        return _encode_each(self.encode, values)

    def decode_many(self, column: Sequence[bytes]) -> list[Any]:
        """Copy a column."""
        return list(column)


class MsgspecCodec:
    """Values of one type in a format of msgspec.

    The top level of each value must have exactly a type that the hint names, since
    what is decoded later is what the hint says: a subclass would come back as its
    base class, a tuple as a list.
    """

    def __init__(
        self,
        name: str,
        value_type: Any,
        *,
        encode: Callable[[Any], bytes],
        decode: Callable[[bytes], Any],
        allowed: frozenset[type] | None,
        advice: str,
    ) -> None:
        self.name = name
        self.value_type = value_type
        self._encode = encode
        self._decode = decode
        self._allowed = allowed
        self._advice = advice

    def encode(self, value: Any) -> bytes:
        """Return the bytes of one value."""
        if self._allowed is not None and type(value) not in self._allowed:
            raise CodecError(
                f'codec "{self.name}" cannot keep a {_type_name(value)}; {self._advice}'
            )
        try:
            return self._encode(value)
        except _ENCODE_ERRORS as error:
            raise CodecError(
                f'codec "{self.name}" cannot write a {_type_name(value)}: {error};'
                f" {self._advice}"
            ) from error

    def decode(self, data: bytes) -> Any:
        """Return the value of the bytes."""
        try:
            return self._decode(data)
        except _DECODE_ERRORS as error:
            raise CodecError(
                f'{len(data)} bytes are no "{self.name}": {error}; were they'
                " written with another codec?"
            ) from error

    def encode_many(self, values: Sequence[Any]) -> list[bytes]:
        """Encode a column; the check of types is about 20 ns a value."""
        if self._allowed is None or {*map(type, values)} <= self._allowed:
            try:
                return list(map(self._encode, values))
            except _ENCODE_ERRORS:
                pass
        return _encode_each(self.encode, values)

    def decode_many(self, column: Sequence[bytes]) -> list[Any]:
        """Decode a column."""
        try:
            return list(map(self._decode, column))
        except _DECODE_ERRORS:
            return _decode_each(self.decode, column)


class MsgpackCodec(MsgspecCodec):
    """msgpack of None, bool, int, float, str, bytes, list and dict.

    Called with a type, it gives the codec of that type: `msgpack(Order)`,
    `msgpack(tuple[str, int])`, for dataclasses, msgspec Structs, NamedTuples,
    unions and the rest of what msgspec knows.
    """

    def __init__(self) -> None:
        super().__init__(
            "msgpack",
            Any,
            encode=msgspec.msgpack.Encoder().encode,
            decode=msgspec.msgpack.Decoder().decode,
            allowed=_MSGPACK_TYPES,
            advice="declare codec=bt.msgpack(MyType) with the type of the values",
        )

    def __call__(self, value_type: Any) -> Codec:
        """Return the codec of one type. Raises `CodecError`: msgpack has no way."""
        if value_type is Any:
            return self
        _check_supported("msgpack", value_type)
        name = hint_name(value_type)
        return MsgspecCodec(
            f"msgpack:{name}",
            value_type,
            encode=self._encode,
            decode=msgspec.msgpack.Decoder(value_type).decode,
            allowed=plain_types(value_type),
            advice=f"give it a value of {name}, or declare the type that it has",
        )


class JsonCodec(MsgspecCodec):
    """JSON of anything that msgspec writes; what comes back is what JSON holds.

    Called with a type, it gives the codec of that type: `json(Order)`.
    """

    def __init__(self) -> None:
        super().__init__(
            "json",
            Any,
            encode=msgspec.json.Encoder().encode,
            decode=msgspec.json.Decoder().decode,
            allowed=None,
            advice="convert it in a map, or declare another codec",
        )

    def __call__(self, value_type: Any = Any) -> Codec:
        """Return the codec of one type. Raises `CodecError`: JSON has no way."""
        if value_type is Any:
            return self
        _check_supported("json", value_type)
        name = hint_name(value_type)
        return MsgspecCodec(
            f"json:{name}",
            value_type,
            encode=self._encode,
            decode=msgspec.json.Decoder(value_type).decode,
            allowed=plain_types(value_type),
            advice=f"give it a value of {name}, or declare the type that it has",
        )


class ProtobufMessage(Protocol):
    """What the protobuf codec needs of a generated class."""

    DESCRIPTOR: Any

    def SerializeToString(self, *, deterministic: bool = ...) -> bytes:  # noqa: N802
        """Return the bytes of the message."""


MessageT = TypeVar("MessageT", bound=ProtobufMessage)


class ProtobufCodec:
    """Messages of one generated protobuf class, maps in the order of their keys."""

    def __init__(self, message_class: Any) -> None:
        self.name = f"protobuf:{message_class.DESCRIPTOR.full_name}"
        self.value_type: Any = message_class
        self._from_bytes: Callable[[bytes], Any] = message_class.FromString

    def encode(self, value: Any) -> bytes:
        """Return the bytes of one message."""
        if type(value) is not self.value_type:
            raise CodecError(
                f'codec "{self.name}" takes that message only, got {_type_name(value)}'
            )
        try:
            data: bytes = value.SerializeToString(deterministic=True)
        except Exception as error:  # protobuf's EncodeError has no common base
            raise CodecError(f'codec "{self.name}": {error}') from error
        return data

    def decode(self, data: bytes) -> Any:
        """Return the message of the bytes."""
        try:
            return self._from_bytes(data)
        except Exception as error:  # likewise DecodeError
            raise CodecError(
                f'{len(data)} bytes are no "{self.name}": {error}; were they'
                " written with another codec?"
            ) from error

    def encode_many(self, values: Sequence[Any]) -> list[bytes]:
        """Encode a column."""
        return _encode_each(self.encode, values)

    def decode_many(self, column: Sequence[bytes]) -> list[Any]:
        """Decode a column."""
        return _decode_each(self.decode, column)


class PickleCodec:
    """Any Python object. Reading it runs code: only for data that nobody else wrote.

    Changed or renamed classes may make old state unreadable, and no other language
    reads it.
    """

    name = "pickle"
    value_type: Any = Any
    # Fixed, so that the bytes do not depend on the Python version.
    _PROTOCOL = 5

    def encode(self, value: Any) -> bytes:
        """Return the pickle of one value."""
        try:
            return pickle.dumps(value, self._PROTOCOL)
        except Exception as error:  # __reduce__ of the user may raise anything
            raise CodecError(
                f"a {_type_name(value)} cannot be pickled: {error}"
            ) from error

    def decode(self, data: bytes) -> Any:
        """Return the value of a pickle."""
        try:
            return pickle.loads(data)
        except Exception as error:  # likewise __setstate__
            raise CodecError(
                f"{len(data)} bytes cannot be unpickled: {error}; was a class renamed?"
            ) from error

    def encode_many(self, values: Sequence[Any]) -> list[bytes]:
        """Encode a column."""
        return _encode_each(self.encode, values)

    def decode_many(self, column: Sequence[bytes]) -> list[Any]:
        """Decode a column."""
        return _decode_each(self.decode, column)


text = TextCodec()
raw_bytes = RawBytesCodec()
msgpack = MsgpackCodec()
json = JsonCodec()


def protobuf(message_class: type[MessageT]) -> Codec:
    """Return the codec of one generated protobuf class."""
    if not is_message_class(message_class):
        raise CodecError(
            f"{message_class!r} is no generated protobuf class; give the class of"
            " the message, bt.protobuf(orders_pb2.Order)"
        )
    return ProtobufCodec(message_class)


def pickled() -> Codec:
    """Return the codec that pickles; see `PickleCodec` for what that costs."""
    return PickleCodec()


def infer_codec(value_type: Any) -> Codec:
    """Return the codec for values of a type hint.

    str gives `text`, bytes `raw_bytes`, a protobuf class `protobuf`, any other
    concrete hint `msgpack(hint)`, and Any the untyped `msgpack`.

    Raises:
        CodecError: msgpack has no way to write the type.
    """
    if value_type is str:
        return text
    if value_type is bytes:
        return raw_bytes
    if is_message_class(value_type):
        return ProtobufCodec(value_type)
    return msgpack(value_type)


def is_message_class(value_type: Any) -> bool:
    """Return whether this is a class generated by protobuf."""
    return (
        isinstance(value_type, type)
        and hasattr(value_type, "DESCRIPTOR")
        and hasattr(value_type, "FromString")
    )


def _encode_each(encode: Callable[[Any], bytes], values: Sequence[Any]) -> list[bytes]:
    column: list[bytes] = []
    for index, value in enumerate(values):
        try:
            column.append(encode(value))
        except CodecError as error:
            raise CodecError(error.message, index=index) from error.__cause__
    return column


def _decode_each(decode: Callable[[bytes], Any], column: Sequence[bytes]) -> list[Any]:
    values: list[Any] = []
    for index, data in enumerate(column):
        try:
            values.append(decode(data))
        except CodecError as error:
            raise CodecError(error.message, index=index) from error.__cause__
    return values


def _check_supported(format_name: str, value_type: Any) -> None:
    """Raise `CodecError` if msgspec cannot read back what it would write."""
    try:
        found = _custom_type(msgspec.inspect.type_info(value_type))
        msgspec.msgpack.Decoder(value_type)
    except (TypeError, NameError, ValueError) as error:
        raise CodecError(
            f"{format_name} cannot carry {hint_name(value_type)}: {error};"
            " declare another codec, bt.protobuf(...) or bt.pickled()"
        ) from error
    if found is not None:
        inside = "" if found is value_type else f" (inside {hint_name(value_type)})"
        raise CodecError(
            f"{format_name} cannot carry {hint_name(found)}{inside}: make it a"
            " dataclass or a msgspec Struct, or declare another codec, bt.pickled()"
        )


def _custom_type(info: msgspec.inspect.Type) -> Any:
    """Return the first class in a type that msgspec does not know, or None."""
    pending: list[Any] = [info]
    seen: set[int] = set()
    while pending:
        node = pending.pop()
        if isinstance(node, tuple):
            pending.extend(node)
        elif isinstance(node, msgspec.inspect.CustomType):
            return node.cls
        elif isinstance(node, msgspec.Struct) and id(node) not in seen:
            seen.add(id(node))
            pending.extend(getattr(node, name) for name in node.__struct_fields__)
    return None


def _type_name(value: object) -> str:
    return hint_name(type(value))


def _text_problem(value: object) -> str:
    if isinstance(value, str):
        return "the str holds a lone surrogate, which UTF-8 does not have"
    return (
        f'codec "text" takes str, got {_type_name(value)}; convert it in a map,'
        " or declare another codec, bt.msgpack or bt.json"
    )


def _not_utf8(error: UnicodeDecodeError) -> str:
    return (
        f"byte {error.start} of {len(error.object)} is not UTF-8; is this text?"
        " Else read it with codec bt.raw_bytes"
    )
