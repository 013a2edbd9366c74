"""Finds the engine that the operator means."""

import json
from pathlib import Path

from bettong_engine.cli.serve import DATA_ROOT, ENGINE_FILE
from bettong_engine.errors import ConfigError


def find_address(data_dir: Path | None) -> str:
    """Return the address of the engine of a data directory.

    Without one, of the only engine that runs below the current directory.

    Raises:
        ConfigError: there is none, or more than one.
    """
    if data_dir is not None:
        files = [data_dir / ENGINE_FILE]
    else:
        files = sorted(DATA_ROOT.glob(f"*/{ENGINE_FILE}"))
    running = [path for path in files if path.is_file()]
    if not running:
        where = data_dir or f"{DATA_ROOT}/*"
        raise ConfigError(f"no engine runs in {where}; name it with --data-dir")
    if len(running) > 1:
        names = ", ".join(str(path.parent) for path in running)
        raise ConfigError(f"several engines run ({names}); name one with --data-dir")
    return str(json.loads(running[0].read_text())["address"])
