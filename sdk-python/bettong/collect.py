"""The function behind `KeyedStream.collect`: values of a key gathered into lists."""

from collections.abc import Callable
from typing import Any

from bettong.context import Context


def collector(max_count: int) -> Callable[..., list[Any] | None]:
    """Return a stateful function that emits each `max_count` values as one list."""

    def collect(
        key: Any, value: Any, state: list[Any], context: Context[Any, list[Any]]
    ) -> list[Any] | None:
        state.append(value)
        if len(state) < max_count:
            return None
        context.delete_state()
        return state

    return collect
