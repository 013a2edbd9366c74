"""How values and keys become bytes, and bytes become values again.

A codec is explicit on every edge and every state. Its name is registered with the
engine, so that a changed codec is refused instead of misread. The codecs of values
are in `bettong.codecs`, those of keys in `bettong.keys`.
"""

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, Protocol


class Codec(Protocol):
    """Values to bytes and back."""

    # Stable, "text", "msgpack", "msgpack:Order"; compared at registration.
    name: str

    @abstractmethod
    def encode(self, value: Any) -> bytes:
        """Return the bytes of one value. Raises `CodecError`."""

    @abstractmethod
    def decode(self, data: bytes) -> Any:
        """Return the value of the bytes. Raises `CodecError`."""

    @abstractmethod
    def encode_many(self, values: Sequence[Any]) -> list[bytes]:
        """Encode a column; a tight loop. Raises `CodecError` naming the index."""

    @abstractmethod
    def decode_many(self, column: Sequence[bytes]) -> list[Any]:
        """Decode a column; a tight loop. Raises `CodecError` naming the index."""


class KeyCodec(Protocol):
    """Keys to canonical bytes (PROTOCOL.md, "Keys") and back.

    Equal keys have equal bytes in every language; different keys differ.
    """

    # "bytes", "str", "int", "bool" or "tuple"
    name: str

    @abstractmethod
    def encode(self, key: Any) -> bytes:
        """Return the canonical bytes. Raises `KeyTypeError` naming the fix."""

    @abstractmethod
    def decode(self, data: bytes) -> Any:
        """Return the key of the bytes. Raises `KeyTypeError`: no canonical key."""

    @abstractmethod
    def encode_many(self, keys: Sequence[Any]) -> list[bytes]:
        """Encode a column; a tight loop. Raises `KeyTypeError` naming the index."""

    @abstractmethod
    def decode_many(self, column: Sequence[bytes]) -> list[Any]:
        """Decode a column; a tight loop."""
