"""Bettong: stateful stream processing, with sources and sinks in any language.

import bettong as bt

app = bt.App("word-count")
(app.source("lines", bt.TcpSource("127.0.0.1:7000"))
    .flat_map(str.split)
    .key_by(lambda word: word)
    .stateful(count, state=WordCount)
    .sink("counts", bt.TcpSink("127.0.0.1:7001")))

if __name__ == "__main__":
    app.run()
"""

from typing import TYPE_CHECKING, Any

from bettong.app import App
from bettong.codec import Codec, KeyCodec
from bettong.codecs import json, msgpack, pickled, protobuf, raw_bytes, text
from bettong.connector import (
    UNKNOWN,
    Fence,
    Guarantee,
    Read,
    Reader,
    Sink,
    SinkPosition,
    Source,
    StreamKind,
    Unknown,
    Writer,
)
from bettong.context import Context
from bettong.errors import (
    BettongError,
    CodecError,
    ErrorCode,
    FencedError,
    GraphError,
    KeyTypeError,
    LaunchError,
    ProtocolError,
    RecordRefusedError,
    RejectedError,
    SinkError,
    SourceError,
    TimerError,
    TooLargeError,
    UserCodeError,
    is_retryable,
)
from bettong.stream import KeyedStream, Stream, merge

if TYPE_CHECKING:
    from bettong_connectors import (
        FileSink,
        FileSource,
        GeneratorSource,
        StdinSource,
        StdoutSink,
        TcpSink,
        TcpSource,
    )

# Of bettong_connectors, which is written against this package: imported at first
# use, the one import that points from the SDK to the connectors.
_CONNECTORS = (
    "FileSink",
    "FileSource",
    "GeneratorSource",
    "StdinSource",
    "StdoutSink",
    "TcpSink",
    "TcpSource",
)

__all__ = [
    "UNKNOWN",
    "App",
    "BettongError",
    "Codec",
    "CodecError",
    "Context",
    "ErrorCode",
    "Fence",
    "FencedError",
    "FileSink",
    "FileSource",
    "GeneratorSource",
    "GraphError",
    "Guarantee",
    "KeyCodec",
    "KeyTypeError",
    "KeyedStream",
    "LaunchError",
    "ProtocolError",
    "Read",
    "Reader",
    "RecordRefusedError",
    "RejectedError",
    "Sink",
    "SinkError",
    "SinkPosition",
    "Source",
    "SourceError",
    "StdinSource",
    "StdoutSink",
    "Stream",
    "StreamKind",
    "TcpSink",
    "TcpSource",
    "TimerError",
    "TooLargeError",
    "Unknown",
    "UserCodeError",
    "Writer",
    "is_retryable",
    "json",
    "merge",
    "msgpack",
    "pickled",
    "protobuf",
    "raw_bytes",
    "text",
]


def __getattr__(name: str) -> Any:
    if name not in _CONNECTORS:
        raise AttributeError(f"module 'bettong' has no attribute {name!r}")
    import bettong_connectors

    connector = getattr(bettong_connectors, name)
    globals()[name] = connector
    return connector


def __dir__() -> list[str]:
    return sorted({*globals(), *_CONNECTORS})
