"""Reads `bettong.toml`."""

import os
import tomllib
from pathlib import Path
from typing import Any

from bettong_engine.core.coordinator import CoordinatorLimits
from bettong_engine.core.limits import WorkerLimits
from bettong_engine.errors import ConfigError
from bettong_engine.net.plugin_host import HostLimits
from bettong_engine.runtime.options import EngineOptions
from bettong_engine.runtime.supervisor import PluginSpec

ROLES = {"source": 1, "compute": 2, "sink": 3}

_TOP = {"data_dir", "listen", "durability", "tokens", "token_env", "plugins", "limits"}
_PLUGIN = {"name", "command", "roles", "environment", "working_dir"}
_COORDINATOR = {
    "epoch_interval_ms_min",
    "epoch_interval_ms_max",
    "epoch_cpu_ratio_max",
    "epochs_in_flight_max",
}
_HOST = {"ping_interval_ms", "ping_timeout_ms", "batch_timeout_ms", "hello_timeout_ms"}
_WORKER = {"uncommitted_bytes_max", "output_log_bytes_max", "progress_delay_ms_max"}


def load_config(path: Path) -> EngineOptions:
    """Return the options of a file. Raises `ConfigError` naming every fault."""
    try:
        data = tomllib.loads(path.read_text())
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from error
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path} is not TOML: {error}") from error
    faults = [f"unknown setting {name!r}" for name in sorted(set(data) - _TOP)]
    limits = data.get("limits", {})
    for name in sorted(set(limits) - _COORDINATOR - _WORKER - _HOST):
        faults.append(f"unknown limit {name!r}")
    plugins = [_plugin(item, faults) for item in data.get("plugins", [])]
    tokens = [str(token) for token in data.get("tokens", [])]
    if name := data.get("token_env"):
        if name not in os.environ:
            faults.append(f"token_env names {name}, which is not set")
        else:
            tokens.append(os.environ[name])
    if not plugins and not tokens:
        faults.append("neither plugins to run nor tokens for plugins that attach")
    if faults:
        raise ConfigError(f"{path}: " + "; ".join(faults))
    try:
        return EngineOptions(
            listen=str(data.get("listen", "")),
            data_dir=Path(data["data_dir"]) if "data_dir" in data else None,
            durability=str(data.get("durability", "disk")),
            plugins=tuple(plugins),
            tokens=tuple(tokens),
            coordinator=CoordinatorLimits(
                **{k: v for k, v in limits.items() if k in _COORDINATOR}
            ),
            worker=WorkerLimits(**{k: v for k, v in limits.items() if k in _WORKER}),
            host=HostLimits(**{k: v for k, v in limits.items() if k in _HOST}),
        )
    except TypeError as error:
        raise ConfigError(f"{path}: {error}") from error


def _plugin(item: dict[str, Any], faults: list[str]) -> PluginSpec:
    name = str(item.get("name", ""))
    where = f"plugin {name or '(without a name)'!r}"
    if not name:
        faults.append(f"{where} needs a name")
    command = item.get("command", [])
    if not isinstance(command, list) or not command:
        faults.append(f"{where} needs a command, as a list of words")
        command = []
    faults.extend(
        f"{where} has unknown setting {key!r}" for key in sorted(set(item) - _PLUGIN)
    )
    roles = [str(role) for role in item.get("roles", [])]
    faults.extend(
        f"{where} has unknown role {role!r}" for role in roles if role not in ROLES
    )
    return PluginSpec(
        name,
        tuple(map(str, command)),
        tuple(ROLES[role] for role in roles if role in ROLES),
        {str(k): str(v) for k, v in item.get("environment", {}).items()},
        working_dir=item.get("working_dir"),
    )
