"""The record that a dead-letter sink gets for a record that user code refused.

One JSON object, the same from every SDK (PROTOCOL.md, DL-6): people and scripts
repair and replay by it.
"""

import base64
import traceback
from typing import Any

import msgspec

STACK_CHARS_MAX = 16 * 1024
VALUE_BYTES_MAX = 256 * 1024


def build_dead_letter(
    *,
    step: str,
    key: bytes | None,
    value: object,
    error: BaseException,
    stream: str = "",
    position: bytes = b"",
) -> dict[str, Any]:
    """Describe a failed record as an object for the `json` codec.

    Args:
        step: the step whose function raised.
        key: canonical bytes of the key; None: the record has none.
        value: what the step got, decoded or as bytes.
        error: what was raised, with its traceback.
        stream: the stream that the record was read from; empty: unknown.
        position: the position that covers the record; empty: unknown.

    Returns:
        The members step, key, value, error, stack, stream, position. Bytes are text
        if they are UTF-8, else {"base64": …}; beyond 256 KiB {"base64_start": …,
        "bytes": length}. The stack keeps its last 16 KiB.
    """
    stack = "".join(traceback.format_exception(error))
    return {
        "step": step,
        "key": None if key is None else _bytes_as_json(key),
        "value": _as_json(value),
        "error": f"{type(error).__name__}: {error}",
        "stack": stack[-STACK_CHARS_MAX:],
        "stream": stream,
        "position": _bytes_as_json(position),
    }


def _as_json(value: object) -> Any:
    if value is None or isinstance(value, bool | int | float):
        return value
    if isinstance(value, bytes):
        return _bytes_as_json(value)
    if isinstance(value, str):
        return _bytes_as_json(value.encode("utf-8", "surrogatepass"))
    try:
        encoded = msgspec.json.encode(value)
    except (TypeError, ValueError, OverflowError, RecursionError):
        return {"repr": _repr(value)}
    if len(encoded) > VALUE_BYTES_MAX:
        return _bytes_as_json(encoded)
    return msgspec.json.decode(encoded)


def _bytes_as_json(data: bytes) -> Any:
    if len(data) > VALUE_BYTES_MAX:
        start = base64.b64encode(data[:VALUE_BYTES_MAX]).decode()
        return {"base64_start": start, "bytes": len(data)}
    try:
        return data.decode()
    except UnicodeDecodeError:
        return {"base64": base64.b64encode(data).decode()}


def _repr(value: object) -> str:
    try:
        return repr(value)[:STACK_CHARS_MAX]
    except Exception as error:  # the user's own __repr__ may raise anything
        return f"<{type(value).__name__}; its repr raised {type(error).__name__}>"
