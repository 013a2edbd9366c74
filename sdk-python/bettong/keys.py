"""The codecs of keys, and the partition of a key. The same bytes in every language.

The key profile, version 1 (normative; PROTOCOL.md, "Keys", says the same)
--------------------------------------------------------------------------
A key has one of five types, and each type one encoding. The type is a property of
the keyed stage, not of the key: it is named in `Stage.key_codec`, and keys of two
types are never compared.

1. `bytes`: the bytes themselves, without any header.
2. `str`: its UTF-8, without header, terminator, byte order mark or normalization.
   A string with a lone surrogate is refused.
3. `int`: one msgpack integer, -2^63 to 2^64 - 1. Values beyond are refused. The
   shortest form, and for zero and above only the unsigned family:

       0 … 127               one byte 0x00 … 0x7f         (positive fixint)
       128 … 2^8 - 1         0xcc and 1 byte              (uint 8)
       2^8 … 2^16 - 1        0xcd and 2 bytes             (uint 16)
       2^16 … 2^32 - 1       0xce and 4 bytes             (uint 32)
       2^32 … 2^64 - 1       0xcf and 8 bytes             (uint 64)
       -32 … -1              one byte 0xe0 … 0xff         (negative fixint)
       -2^7 … -33            0xd0 and 1 byte              (int 8)
       -2^15 … -2^7 - 1      0xd1 and 2 bytes             (int 16)
       -2^31 … -2^15 - 1     0xd2 and 4 bytes             (int 32)
       -2^63 … -2^31 - 1     0xd3 and 8 bytes             (int 64)

   Multi-byte numbers are big-endian, negative ones in two's complement.
4. `bool`: 0xc2 for false, 0xc3 for true.
5. `tuple`: one msgpack array of its elements, each a bytes, str, int, bool or tuple,
   nested at most 16 deep (the outermost is level 1). The array header is the
   shortest: 0x90 + n for n ≤ 15, 0xdc and 2 bytes for n ≤ 2^16 - 1, 0xdd and 4 bytes
   beyond. Ints and bools inside are written as in 3 and 4. A str is the shortest of
   fixstr (0xa0 + n, n ≤ 31 bytes), str 8 (0xd9), str 16 (0xda), str 32 (0xdb), then
   its UTF-8; bytes the shortest of bin 8 (0xc4), bin 16 (0xc5), bin 32 (0xc6), then
   the bytes. The types of the elements may differ from key to key.

Not keys: floats (NaN is not equal to itself, -0.0 and 0.0 are equal and have two
encodings), null, lists, maps, times, extension types. A bool is not an int here,
though some languages say so: 1 and true have different bytes and are different keys.

So, within one type, two keys are equal if and only if their bytes are equal. Empty
bytes, strings and tuples are keys like any other. A writer MUST send the canonical
form; a reader MAY refuse any other as BAD_KEY.

The partition of a key is CRC-32 (IEEE 802.3: reflected polynomial 0xedb88320, initial
value and final xor 0xffffffff; the one of zlib, gzip and Go's hash/crc32.IEEE) of its
bytes, as an unsigned number, modulo the application's number of partitions. Streams
and sink partitions find their homes by the same rule from the UTF-8 of
`stream/<source>/<stream id>` and `sink/<sink>/<number>`.

Golden vectors: proto/vectors/keys.json and proto/vectors/partitions.json.
"""

import zlib
from collections.abc import Callable, Sequence
from typing import Any, get_origin

import msgspec

from bettong.codec import KeyCodec
from bettong.errors import KeyTypeError
from bettong.hints import hint_name, plain_types

TUPLE_DEPTH_MAX = 16
INT_MIN = -(1 << 63)
INT_MAX = (1 << 64) - 1

_BOOLS = {b"\xc2": False, b"\xc3": True}
_LEAVES = frozenset((str, int, bytes, bool))
_pack: Callable[[Any], bytes] = msgspec.msgpack.Encoder().encode
_FLOAT_FIX = (
    "floats are no keys, since equal floats may differ in their bytes: use"
    " round(x * 100) as an int, or f'{x:.2f}' as a str"
)


def partition_of(key: bytes, partitions: int) -> int:
    """Return the partition of a key's canonical bytes: CRC-32 modulo `partitions`."""
    return zlib.crc32(key) % partitions


class BytesKeys:
    """Keys that are bytes already."""

    name = "bytes"

    def encode(self, key: Any) -> bytes:
        """Return the key itself."""
        if type(key) is not bytes:
            raise _wrong_type(key, self.name)
        return key

    def decode(self, data: bytes) -> Any:
        """Return the bytes themselves."""
        return data

    def encode_many(self, keys: Sequence[Any]) -> list[bytes]:
        """Check and copy a column."""
        if {*map(type, keys)} <= {bytes}:
            return list(keys)
        return _encode_each(self.encode, keys)

    def decode_many(self, column: Sequence[bytes]) -> list[Any]:
        """Copy a column."""
        return list(column)


class StrKeys:
    """Keys that are text, as UTF-8."""

    name = "str"

    def encode(self, key: Any) -> bytes:
        """Return the UTF-8 of the key."""
        try:
            return str.encode(key)
        except TypeError:
            raise _wrong_type(key, self.name) from None
        except UnicodeEncodeError as error:
            raise _lone_surrogate() from error

    def decode(self, data: bytes) -> Any:
        """Return the text of the bytes."""
        try:
            return data.decode()
        except UnicodeDecodeError as error:
            raise _not_canonical(data, self.name) from error

    def encode_many(self, keys: Sequence[Any]) -> list[bytes]:
        """Encode a column; about 35 ns a word."""
        try:
            return list(map(str.encode, keys))
        except (TypeError, UnicodeEncodeError):
            return _encode_each(self.encode, keys)

    def decode_many(self, column: Sequence[bytes]) -> list[Any]:
        """Decode a column."""
        try:
            return [data.decode() for data in column]
        except UnicodeDecodeError:
            return [self.decode(data) for data in column]


class IntKeys:
    """Keys that are whole numbers of at most 64 bits, bools not among them."""

    name = "int"

    def encode(self, key: Any) -> bytes:
        """Return the msgpack integer."""
        if type(key) is not int:
            if not isinstance(key, int) or isinstance(key, bool):
                raise _wrong_type(key, self.name)
            key = int(key)
        if not INT_MIN <= key <= INT_MAX:
            raise _int_too_large()
        return _pack(key)

    def decode(self, data: bytes) -> Any:
        """Return the number of a msgpack integer."""
        return _unpack(data, self.name, int)

    def encode_many(self, keys: Sequence[Any]) -> list[bytes]:
        """Encode a column."""
        if {*map(type, keys)} <= {int}:
            try:
                return list(map(_pack, keys))
            except OverflowError:
                pass
        return _encode_each(self.encode, keys)

    def decode_many(self, column: Sequence[bytes]) -> list[Any]:
        """Decode a column."""
        return [self.decode(data) for data in column]


class BoolKeys:
    """Keys that are True or False."""

    name = "bool"

    def encode(self, key: Any) -> bytes:
        """Return 0xc3 for True, 0xc2 for False."""
        if type(key) is not bool:
            raise _wrong_type(key, self.name)
        return b"\xc3" if key else b"\xc2"

    def decode(self, data: bytes) -> Any:
        """Return the truth value."""
        key = _BOOLS.get(data)
        if key is None:
            raise _not_canonical(data, self.name)
        return key

    def encode_many(self, keys: Sequence[Any]) -> list[bytes]:
        """Encode a column."""
        return _encode_each(self.encode, keys)

    def decode_many(self, column: Sequence[bytes]) -> list[Any]:
        """Decode a column."""
        return [self.decode(data) for data in column]


class TupleKeys:
    """Keys that are tuples of bytes, str, int, bool and tuples."""

    name = "tuple"

    def encode(self, key: Any) -> bytes:
        """Return the msgpack array."""
        if not isinstance(key, tuple):
            raise _wrong_type(key, self.name)
        if type(key) is not tuple or not {*map(type, key)} <= _LEAVES:
            key = _plain_tuple(key, 1)
        try:
            return _pack(key)
        except OverflowError:
            raise _int_too_large() from None
        except UnicodeEncodeError as error:
            raise _lone_surrogate() from error

    def decode(self, data: bytes) -> Any:
        """Return the tuple of a msgpack array."""
        key: tuple[Any, ...] = _unpack(data, self.name, tuple)
        if {*map(type, key)} <= _LEAVES:
            return key
        return _tuple_of(key, data, 1)

    def encode_many(self, keys: Sequence[Any]) -> list[bytes]:
        """Encode a column."""
        return _encode_each(self.encode, keys)

    def decode_many(self, column: Sequence[bytes]) -> list[Any]:
        """Decode a column."""
        return [self.decode(data) for data in column]


_CODECS: dict[type, KeyCodec] = {
    bytes: BytesKeys(),
    str: StrKeys(),
    int: IntKeys(),
    bool: BoolKeys(),
    tuple: TupleKeys(),
}


def key_codec(key_type: Any) -> KeyCodec:
    """Return the codec of a key type: str, bytes, int, bool, tuple or tuple[...].

    Raises:
        KeyTypeError: values of that type are no keys.
    """
    concrete = get_origin(key_type) or key_type
    codec = _CODECS.get(concrete) if isinstance(concrete, type) else None
    if codec is None:
        codec = _codec_of_subclass(key_type)
    if codec is None:
        fix = (
            _FLOAT_FIX
            if key_type is float
            else "keys are str, bytes, int, bool or tuple; say which with key=, and"
            " let the function return it"
        )
        raise KeyTypeError(f"{hint_name(key_type)} is no key type: {fix}")
    return codec


def _codec_of_subclass(key_type: Any) -> KeyCodec | None:
    """Return the codec of a subclass, NewType or Literal of one key type, or None."""
    plain = plain_types(key_type)
    if plain is None or len(plain) != 1:
        return None
    (only,) = plain
    # bool before int, of which it is a subclass.
    for base in (bool, str, bytes, int, tuple):
        if issubclass(only, base):
            return _CODECS[base]
    return None


def _encode_each(encode: Callable[[Any], bytes], keys: Sequence[Any]) -> list[bytes]:
    try:
        return list(map(encode, keys))
    except KeyTypeError:
        pass
    column: list[bytes] = []
    for index, key in enumerate(keys):
        try:
            column.append(encode(key))
        except KeyTypeError as error:
            raise KeyTypeError(error.message, index=index) from error.__cause__
    return column


def _plain_tuple(key: tuple[Any, ...], depth: int) -> tuple[Any, ...]:
    """Return a tuple of exact key types, equal to `key`; refuse anything else."""
    if depth > TUPLE_DEPTH_MAX:
        raise KeyTypeError(
            f"the key is nested more than {TUPLE_DEPTH_MAX} deep; flatten the tuple"
        )
    return tuple(
        part if type(part) in _LEAVES else _plain_part(part, depth) for part in key
    )


def _plain_part(part: Any, depth: int) -> Any:
    if isinstance(part, tuple):
        return _plain_tuple(part, depth + 1)
    # The methods of the base classes, since an Enum's own str() is its name.
    if isinstance(part, str):
        return str.__str__(part)
    if isinstance(part, int):
        return int(part)
    if isinstance(part, float):
        raise KeyTypeError(f"the key holds a float: {_FLOAT_FIX}")
    raise KeyTypeError(
        f"the key holds a {hint_name(type(part))}; a tuple key holds str, bytes,"
        " int, bool and tuples only"
    )


def _unpack(data: bytes, name: str, key_type: Any) -> Any:
    try:
        key = msgspec.msgpack.decode(data)
    except ValueError as error:
        raise _not_canonical(data, name) from error
    if key_type is tuple and type(key) is list:
        return tuple(key)
    if type(key) is not key_type:
        raise _not_canonical(data, name)
    return key


def _tuple_of(parts: Sequence[Any], data: bytes, depth: int) -> tuple[Any, ...]:
    key: list[Any] = []
    for part in parts:
        if type(part) is list and depth < TUPLE_DEPTH_MAX:
            key.append(_tuple_of(part, data, depth + 1))
        elif type(part) in _LEAVES:
            key.append(part)
        else:
            raise _not_canonical(data, "tuple")
    return tuple(key)


def _wrong_type(key: object, expected: str) -> KeyTypeError:
    got = hint_name(type(key))
    if isinstance(key, float):
        return KeyTypeError(f"the key is a float: {_FLOAT_FIX}")
    if key is None:
        return KeyTypeError(
            f"the key is None, expected {expected}: filter out records without a key"
            " before key_by, or return a key for them"
        )
    if got in ("str", "bytes", "int", "bool", "tuple"):
        fix = f"declare key_by(..., key={got}) or return a {expected}"
    elif got == "list":
        fix = "return tuple(...) and declare key_by(..., key=tuple)"
    else:
        fix = "return a str, bytes, int, bool or tuple, and say which with key="
    return KeyTypeError(f"the key is of type {got}, expected {expected}: {fix}")


def _int_too_large() -> KeyTypeError:
    return KeyTypeError(
        "the key is or holds an int outside -2^63 to 2^64 - 1: use str(...) of it"
    )


def _lone_surrogate() -> KeyTypeError:
    return KeyTypeError(
        "the key holds a lone surrogate, which UTF-8 does not have: use bytes keys"
    )


def _not_canonical(data: bytes, name: str) -> KeyTypeError:
    return KeyTypeError(
        f"{len(data)} bytes that are no key of type {name}; were they written with"
        " another key type?"
    )
