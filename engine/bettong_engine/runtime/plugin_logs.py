"""Writes what plugins log into the engine's log, under their names."""

import structlog

from bettong_proto.plugin.v1 import control_pb2

log = structlog.get_logger()


def write_plugin_logs(plugin: str, logs: control_pb2.LogBatch) -> None:
    """Write the lines of a batch, and how many the plugin had to drop."""
    for entry in logs.entries:
        write = {
            control_pb2.LOG_LEVEL_DEBUG: log.debug,
            control_pb2.LOG_LEVEL_WARNING: log.warning,
            control_pb2.LOG_LEVEL_ERROR: log.error,
        }.get(entry.level, log.info)
        fields = {f"plugin_{name}": value for name, value in entry.fields.items()}
        if entry.exception:
            fields["plugin_exception"] = entry.exception
        write(
            "plugin_log",
            plugin=plugin,
            logger=entry.logger,
            text=entry.message,
            **fields,
        )
    if logs.dropped:
        log.warning("plugin_logs_dropped", plugin=plugin, count=logs.dropped)
