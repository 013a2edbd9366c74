"""The codecs of values: round trips, exact types, errors that name index and fix."""

import dataclasses
import enum
import typing
from typing import Any, NamedTuple

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

import bettong as bt
from bettong.codecs import infer_codec
from bettong_proto.plugin.v1 import batch_pb2


@dataclasses.dataclass
class Order:
    symbol: str = ""
    size: int = 0


@dataclasses.dataclass
class RushOrder(Order):
    fee: int = 0


class Quote(msgspec.Struct):
    bid: float
    ask: float


class Pair(NamedTuple):
    left: int
    right: str


class Color(enum.Enum):
    RED = "red"


class Unknown:
    """Nothing that msgspec knows."""


JSON_LIKE = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False)
    | st.text()
    | st.binary(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner),
    max_leaves=8,
)


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"]))))
def test_text_comes_back(values: list[str]) -> None:
    assert bt.text.decode_many(bt.text.encode_many(values)) == values
    assert [bt.text.encode(value) for value in values] == bt.text.encode_many(values)


@given(st.lists(st.binary()))
def test_raw_bytes_are_the_wire_bytes(values: list[bytes]) -> None:
    assert bt.raw_bytes.encode_many(values) == values
    assert bt.raw_bytes.decode_many(values) == values


@given(st.lists(JSON_LIKE))
def test_untyped_msgpack_comes_back(values: list[Any]) -> None:
    column = bt.msgpack.encode_many(values)

    assert bt.msgpack.decode_many(column) == values
    assert [bt.msgpack.decode(data) for data in column] == values


@pytest.mark.parametrize(
    ("value_type", "values", "name"),
    [
        (Order, [Order("A", 1), Order()], "msgpack:Order"),
        (Quote, [Quote(1.0, 2.5)], "msgpack:Quote"),
        (Pair, [Pair(1, "a")], "msgpack:Pair"),
        (Color, [Color.RED], "msgpack:Color"),
        (tuple[int, str], [(1, "a")], "msgpack:tuple[int, str]"),
        (tuple[Order, ...], [(Order("A", 1),), ()], "msgpack:tuple[Order, ...]"),
        (dict[int, Order], [{1: Order("A", 1)}], "msgpack:dict[int, Order]"),
        (set[int], [{1, 2}], "msgpack:set[int]"),
        (int | None, [1, None], "msgpack:int | None"),
        (str | int, ["a", 1], "msgpack:str | int"),
        (typing.Literal["a", "b"], ["a"], "msgpack:Literal['a', 'b']"),
        (float, [1.5, 2.0], "msgpack:float"),
        (bool, [True, False], "msgpack:bool"),
    ],
)
def test_typed_msgpack_gives_back_the_type(
    value_type: Any, values: list[Any], name: str
) -> None:
    codec = bt.msgpack(value_type)

    again = codec.decode_many(codec.encode_many(values))

    assert again == values
    assert [type(value) for value in again] == [type(value) for value in values]
    assert codec.name == name


def test_msgpack_of_float_takes_ints_and_gives_floats() -> None:
    codec = bt.msgpack(float)

    (again,) = codec.decode_many(codec.encode_many([3]))

    assert (again, type(again)) == (3.0, float)


@pytest.mark.parametrize(
    "value", [(1, 2), {1}, Order(), Quote(1, 2), Pair(1, "a"), Color.RED, Unknown()]
)
def test_untyped_msgpack_refuses_what_would_come_back_as_something_else(
    value: object,
) -> None:
    with pytest.raises(bt.CodecError, match=r"codec=bt\.msgpack\(MyType\)"):
        bt.msgpack.encode(value)
    with pytest.raises(bt.CodecError, match=r"value 2: .*bt\.msgpack\(MyType\)") as e:
        bt.msgpack.encode_many([1, "a", value])

    assert e.value.index == 2


@pytest.mark.parametrize(
    ("value_type", "value"),
    [(Order, RushOrder()), (int, True), (tuple[int, str], Pair(1, "a")), (str, 1)],
)
def test_typed_msgpack_refuses_another_type_even_a_subclass(
    value_type: Any, value: object
) -> None:
    codec = bt.msgpack(value_type)

    with pytest.raises(bt.CodecError, match=type(value).__name__):
        codec.encode(value)
    with pytest.raises(bt.CodecError, match="value 0"):
        codec.encode_many([value])


@pytest.mark.parametrize("value_type", [Unknown, list[Unknown], Order | Quote | Pair])
def test_msgpack_refuses_a_type_that_it_cannot_read_back(value_type: Any) -> None:
    with pytest.raises(bt.CodecError, match="pickled"):
        bt.msgpack(value_type)


def test_typed_msgpack_names_the_value_that_it_cannot_write() -> None:
    with pytest.raises(bt.CodecError, match=r"value 1: .*int"):
        bt.msgpack.encode_many([1, 2**64])
    with pytest.raises(bt.CodecError, match=r"value 0: .*Order"):
        bt.msgpack(Order).encode_many([Order(typing.cast("str", Unknown()))])


@pytest.mark.parametrize(
    ("codec", "bad"),
    [
        (bt.text, b"\xff"),
        (bt.msgpack, b"\xc1"),
        (bt.msgpack(Order), b"\xa1a"),
        (bt.json, b"{"),
        (bt.protobuf(batch_pb2.Credit), b"\xff"),
        (bt.pickled(), b"no pickle"),
    ],
    ids=lambda part: getattr(part, "name", None),
)
def test_bytes_of_another_codec_are_a_codec_error_with_the_index(
    codec: bt.Codec, bad: bytes
) -> None:
    with pytest.raises(bt.CodecError):
        codec.decode(bad)
    with pytest.raises(bt.CodecError) as caught:
        codec.decode_many([bad])

    assert caught.value.index == 0
    assert caught.value.code is bt.ErrorCode.CODEC


@pytest.mark.parametrize("value", [1, b"bytes", None, "\ud800"])
def test_text_takes_only_what_utf8_has(value: object) -> None:
    with pytest.raises(bt.CodecError):
        bt.text.encode(value)
    with pytest.raises(bt.CodecError, match="value 1"):
        bt.text.encode_many(["fine", value])


@pytest.mark.parametrize("value", ["text", bytearray(b"a"), None])
def test_raw_bytes_takes_only_bytes(value: object) -> None:
    with pytest.raises(bt.CodecError, match=r"value 0: .*takes bytes"):
        bt.raw_bytes.encode_many([value])


def test_json_writes_text_and_a_type_reads_it_back() -> None:
    assert bt.json.encode(Order("A", 1)) == b'{"symbol":"A","size":1}'
    assert bt.json().name == "json"
    assert bt.json(Order).name == "json:Order"
    assert bt.json(Order).decode(b'{"symbol":"A","size":1}') == Order("A", 1)


def test_protobuf_takes_one_message_class() -> None:
    codec = bt.protobuf(batch_pb2.Credit)
    messages = [batch_pb2.Credit(output=1, records=2), batch_pb2.Credit()]

    assert codec.name == "protobuf:bettong.plugin.v1.Credit"
    assert codec.decode_many(codec.encode_many(messages)) == messages
    with pytest.raises(bt.CodecError, match=r"value 0: .*Route"):
        codec.encode_many([batch_pb2.Route()])
    with pytest.raises(bt.CodecError, match="generated protobuf class"):
        bt.protobuf(typing.cast("Any", Order))


def test_pickled_keeps_any_object_but_no_lambda() -> None:
    codec = bt.pickled()

    (again,) = codec.decode_many(codec.encode_many([{"a": {1, (2, 3)}}]))

    assert again == {"a": {1, (2, 3)}}
    with pytest.raises(bt.CodecError, match="cannot be pickled"):
        codec.encode(lambda: None)


@pytest.mark.parametrize(
    ("hint", "name"),
    [
        (str, "text"),
        (bytes, "bytes"),
        (Any, "msgpack"),
        (Order, "msgpack:Order"),
        (list[str], "msgpack:list[str]"),
        (str | None, "msgpack:str | None"),
        (batch_pb2.Credit, "protobuf:bettong.plugin.v1.Credit"),
    ],
)
def test_codec_of_a_hint(hint: Any, name: str) -> None:
    assert infer_codec(hint).name == name


def test_name_of_a_local_class_does_not_tell_where_it_was_made() -> None:
    @dataclasses.dataclass
    class Local:
        x: int = 0

    assert bt.msgpack(Local).name == "msgpack:Local"
