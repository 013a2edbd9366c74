"""Reads the type hints of user functions, to choose codecs and to check values.

A hint that is absent or cannot be resolved is `Any`: nothing is known, nothing is
guessed. Relies on annotations only; no function is called.
"""

import collections.abc
import inspect
import types
import typing
from collections.abc import Callable
from typing import Any

# Return hints of builtins that are often steps and carry no annotations.
_BUILTIN_RETURNS: dict[Any, Any] = {
    str.split: list[str],
    str.rsplit: list[str],
    str.splitlines: list[str],
    str.strip: str,
    str.lstrip: str,
    str.rstrip: str,
    str.lower: str,
    str.upper: str,
    str.casefold: str,
    str.title: str,
    str.capitalize: str,
    str.encode: bytes,
    bytes.decode: str,
    bytes.split: list[bytes],
    bytes.splitlines: list[bytes],
    bytes.strip: bytes,
    bytes.lower: bytes,
    bytes.upper: bytes,
    len: int,
    repr: str,
}

_ITERABLES = (
    collections.abc.Iterable,
    collections.abc.Iterator,
    collections.abc.Generator,
    collections.abc.Sequence,
    collections.abc.Collection,
    list,
    set,
    frozenset,
)


def return_hint(function: Callable[..., Any]) -> Any:
    """Return what `function` is annotated to return; a class returns itself."""
    if isinstance(function, type):
        return function
    try:
        if function in _BUILTIN_RETURNS:
            return _BUILTIN_RETURNS[function]
    except TypeError:  # a callable that is not hashable
        return Any
    try:
        hints = typing.get_type_hints(_annotated(function), include_extras=True)
    except (NameError, TypeError, AttributeError, SyntaxError):
        return Any
    return known(hints.get("return", Any))


def known(hint: Any) -> Any:
    """Return `hint`, or Any if it says nothing about a value."""
    if hint is object or isinstance(hint, typing.TypeVar | str | typing.ForwardRef):
        return Any
    return hint


def item_hint(hint: Any) -> Any:
    """Return the hint of the items of an iterable; Any if it says none."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in _ITERABLES and arguments:
        return known(arguments[0])
    if origin is tuple and len(arguments) == 2 and arguments[1] is Ellipsis:
        return known(arguments[0])
    return str if hint is str else Any


def without_none(hint: Any) -> Any:
    """Return `hint` less its None: `T | None` becomes T, None becomes Any."""
    if hint is None or hint is type(None):
        return Any
    if not _is_union(hint):
        return hint
    rest = [part for part in typing.get_args(hint) if part is not type(None)]
    union = rest[0]
    for part in rest[1:]:
        union = union | part
    return union


def plain_types(hint: Any) -> frozenset[type] | None:
    """Return the exact types that values of `hint` have; None: any may come."""
    if hint is Any or hint is object:
        return None
    if hint is None:
        return frozenset((type(None),))
    if _is_union(hint):
        parts = [plain_types(part) for part in typing.get_args(hint)]
        if any(part is None for part in parts):
            return None
        return frozenset().union(*(part for part in parts if part))
    origin = typing.get_origin(hint)
    if origin is typing.Annotated:
        return plain_types(typing.get_args(hint)[0])
    if origin is typing.Literal:
        return frozenset(type(value) for value in typing.get_args(hint))
    if isinstance(hint, typing.NewType):
        return plain_types(hint.__supertype__)
    if typing.is_typeddict(hint):
        return frozenset((dict,))
    concrete = origin or hint
    if not isinstance(concrete, type):
        return None
    if concrete is float:
        return frozenset((float, int))
    if inspect.isabstract(concrete) or concrete.__module__ == "collections.abc":
        return None
    return frozenset((concrete,))


def hint_name(hint: Any) -> str:
    """Return a name that is the same in every process and free of module paths."""
    if hint is Any:
        return "Any"
    if hint is None or hint is type(None):
        return "None"
    if hint is Ellipsis:
        return "..."
    if _is_union(hint):
        return " | ".join(hint_name(part) for part in typing.get_args(hint))
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Literal:
        return f"Literal[{', '.join(repr(value) for value in arguments)}]"
    if origin is typing.Annotated:
        return hint_name(arguments[0])
    if origin is not None:
        inner = ", ".join(hint_name(argument) for argument in arguments)
        return f"{hint_name(origin)}[{inner}]"
    name = getattr(hint, "__qualname__", None) or getattr(hint, "__name__", None)
    return str(name or hint).rpartition("<locals>.")[2]


def _is_union(hint: Any) -> bool:
    return typing.get_origin(hint) in (typing.Union, types.UnionType)


def _annotated(function: Callable[..., Any]) -> Any:
    """Return the object that holds the annotations of a callable."""
    if isinstance(function, types.FunctionType | types.MethodType):
        return function
    partial_of = getattr(function, "func", None)
    if partial_of is not None:
        return _annotated(partial_of)
    if isinstance(function, types.BuiltinFunctionType | types.MethodDescriptorType):
        return function
    return type(function).__call__
