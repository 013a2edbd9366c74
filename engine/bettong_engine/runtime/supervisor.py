"""Starts plugin processes, keeps them running, and remembers their last words.

Each process has its own process group, which is ended whole. A process that ends is
started again, at first at once, then with a growing delay; one that keeps ending
without any epoch being committed in between is a crash loop, for a person to mend.
"""

import asyncio
import os
import secrets
import signal
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import structlog

from bettong_engine.core.handshake import Doorkeeper, Ticket
from bettong_engine.core.messages import Cause

log = structlog.get_logger()

RESTART_DELAYS_S = (0.0, 0.5, 1.0, 2.0, 4.0, 8.0, 15.0, 30.0)
CRASHES_MAX = 5
LAST_WORDS_LINES_MAX = 200
LINE_BYTES_MAX = 16 << 10
TERM_TIMEOUT_S = 5.0
DRAIN_TIMEOUT_S = 2.0
# What a plugin inherits of the engine's environment, beside what is named for it.
ENVIRONMENT = (
    "PATH",
    "HOME",
    "LANG",
    "LC_ALL",
    "TZ",
    "TMPDIR",
    "USER",
    "VIRTUAL_ENV",
    "PYTHONPATH",
    "PYTHONHASHSEED",
    "HTTP_PROXY",
    "HTTPS_PROXY",
    "NO_PROXY",
    "SSL_CERT_FILE",
)


@dataclass(frozen=True, slots=True)
class PluginSpec:
    """A plugin to run.

    roles: kinds of RoleKind that it is asked for. has_whole_environment: it gets all
    of the engine's environment, as a program started by hand would; otherwise what
    ENVIRONMENT names, and `environment`.
    """

    name: str
    command: tuple[str, ...]
    roles: tuple[int, ...]
    environment: Mapping[str, str] = field(default_factory=dict)
    passed_fds: tuple[int, ...] = ()
    working_dir: str | None = None
    has_whole_environment: bool = False


@dataclass(slots=True)
class ManagedPlugin:
    """A plugin that this engine runs."""

    spec: PluginSpec
    process: asyncio.subprocess.Process | None = None
    token: bytes = b""
    crashes: int = 0
    restarts: int = 0
    is_stopping: bool = False
    last_exit: str = ""
    last_words: deque[str] = field(
        default_factory=lambda: deque(maxlen=LAST_WORDS_LINES_MAX)
    )
    runner: asyncio.Task[None] | None = None


class Supervisor:
    """Runs plugins against one address. Invariant: one process a plugin at a time."""

    def __init__(
        self,
        address: str,
        doorkeeper: Doorkeeper,
        *,
        on_crash_loop: Callable[[ManagedPlugin, Cause], None],
        on_line: Callable[[str, str, str], None],
    ) -> None:
        self.plugins: dict[str, ManagedPlugin] = {}
        self.address = address
        self._doorkeeper = doorkeeper
        self._on_crash_loop = on_crash_loop
        self._on_line = on_line

    def start(self, spec: PluginSpec) -> None:
        """Run a plugin until `stop`."""
        plugin = ManagedPlugin(spec)
        self.plugins[spec.name] = plugin
        plugin.runner = asyncio.create_task(self._keep_running(plugin))

    def kill(self, name: str, cause: Cause) -> None:
        """End a plugin's process that does not answer; it is started again."""
        plugin = self.plugins.get(name)
        if plugin is not None:
            plugin.last_words.append(f"killed by the engine: {cause.message}")
            _signal_group(plugin, signal.SIGKILL)

    def on_progress(self) -> None:
        """Learn that an epoch was committed: nobody is in a crash loop."""
        for plugin in self.plugins.values():
            plugin.crashes = 0

    def resume(self) -> None:
        """Start again what was given up as a crash loop."""
        for plugin in self.plugins.values():
            if plugin.runner is not None and plugin.runner.done():
                plugin.crashes = 0
                plugin.runner = asyncio.create_task(self._keep_running(plugin))

    async def stop(self) -> None:
        """End every plugin that has not ended by itself: ask, then insist."""
        for plugin in self.plugins.values():
            plugin.is_stopping = True
            _signal_group(plugin, signal.SIGTERM)
        runners = [p.runner for p in self.plugins.values() if p.runner is not None]
        if runners:
            await asyncio.wait(runners, timeout=TERM_TIMEOUT_S)
        for plugin in self.plugins.values():
            _signal_group(plugin, signal.SIGKILL)
        if runners:
            await asyncio.wait(runners, timeout=TERM_TIMEOUT_S)
        for runner in runners:
            runner.cancel()

    async def wait_ended(self, timeout_s: float) -> None:
        """Wait until every plugin has ended by itself, or the time is over."""
        for plugin in self.plugins.values():
            plugin.is_stopping = True
        runners = [p.runner for p in self.plugins.values() if p.runner is not None]
        if runners:
            await asyncio.wait(runners, timeout=timeout_s)

    async def _keep_running(self, plugin: ManagedPlugin) -> None:
        while not plugin.is_stopping:
            await self._run_once(plugin)
            if plugin.is_stopping:
                return
            plugin.crashes += 1
            plugin.restarts += 1
            log.warning("plugin_ended", plugin=plugin.spec.name, how=plugin.last_exit)
            if plugin.crashes >= CRASHES_MAX:
                self._on_crash_loop(plugin, _crash_loop(plugin))
                return
            step = min(plugin.crashes - 1, len(RESTART_DELAYS_S) - 1)
            await asyncio.sleep(RESTART_DELAYS_S[step])

    async def _run_once(self, plugin: ManagedPlugin) -> None:
        spec = plugin.spec
        plugin.token = secrets.token_hex(16).encode()
        self._doorkeeper.issue(Ticket(plugin.token, spec.name, spec.roles, True))
        try:
            process = await asyncio.create_subprocess_exec(
                *spec.command,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
                env=self._environment(plugin),
                cwd=spec.working_dir,
                pass_fds=spec.passed_fds,
                start_new_session=True,
                limit=LINE_BYTES_MAX,
            )
        except OSError as error:
            plugin.last_exit = f"could not be started: {error}"
            plugin.last_words.append(plugin.last_exit)
            return
        plugin.process = process
        drains = [
            asyncio.create_task(self._drain(plugin, name))
            for name in ("stdout", "stderr")
        ]
        try:
            await process.wait()
        finally:
            self._doorkeeper.revoke(plugin.token)
            _signal_group(plugin, signal.SIGKILL)
        # A grandchild that left the group may hold the pipes open for ever.
        _, stuck = await asyncio.wait(drains, timeout=DRAIN_TIMEOUT_S)
        for task in stuck:
            task.cancel()
        plugin.last_exit = _how_it_ended(process.returncode)
        plugin.process = None

    async def _drain(self, plugin: ManagedPlugin, name: str) -> None:
        """Read a pipe to its end, so that a chatty plugin never blocks."""
        assert plugin.process is not None
        reader = getattr(plugin.process, name)
        while True:
            try:
                line = await reader.readuntil(b"\n")
            except asyncio.IncompleteReadError as error:
                line = error.partial
                if not line:
                    return
            except asyncio.LimitOverrunError as error:
                line = await reader.readexactly(error.consumed)
            text = line.decode(errors="replace").rstrip("\r\n")
            plugin.last_words.append(text)
            self._on_line(plugin.spec.name, name, text)

    def _environment(self, plugin: ManagedPlugin) -> dict[str, str]:
        names = os.environ if plugin.spec.has_whole_environment else ENVIRONMENT
        kept = {name: os.environ[name] for name in names if name in os.environ}
        return {
            **kept,
            **plugin.spec.environment,
            "PYTHONUNBUFFERED": "1",
            "BETTONG_ADDRESS": self.address,
            "BETTONG_TOKEN": plugin.token.decode(),
            "BETTONG_PLUGIN": plugin.spec.name,
        }


def _signal_group(plugin: ManagedPlugin, number: signal.Signals) -> None:
    if plugin.process is None:
        return
    try:
        os.killpg(plugin.process.pid, number)
    except (ProcessLookupError, PermissionError):
        pass


def _how_it_ended(code: int | None) -> str:
    if code is not None and code < 0:
        try:
            return f"killed by {signal.Signals(-code).name}"
        except ValueError:
            return f"killed by signal {-code}"
    return f"exited with code {code}"


def _crash_loop(plugin: ManagedPlugin) -> Cause:
    words = "\n".join(list(plugin.last_words)[-30:])
    return Cause(
        "PLUGIN_CRASHED",
        f"plugin {plugin.spec.name!r} ended {plugin.crashes} times in a row without an"
        f" epoch being committed in between ({plugin.last_exit}); mend it and start"
        " again: nothing is lost",
        words,
    )
