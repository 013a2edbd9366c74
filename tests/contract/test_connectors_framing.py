"""Framing: what is joined comes apart again, however the bytes are cut."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

import bettong as bt
from bettong_connectors import framing
from bettong_connectors.framing import FramingError, LineDecoder, new_decoder
from bettong_connectors.text_or_bytes import TextOrBytesCodec

FRAMINGS: list[framing.Framing] = ["lines", "length4"]
LINES = st.lists(st.text(st.characters(exclude_characters="\n", codec="utf-8")))


def decode(decoder: framing.Decoder, pieces: list[bytes]) -> list[object]:
    values: list[object] = []
    for piece in pieces:
        decoder.feed(piece)
        while taken := decoder.take():
            values += taken
    return values + decoder.take_last()


def cut(data: bytes, places: list[int]) -> list[bytes]:
    bounds = [0, *sorted(place % (len(data) + 1) for place in places), len(data)]
    return [data[a:b] for a, b in itertools.pairwise(bounds)]


@pytest.mark.parametrize("kind", FRAMINGS)
@given(values=LINES, places=st.lists(st.integers(0, 10_000), max_size=8))
def test_every_cut_of_the_bytes_gives_the_same_records(
    kind: framing.Framing, values: list[str], places: list[int]
) -> None:
    data = framing.join(kind, TextOrBytesCodec(kind).encode_many(values))
    decoder = new_decoder(kind, bt.text, 1 << 20)

    assert decode(decoder, cut(data, places)) == values
    assert decoder.offset == len(data)
    assert decoder.buffered_bytes() == 0


@pytest.mark.parametrize("kind", FRAMINGS)
def test_one_take_gives_at_most_8192_records(kind: framing.Framing) -> None:
    records = [b"%d" % number for number in range(20_000)]
    decoder = new_decoder(kind, bt.raw_bytes, 1 << 20)
    decoder.feed(framing.join(kind, records))

    takes = [decoder.take(), decoder.take(), decoder.take(), decoder.take()]

    assert [len(taken) for taken in takes] == [8192, 8192, 3616, 0]
    assert [record for taken in takes for record in taken] == records


def test_last_line_needs_no_newline() -> None:
    assert decode(new_decoder("lines", bt.text, 99), [b"a\nb"]) == ["a", "b"]


def test_empty_lines_are_records() -> None:
    assert decode(new_decoder("lines", bt.text, 99), [b"\n\na\n"]) == ["", "", "a"]


def test_input_that_ends_inside_a_frame_is_faulty() -> None:
    decoder = new_decoder("length4", bt.text, 99)

    with pytest.raises(FramingError, match="5 bytes are left") as caught:
        decode(decoder, [b"\0\0\0\1a", b"\0\0\0\2b"])

    assert caught.value.offset == 5


def test_only_the_declared_newline_cuts() -> None:
    crlf = LineDecoder(bt.text, newline=b"\r\n")

    assert decode(crlf, [b"a\nb\r", b"\nc\rd\r\n"]) == ["a\nb", "c\rd"]
    assert decode(LineDecoder(bt.text), [b"a\r\nb\n"]) == ["a\r", "b"]


@pytest.mark.parametrize(
    ("kind", "good", "oversize"),
    [
        ("lines", b"12345\n", b"123456\n"),
        ("lines", b"12345\n", b"123456"),
        ("length4", b"\0\0\0\x0512345", b"\0\0\0\x06"),
        ("length4", b"\0\0\0\x0512345", b"GET / HTTP/1.1\r\n"),
    ],
)
@pytest.mark.parametrize("is_cut", [False, True])
def test_record_over_the_limit_is_refused_after_those_before_it(
    kind: framing.Framing, good: bytes, oversize: bytes, is_cut: bool
) -> None:
    decoder = new_decoder(kind, bt.raw_bytes, 5)
    pieces = cut(good * 2 + oversize, [len(good), 2 * len(good)] if is_cut else [])
    taken: list[object] = []

    def take_all() -> None:
        for piece in pieces:
            decoder.feed(piece)
            while values := decoder.take():
                taken.extend(values)

    with pytest.raises(FramingError, match="over the limit of 5 bytes") as caught:
        take_all()

    assert taken == [b"12345", b"12345"]
    assert caught.value.offset == 2 * len(good)
    assert caught.value.code is bt.ErrorCode.TOO_LARGE


@pytest.mark.parametrize(
    ("kind", "data", "codec"),
    [
        ("lines", b"a\nbc\nd\xff\nok\n", bt.text),
        ("lines", b'"a"\n"bc"\n{\n1\n', bt.json()),
        ("length4", b"\0\0\0\1a\0\0\0\2bc\0\0\0\1\xff\0\0\0\1d", bt.text),
    ],
)
def test_record_that_the_codec_cannot_read_is_named_by_its_offset(
    kind: framing.Framing, data: bytes, codec: bt.Codec
) -> None:
    decoder = new_decoder(kind, codec, 99)
    decoder.feed(data)

    assert decoder.take() == ["a", "bc"]
    read = decoder.offset
    with pytest.raises(FramingError) as caught:
        decoder.take()
    assert (
        caught.value.offset
        == read
        == data.index(b"bc")
        + len(b"bc")
        + (1 if codec is bt.text and kind == "lines" else 2 if kind == "lines" else 0)
    )
    assert caught.value.code is bt.ErrorCode.CODEC


@pytest.mark.parametrize("kind", FRAMINGS)
def test_outputs_are_str_or_bytes(kind: framing.Framing) -> None:
    codec = TextOrBytesCodec(kind)

    assert codec.encode_many(["é", b"\xff", ""]) == ["é".encode(), b"\xff", b""]
    assert codec.encode_many([]) == []
    with pytest.raises(bt.CodecError, match=r"value 1: .*got int; put a map"):
        codec.encode_many(["a", 1])
    with pytest.raises(bt.CodecError, match="surrogate"):
        codec.encode("\ud800")


@pytest.mark.parametrize("values", [["a\n"], ["a", "b\nc"], [b"a", b"\n"]])
def test_output_with_a_newline_is_refused_where_it_would_be_two_lines(
    values: list[object],
) -> None:
    with pytest.raises(bt.CodecError, match="holds a newline"):
        TextOrBytesCodec("lines").encode_many(values)

    assert len(TextOrBytesCodec("length4").encode_many(values)) == len(values)


def test_unknown_framing_is_refused_when_the_program_is_built() -> None:
    with pytest.raises(bt.GraphError, match="'length4', not 'json'"):
        bt.TcpSource("127.0.0.1:0", framing="json")  # type: ignore[arg-type]
