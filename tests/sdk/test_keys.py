"""The key profile: distinct keys have distinct bytes, and every key comes back."""

import enum
import zlib
from typing import Any, Literal, NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

import bettong as bt
from bettong.keys import INT_MAX, INT_MIN, TUPLE_DEPTH_MAX, key_codec, partition_of

TEXT = st.text(st.characters(exclude_categories=["Cs"]))
INTS = st.integers(INT_MIN, INT_MAX)
TUPLES = st.recursive(
    TEXT | INTS | st.binary() | st.booleans(),
    lambda inner: st.lists(inner, max_size=4).map(tuple),
    max_leaves=10,
).map(lambda part: part if isinstance(part, tuple) else (part,))

KEYS_BY_TYPE = [
    (str, TEXT),
    (bytes, st.binary()),
    (int, INTS),
    (bool, st.booleans()),
    (tuple, TUPLES),
]


class Level(enum.IntEnum):
    HIGH = 3


class Color(str, enum.Enum):  # noqa: UP042
    RED = "red"


class Point(NamedTuple):
    x: int
    y: int


def identity(key: Any) -> Any:
    """Return a key with its types, since 1 == True and they are two keys."""
    if isinstance(key, tuple):
        return tuple(identity(part) for part in key)
    return type(key), key


@pytest.mark.parametrize(("key_type", "keys"), KEYS_BY_TYPE)
def test_keys_come_back_and_distinct_keys_have_distinct_bytes(
    key_type: type, keys: st.SearchStrategy[Any]
) -> None:
    codec = key_codec(key_type)

    @given(st.lists(keys, max_size=20))
    def check(column: list[Any]) -> None:
        encoded = codec.encode_many(column)

        assert encoded == [codec.encode(key) for key in column]
        again = codec.decode_many(encoded)
        assert [identity(key) for key in again] == [identity(key) for key in column]
        assert len({*encoded}) == len({identity(key) for key in column})

    check()


@pytest.mark.parametrize(
    ("key_type", "key", "why"),
    [
        (str, 1, "key=int"),
        (str, b"a", "key=bytes"),
        (str, None, "is None"),
        (str, 1.5, "floats are no keys"),
        (str, ["a"], r"tuple\(\.\.\.\)"),
        (str, "\ud800", "surrogate"),
        (bytes, "a", "key=str"),
        (bytes, bytearray(b"a"), "bytearray"),
        (int, True, "key=bool"),
        (int, 1.0, "floats are no keys"),
        (int, 2**64, r"2\^64"),
        (int, -(2**63) - 1, r"2\^63"),
        (bool, 1, "key=int"),
        (tuple, "a", "key=str"),
        (tuple, (1.0,), "floats are no keys"),
        (tuple, (("a", None),), "holds a None"),
        (tuple, (1, ["a"]), "list"),
        (tuple, (2**64,), r"2\^64"),
        (tuple, ("\ud800",), "surrogate"),
    ],
)
def test_what_is_no_key_of_its_type_is_refused_with_the_fix(
    key_type: type, key: object, why: str
) -> None:
    codec = key_codec(key_type)

    with pytest.raises(bt.KeyTypeError, match=why) as caught:
        codec.encode(key)
    with pytest.raises(bt.KeyTypeError, match=f"key 0: .*{why}"):
        codec.encode_many([key])

    assert caught.value.code is bt.ErrorCode.BAD_KEY


def nested(depth: int) -> Any:
    key: Any = 1
    for _ in range(depth):
        key = (key,)
    return key


def test_tuples_nest_up_to_the_limit() -> None:
    codec = key_codec(tuple)
    deepest = nested(TUPLE_DEPTH_MAX)

    assert codec.decode(codec.encode(deepest)) == deepest
    with pytest.raises(bt.KeyTypeError, match="16 deep"):
        codec.encode(nested(TUPLE_DEPTH_MAX + 1))
    with pytest.raises(bt.KeyTypeError, match="no key of type tuple"):
        codec.decode(b"\x91" * (TUPLE_DEPTH_MAX + 1) + b"\x01")


def test_subclasses_have_the_bytes_of_their_base() -> None:
    assert key_codec(int).encode_many([Level.HIGH, 3]) == [b"\x03", b"\x03"]
    assert key_codec(str).encode(Color.RED) == b"red"
    tuples = key_codec(tuple)
    assert tuples.encode(Point(1, 2)) == tuples.encode((1, 2))
    assert tuples.encode((Color.RED, Level.HIGH)) == tuples.encode(("red", 3))


@pytest.mark.parametrize(
    ("key_type", "data"),
    [
        (str, b"\xff"),
        (int, b""),
        (int, b"\xc3"),
        (int, b"\x01\x01"),
        (int, b"\xcb" + bytes(8)),
        (bool, b"\x01"),
        (tuple, b"\x01"),
        (tuple, b"\x91\xc0"),
        (tuple, b"\x91\x80"),
        (tuple, b"\x92\x01"),
    ],
)
def test_bytes_of_another_key_type_are_refused(key_type: type, data: bytes) -> None:
    with pytest.raises(bt.KeyTypeError, match="another key type"):
        key_codec(key_type).decode(data)
    with pytest.raises(bt.KeyTypeError, match="another key type"):
        key_codec(key_type).decode_many([data])


@pytest.mark.parametrize(
    ("hint", "name"),
    [
        (tuple[str, int], "tuple"),
        (Point, "tuple"),
        (Level, "int"),
        (Color, "str"),
        (Literal["a", "b"], "str"),
    ],
)
def test_key_type_of_a_hint(hint: Any, name: str) -> None:
    assert key_codec(hint).name == name


@pytest.mark.parametrize("hint", [float, list, None, str | None, str | int, object])
def test_hint_that_is_no_key_type_is_refused(hint: Any) -> None:
    with pytest.raises(bt.KeyTypeError, match="no key type"):
        key_codec(hint)


@given(st.binary(), st.integers(1, 65_536))
def test_partition_is_crc32_modulo_partitions(key: bytes, partitions: int) -> None:
    assert partition_of(key, partitions) == zlib.crc32(key) % partitions
