"""The connectors that come with Bettong, written against `bettong.connector` only.

They are also the examples to copy: a connector of your own is a class for the source
or sink, which the program configures, and one for the reader or writer, which does
the work. Start from `generator.py` (a source) or `tcp_sink.py` (a sink);
`file_sink.py` shows how a sink becomes exactly-once.
"""

from bettong_connectors.file_sink import FileSink
from bettong_connectors.file_source import FileSource
from bettong_connectors.generator import GeneratorSource
from bettong_connectors.stdio import StdinSource, StdoutSink
from bettong_connectors.tcp_sink import TcpSink
from bettong_connectors.tcp_source import TcpSource

__all__ = [
    "FileSink",
    "FileSource",
    "GeneratorSource",
    "StdinSource",
    "StdoutSink",
    "TcpSink",
    "TcpSource",
]
