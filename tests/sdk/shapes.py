"""Connectors that hold nothing: enough to describe a pipeline, never opened."""

from collections.abc import Sequence

import bettong as bt
from bettong.codec import Codec


class Lines:
    """A source of text that nobody starts."""

    def __init__(
        self,
        codec: Codec = bt.text,
        kind: bt.StreamKind = bt.StreamKind.SHARED,
    ) -> None:
        self.codec = codec
        self.kind = kind

    def start(self) -> None:
        raise AssertionError("a graph does no I/O")

    def streams(self) -> tuple[Sequence[str], bool]:
        raise AssertionError("a graph does no I/O")

    def open(self, stream: str, position: bytes | None) -> bt.Reader:
        raise AssertionError("a graph does no I/O")

    def wait(self, timeout_s: float) -> None:
        raise AssertionError("a graph does no I/O")

    def stop(self) -> None:
        raise AssertionError("a graph does no I/O")


class Target:
    """A sink that nobody opens."""

    takes_bytes = True
    guarantee = bt.Guarantee.EXACTLY_ONCE

    def __init__(self, codec: Codec = bt.json, partitions: int = 1) -> None:
        self.codec = codec
        self.partitions = partitions

    def open(
        self, partition: int, fence: bt.Fence
    ) -> tuple[bt.Writer, bt.SinkPosition | bt.Unknown]:
        raise AssertionError("a graph does no I/O")
