"""Runs one engine to its end: signals, data directory, and what comes out of it."""

import asyncio
import json
import os
import shutil
import signal
import tempfile
from collections.abc import Callable
from contextlib import AsyncExitStack, suppress
from dataclasses import replace
from pathlib import Path

import structlog

from bettong_engine.errors import ConfigError
from bettong_engine.net.admin import AdminHost
from bettong_engine.runtime.ending import EngineEnd
from bettong_engine.runtime.engine import Engine
from bettong_engine.runtime.options import EngineOptions
from bettong_engine.runtime.startup import Application
from bettong_engine.runtime.status import status_of
from bettong_engine.runtime.store_task import EngineStore
from bettong_engine.store.memory import MemoryStore
from bettong_engine.store.single import SingleStore

log = structlog.get_logger()

ENGINE_FILE = "engine.json"
DATA_ROOT = Path(".bettong")
PARENT_VARIABLE = "BETTONG_PARENT_PID"
PARENT_POLL_S = 0.5


async def serve(
    options: EngineOptions,
    *,
    on_line: Callable[[str, str, str], None],
    watch: Callable[[Engine], "asyncio.Task[None] | None"] | None = None,
) -> EngineEnd:
    """Run an engine until it has ended. Raises `ConfigError`."""
    async with AsyncExitStack() as stack:
        if not options.listen:
            options = replace(options, listen=_private_socket(stack))
        if faults := options.validate():
            raise ConfigError("; ".join(faults))
        engine: Engine

        def open_store(application: str) -> EngineStore:
            return _open_store(options, application)

        def on_loaded(application: Application) -> None:
            directory = data_dir_of(options, application.topology.name)
            if directory.is_dir():
                stack.callback(_write_engine_file(directory, engine.address))

        engine = Engine(options, open_store, on_line=on_line, on_loaded=on_loaded)
        admin = AdminHost(
            lambda: status_of(engine), engine.resume, engine.request_drain
        )
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, engine.request_drain)
        await engine.serve([admin])
        parent = asyncio.create_task(_watch_parent(engine.request_drain))
        watcher = watch(engine) if watch is not None else None
        try:
            end = await engine.wait()
        finally:
            parent.cancel()
            if watcher is not None:
                watcher.cancel()
                with suppress(asyncio.CancelledError):
                    await watcher
            await engine.stop()
    return end


async def _watch_parent(on_gone: Callable[[], None]) -> None:
    """Live and die with the program that started this engine, if one did."""
    parent = os.environ.pop(PARENT_VARIABLE, "")
    if not parent.isdigit():
        return
    while os.getppid() == int(parent):
        await asyncio.sleep(PARENT_POLL_S)
    log.warning("parent_gone", pid=int(parent))
    on_gone()


def data_dir_of(options: EngineOptions, application: str) -> Path:
    """Return where an application's data lives."""
    return options.data_dir or DATA_ROOT / application


def _open_store(options: EngineOptions, application: str) -> EngineStore:
    if options.durability == "memory" and options.data_dir is None:
        return MemoryStore(keeps_deltas=False)
    store = SingleStore(
        data_dir_of(options, application), is_memory=options.durability == "memory"
    )
    store.open(options.lock_wait_s)
    return store


def _private_socket(stack: AsyncExitStack) -> str:
    """Make a directory that only this user enters, and return a socket in it.

    Not in the data directory: the path of a socket is at most 107 bytes long.
    """
    directory = tempfile.mkdtemp(prefix="bettong-")
    os.chmod(directory, 0o700)
    stack.callback(shutil.rmtree, directory, ignore_errors=True)
    return f"unix:{directory}/engine.sock"


def _write_engine_file(directory: Path, listen: str) -> Callable[[], None]:
    """Say where the engine of this data directory listens, while it runs."""
    path = directory / ENGINE_FILE
    path.write_text(json.dumps({"address": listen, "pid": os.getpid()}) + "\n")
    return lambda: path.unlink(missing_ok=True)
