"""The codec of the sinks that write bytes: str as UTF-8, bytes as they are."""

from collections.abc import Sequence
from typing import Any

from bettong.errors import CodecError
from bettong_connectors.framing import Framing, check_framing


class TextOrBytesCodec:
    """Str or bytes to bytes; what comes back is always bytes.

    With the framing "lines", a value that holds a newline is refused: the reader of
    the output would take it for two records.
    """

    name = "text-or-bytes"
    value_type: Any = str | bytes

    def __init__(self, framing: Framing) -> None:
        check_framing(framing)
        self._are_lines = framing == "lines"

    def encode(self, value: Any) -> bytes:
        """Return the UTF-8 of a str, or the bytes themselves."""
        if isinstance(value, str):
            try:
                data = value.encode()
            except UnicodeEncodeError as error:
                raise CodecError(
                    "the text holds half a surrogate pair, which UTF-8 cannot write;"
                    " remove it in a map"
                ) from error
        elif isinstance(value, bytes):
            data = bytes(value)
        else:
            raise CodecError(
                f"this sink writes str or bytes, got {type(value).__name__}; put a"
                " map before it that makes text, such as .map(str) or"
                " .map(json.dumps)"
            )
        if self._are_lines and b"\n" in data:
            raise CodecError(
                "the output holds a newline, so it would be read as two records;"
                " remove it in a map, or give the sink framing='length4'"
            )
        return data

    def decode(self, data: bytes) -> bytes:
        """Return the bytes themselves."""
        return data

    def encode_many(self, values: Sequence[Any]) -> list[bytes]:
        """Encode a column; about 55 ns a short str."""
        if {*map(type, values)} == {bytes}:
            column = list(values)
        else:
            try:
                column = list(map(str.encode, values))
            except (TypeError, UnicodeEncodeError):
                return self._encode_each(values)
        # One search for the column: joins put one newline less than there are values.
        if self._are_lines and b"\n".join(column).count(b"\n") >= max(1, len(column)):
            return self._encode_each(values)
        return column

    def decode_many(self, column: Sequence[bytes]) -> list[bytes]:
        """Copy a column."""
        return list(column)

    def _encode_each(self, values: Sequence[Any]) -> list[bytes]:
        """Encode mixed values one by one; on an error, name the index."""
        column: list[bytes] = []
        for index, value in enumerate(values):
            try:
                column.append(self.encode(value))
            except CodecError as error:
                raise CodecError(error.message, index=index) from error
        return column
