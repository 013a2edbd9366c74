"""Checks the functions that users give to steps, before anything runs.

What is refused here would fail at the first record, or silently do the wrong thing.
"""

import functools
import inspect
import typing
from collections.abc import Callable, Iterator
from typing import Any

from bettong.errors import GraphError
from bettong.hints import return_hint

_ITERATOR_ORIGINS = tuple(
    typing.get_origin(hint)
    for hint in (
        typing.Iterator[Any],
        typing.Generator[Any, Any, Any],
        typing.Iterable[Any],
    )
)


def function_name(function: Callable[..., Any]) -> str | None:
    """Return the name of a function or class; None for a lambda."""
    while isinstance(function, functools.partial):
        function = function.func
    name = getattr(function, "__name__", None) or type(function).__name__
    return None if name == "<lambda>" else str(name)


def is_generator(function: Callable[..., Any]) -> bool:
    """Return whether calling `function` gives a generator."""
    return any(map(inspect.isgeneratorfunction, _bodies(function)))


def check_callable(function: object, step: str) -> None:
    """Raise `GraphError` unless `function` is a callable that is not async."""
    if not callable(function):
        raise GraphError(f"{function!r} is not a function", step=step)
    for body in _bodies(function):
        if inspect.iscoroutinefunction(body) or inspect.isasyncgenfunction(body):
            raise GraphError(
                "an async function: steps are called one record after another,"
                " write it as a plain def",
                step=step,
            )


def check_value_function(
    function: Callable[..., Any], step: str, *, may_generate: bool = False
) -> None:
    """Raise `GraphError` unless `function(value)` is a call that makes sense."""
    check_callable(function, step)
    if not _accepts(function, 1):
        raise GraphError(
            f"the function is called with the value alone, but {_signature(function)}"
            " takes other arguments",
            step=step,
        )
    if not may_generate and is_generator(function):
        raise GraphError(
            "a generator function here gives a generator object, not values: use"
            " flat_map, or return the value",
            step=step,
        )


def wants_context(function: Callable[..., Any], step: str, *, has_state: bool) -> bool:
    """Return whether a stateful function takes a context after its other arguments.

    It does if it has one more parameter without a default.

    Raises:
        GraphError: it takes neither number of arguments.
    """
    check_callable(function, step)
    _refuse_returned_iterator(function, step)
    arguments = ("key", "value", "state") if has_state else ("key", "value")
    required = _required(function)
    if required == len(arguments) + 1:
        if not has_state and (_parameters(function) or [])[2].name == "state":
            raise GraphError(
                f"{_signature(function)} takes a state, but this step has none: give"
                " state=..., the type that makes it",
                step=step,
            )
        return True
    if required is None or (
        required <= len(arguments) and _accepts(function, len(arguments))
    ):
        return False
    plain = ", ".join(arguments)
    because = "" if has_state else " (this step has no state=)"
    raise GraphError(
        f"the function is called as f({plain}) or f({plain}, context){because}, but"
        f" it is {_signature(function)}",
        step=step,
    )


def check_timer_function(
    function: Callable[..., Any], step: str, *, has_state: bool
) -> None:
    """Raise `GraphError` unless it can be called as an `on_timer`."""
    check_callable(function, step)
    _refuse_returned_iterator(function, step)
    arguments = "key, name, state, context" if has_state else "key, name, context"
    if not _accepts(function, arguments.count(",") + 1):
        raise GraphError(
            f"on_timer is called as f({arguments}), but it is {_signature(function)}",
            step=step,
        )


def _refuse_returned_iterator(function: Callable[..., Any], step: str) -> None:
    hint = return_hint(function)
    origin = typing.get_origin(hint) or hint
    if origin in _ITERATOR_ORIGINS and not is_generator(function):
        raise GraphError(
            "the function returns an iterator, which would be one value: yield the"
            " values, or yield from the iterator",
            step=step,
        )


def _bodies(function: Any) -> Iterator[Any]:
    """Give the callable, and what runs when it is called."""
    yield function
    if not isinstance(function, type):
        yield getattr(type(function), "__call__", None)  # noqa: B004
    wrapped = getattr(function, "func", None)
    if wrapped is not None:
        yield wrapped


def _parameters(function: Callable[..., Any]) -> list[inspect.Parameter] | None:
    """Return the parameters; None where a builtin does not tell."""
    try:
        return list(inspect.signature(function).parameters.values())
    except (ValueError, TypeError):
        return None


def _accepts(function: Callable[..., Any], count: int) -> bool:
    """Return whether `function` can be called with `count` positional arguments."""
    try:
        signature = inspect.signature(function)
    except (ValueError, TypeError):
        return True
    try:
        signature.bind(*range(count))
    except TypeError:
        return False
    return True


def _required(function: Callable[..., Any]) -> int | None:
    """Return how many positional parameters have no default; None: unknown."""
    parameters = _parameters(function)
    if parameters is None:
        return None
    if any(
        parameter.kind is parameter.KEYWORD_ONLY
        and parameter.default is parameter.empty
        for parameter in parameters
    ):
        return -1  # it cannot be called by position at all
    positional = (
        inspect.Parameter.POSITIONAL_ONLY,
        inspect.Parameter.POSITIONAL_OR_KEYWORD,
    )
    return sum(
        parameter.kind in positional and parameter.default is parameter.empty
        for parameter in parameters
    )


def _signature(function: Callable[..., Any]) -> str:
    try:
        signature = str(inspect.signature(function))
    except (ValueError, TypeError):
        signature = "(...)"
    return f"{function_name(function) or 'lambda'}{signature}"
