"""What is read from annotations, and what is left unknown."""

import functools
import typing
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from typing import Any, Literal, NewType, TypedDict, TypeVar

import pytest

from bettong.hints import hint_name, item_hint, plain_types, return_hint, without_none

T = TypeVar("T")
UserId = NewType("UserId", int)


class Row(TypedDict):
    name: str


class Doubler:
    def __call__(self, value: int) -> int:
        return value * 2


def to_int(text: str, base: int = 10) -> int:
    return int(text, base)


def same(value: T) -> T:
    return value


def anything(value: object) -> object:
    return value


@pytest.mark.parametrize(
    ("function", "hint"),
    [
        (to_int, int),
        (functools.partial(to_int, base=16), int),
        (Doubler(), int),
        (Doubler().__call__, int),
        (Doubler, Doubler),
        (float, float),
        (str.split, list[str]),
        (len, int),
        (same, Any),
        (anything, Any),
        (lambda value: value, Any),
        ("text".join, Any),
        (print, Any),
    ],
)
def test_return_hint_is_what_a_function_says_or_any(
    function: Callable[..., Any], hint: Any
) -> None:
    assert return_hint(function) == hint


def test_annotation_that_cannot_be_resolved_is_unknown() -> None:
    def local(value: int) -> int:
        return value

    local.__annotations__["return"] = "NobodyKnowsThisName"

    assert return_hint(local) is Any


@pytest.mark.parametrize(
    ("hint", "item"),
    [
        (list[int], int),
        (Iterator[str], str),
        (Generator[bytes, None, None], bytes),
        (Iterable[tuple[int, str]], tuple[int, str]),
        (Sequence[T], Any),  # type: ignore[valid-type]
        (tuple[int, ...], int),
        (tuple[int, str], Any),
        (list, Any),
        (str, str),
        (dict[str, int], Any),
        (Any, Any),
    ],
)
def test_item_hint_is_what_iterating_gives(hint: Any, item: Any) -> None:
    assert item_hint(hint) == item


@pytest.mark.parametrize(
    ("hint", "rest"),
    [
        (int | None, int),
        (typing.Optional[str], str),  # noqa: UP045
        (int | str | None, int | str),
        (None, Any),
        (int, int),
        (Any, Any),
    ],
)
def test_none_means_no_result(hint: Any, rest: Any) -> None:
    assert without_none(hint) == rest


@pytest.mark.parametrize(
    ("hint", "types"),
    [
        (int, {int}),
        (float, {int, float}),
        (int | None, {int, type(None)}),
        (list[int], {list}),
        (tuple[int, ...], {tuple}),
        (Literal["a", 1], {str, int}),
        (UserId, {int}),
        (Row, {dict}),
        (typing.Annotated[int, "metres"], {int}),
        (Doubler, {Doubler}),
        (Sequence[int], None),
        (Any, None),
        (int | Any, None),
        (object, None),
    ],
)
def test_plain_types_are_the_exact_types_of_values(
    hint: Any, types: set[type] | None
) -> None:
    assert plain_types(hint) == types


@pytest.mark.parametrize(
    ("hint", "name"),
    [
        (int, "int"),
        (Doubler, "Doubler"),
        (dict[str, list[Doubler]], "dict[str, list[Doubler]]"),
        (int | None, "int | None"),
        (tuple[int, ...], "tuple[int, ...]"),
        (Literal["a"], "Literal['a']"),
        (typing.Annotated[int, "metres"], "int"),
        (UserId, "UserId"),
        (Any, "Any"),
        (type(None), "None"),
    ],
)
def test_name_of_a_hint_holds_no_module(hint: Any, name: str) -> None:
    assert hint_name(hint) == name
