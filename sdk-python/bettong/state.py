"""Turns the `state=` of a stateful step into a checked `StateSpec`."""

import enum
from collections.abc import Callable
from typing import Any, get_origin

import msgspec

from bettong.codec import Codec
from bettong.codecs import infer_codec
from bettong.errors import CodecError, GraphError
from bettong.hints import hint_name, return_hint
from bettong.plan import StateSpec

_IMMUTABLE = (int, float, complex, str, bytes, bool, tuple, frozenset, enum.Enum)


def build_state(
    state: Callable[[], Any],
    *,
    step: str,
    codec: Codec | None,
    schema_version: int,
) -> StateSpec:
    """Check that `state` makes a state that its codec keeps, and describe it.

    Raises:
        GraphError: it cannot be made without arguments, is None or shared between
            keys, or does not come back from its codec as it was.
    """
    fresh = _make(state, step)
    if not is_immutable(type(fresh)) and _make(state, step) is fresh:
        raise GraphError(
            "state= gives the same object each time, which all keys would share:"
            " make a new one in each call",
            step=step,
        )
    if codec is None:
        codec = _infer(state, fresh, step)
    _check_codec(codec, fresh, step)
    return StateSpec(
        name=step, codec=codec, factory=state, schema_version=schema_version
    )


def is_immutable(state_type: type) -> bool:
    """Return whether objects of the type cannot be changed in place."""
    if issubclass(state_type, _IMMUTABLE):
        return True
    parameters = getattr(state_type, "__dataclass_params__", None)
    if parameters is not None:
        return bool(parameters.frozen)
    if issubclass(state_type, msgspec.Struct):
        return bool(state_type.__struct_config__.frozen)
    return False


def state_type_of(state: StateSpec) -> type:
    """Return the type of a fresh state."""
    return type(state.factory())


def _make(state: Callable[[], Any], step: str) -> Any:
    if not callable(state):
        raise GraphError(
            f"state={state!r} is a value: give the type, or a function that makes a"
            " new state for each key",
            step=step,
        )
    try:
        fresh = state()
    except Exception as error:  # the user's constructor may raise anything
        raise GraphError(
            f"state={_name(state)} cannot be made without arguments:"
            f" {type(error).__name__}: {error}. Give each field a default, or pass"
            " state=lambda: ... that makes one",
            step=step,
        ) from error
    if fresh is None:
        raise GraphError(
            f"state={_name(state)} makes None, which means that there is no state:"
            " return an object",
            step=step,
        )
    return fresh


def _infer(state: Callable[[], Any], fresh: Any, step: str) -> Codec:
    hint = state if isinstance(state, type) or get_origin(state) else return_hint(state)
    try:
        return infer_codec(type(fresh) if hint is Any else hint)
    except CodecError as error:
        raise GraphError(f"no codec for its state: {error}", step=step) from error


def _check_codec(codec: Codec, fresh: Any, step: str) -> None:
    try:
        again = codec.decode(codec.encode(fresh))
    except CodecError as error:
        raise GraphError(
            f"the codec of its state cannot keep a fresh one: {error}", step=step
        ) from error
    if type(again) is not type(fresh):
        name = hint_name(type(fresh))
        raise GraphError(
            f'its state is a {name}, but codec "{codec.name}" gives back a'
            f" {hint_name(type(again))}: declare codec=bt.msgpack({name})",
            step=step,
        )


def _name(state: Any) -> str:
    if isinstance(state, type) or get_origin(state):
        return hint_name(state)
    return getattr(state, "__name__", repr(state))
