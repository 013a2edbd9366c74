"""The JSON object that a dead-letter sink gets (PROTOCOL.md, DL-6)."""

import base64
import dataclasses
from typing import Any

import pytest

import bettong as bt
from bettong.dead_letter import STACK_CHARS_MAX, VALUE_BYTES_MAX, build_dead_letter


@dataclasses.dataclass
class Order:
    symbol: str


class Opaque:
    def __repr__(self) -> str:
        return "<opaque>"


class Hostile:
    def __repr__(self) -> str:
        raise RuntimeError("no repr")


def raised() -> Exception:
    try:
        int("x")
    except ValueError as error:
        return error
    raise AssertionError("int takes no x")


def letter(**parts: Any) -> dict[str, Any]:
    options = {"step": "parse", "key": None, "value": None, "error": raised()}
    return build_dead_letter(**(options | parts))


def test_letter_has_all_that_a_repair_needs() -> None:
    found = letter(key=b"k", value="12x", stream="file.txt", position=b"\xff")

    stack = found.pop("stack")
    assert found == {
        "step": "parse",
        "key": "k",
        "value": "12x",
        "error": "ValueError: invalid literal for int() with base 10: 'x'",
        "stream": "file.txt",
        "position": {"base64": "/w=="},
    }
    assert stack.startswith("Traceback")
    assert "int(" in stack


@pytest.mark.parametrize(
    ("value", "written"),
    [
        (b"text", "text"),
        (b"\xff\x00", {"base64": "/wA="}),
        ("\ud800", {"base64": base64.b64encode(b"\xed\xa0\x80").decode()}),
        (None, None),
        (True, True),
        (1.5, 1.5),
        (Order("A"), {"symbol": "A"}),
        ((1, {"a": b"b"}), [1, {"a": "Yg=="}]),
        (Opaque(), {"repr": "<opaque>"}),
        ([Opaque()], {"repr": "[<opaque>]"}),
        (Hostile(), {"repr": "<Hostile; its repr raised RuntimeError>"}),
        (2**70, 2**70),
    ],
)
def test_value_is_written_as_json(value: object, written: object) -> None:
    found = letter(value=value)

    assert found["value"] == written
    if value != 2**70:
        assert bt.json.decode(bt.json.encode(found))["value"] == written


def test_record_without_key_and_origin() -> None:
    found = letter()

    assert (found["key"], found["stream"], found["position"]) == (None, "", "")


def test_what_is_large_is_cut_and_says_so() -> None:
    deep = ValueError("deep")
    deep.add_note("x" * 2 * STACK_CHARS_MAX)

    found = letter(value=b"a" * (VALUE_BYTES_MAX + 1), error=deep)

    assert found["value"]["bytes"] == VALUE_BYTES_MAX + 1
    assert base64.b64decode(found["value"]["base64_start"]) == b"a" * VALUE_BYTES_MAX
    assert len(found["stack"]) == STACK_CHARS_MAX
    assert isinstance(letter(value=b"a" * VALUE_BYTES_MAX)["value"], str)
