"""Forwards log records to the engine: from a bounded ring, never waiting."""

import logging
import threading
from collections import deque
from typing import cast

from bettong.runtime import limits
from bettong_proto.plugin.v1 import control_pb2

# The protocol asks for at most 64 KiB a field.
_TEXT_CHARS_MAX = 16 * 1024

_LEVELS = {
    control_pb2.LOG_LEVEL_UNSPECIFIED: logging.INFO,
    control_pb2.LOG_LEVEL_DEBUG: logging.DEBUG,
    control_pb2.LOG_LEVEL_INFO: logging.INFO,
    control_pb2.LOG_LEVEL_WARNING: logging.WARNING,
    control_pb2.LOG_LEVEL_ERROR: logging.ERROR,
}
# What a LogRecord has by itself; the rest are fields that the caller gave.
_OWN_ATTRIBUTES = frozenset(vars(logging.LogRecord("", 0, "", 0, "", None, None))) | {
    "message",
    "asctime",
    "taskName",
}


class LogRing(logging.Handler):
    """Keeps the newest log records until they are taken; counts what it dropped.

    The event dict of structlog, if its standard-library bridge is in use, becomes
    message and fields.
    """

    def __init__(self, records_max: int = limits.LOG_RECORDS_MAX) -> None:
        super().__init__()
        self._records_max = records_max
        self._entries: deque[control_pb2.LogEntry] = deque()
        self._dropped = 0
        self._leads_root = False
        self._guard = threading.Lock()

    def install(self) -> None:
        """Become a handler of the root logger.

        If the program has not set up logging, the root logger follows the level
        that the engine asks for.
        """
        root = logging.getLogger()
        self._leads_root = not root.handlers and root.level == logging.WARNING
        root.addHandler(self)

    def on_level(self, level: int) -> None:
        """Keep records of this level of the protocol and above."""
        self.setLevel(
            _LEVELS.get(cast("control_pb2.LogLevel.ValueType", level), logging.INFO)
        )

        if self._leads_root:
            logging.getLogger().setLevel(self.level)

    def emit(self, record: logging.LogRecord) -> None:
        """Take a record; drop the oldest if the ring is full."""
        try:
            entry = _to_entry(record)
        except Exception:  # the user's own __str__ may raise anything
            self.handleError(record)
            return
        with self._guard:
            self._entries.append(entry)
            if len(self._entries) > self._records_max:
                self._entries.popleft()
                self._dropped += 1

    def take(self) -> control_pb2.LogBatch | None:
        """Return the oldest entries as a message, or None if there are none."""
        with self._guard:
            if not self._entries and not self._dropped:
                return None
            count = min(len(self._entries), limits.LOG_BATCH_RECORDS)
            entries = [self._entries.popleft() for _ in range(count)]
            dropped, self._dropped = self._dropped, 0
        return control_pb2.LogBatch(entries=entries, dropped=dropped)


def _to_entry(record: logging.LogRecord) -> control_pb2.LogEntry:
    fields = {
        name: str(value)
        for name, value in vars(record).items()
        if name not in _OWN_ATTRIBUTES and not name.startswith("_")
    }
    if isinstance(record.msg, dict):
        event = {str(name): str(value) for name, value in record.msg.items()}
        message = event.pop("event", "")
        fields.update(event)
    else:
        message = record.getMessage()
    exception = ""
    if record.exc_info:
        exception = logging.Formatter().formatException(record.exc_info)
    return control_pb2.LogEntry(
        time_us=int(record.created * 1_000_000),
        level=_level(record.levelno),
        logger=record.name,
        message=message[:_TEXT_CHARS_MAX],
        fields={name: value[:_TEXT_CHARS_MAX] for name, value in fields.items()},
        thread=record.threadName or "",
        exception=exception[-_TEXT_CHARS_MAX:],
    )


def _level(number: int) -> "control_pb2.LogLevel.ValueType":
    if number >= logging.ERROR:
        return control_pb2.LOG_LEVEL_ERROR
    if number >= logging.WARNING:
        return control_pb2.LOG_LEVEL_WARNING
    if number >= logging.INFO:
        return control_pb2.LOG_LEVEL_INFO
    return control_pb2.LOG_LEVEL_DEBUG
