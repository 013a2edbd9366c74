"""Runs a command and keeps the CPU time of each process that belongs to it."""

import os
import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path

POLL_S = 0.05
TICKS = os.sysconf("SC_CLK_TCK")
PAGE = os.sysconf("SC_PAGE_SIZE")


@dataclass
class Measured:
    """wall_s: from start to exit. cpu_s, rss: by role of the process."""

    wall_s: float
    cpu_s: dict[str, float] = field(default_factory=dict)
    rss: dict[str, list[tuple[float, int]]] = field(default_factory=dict)


def run(command, *, environment=None, timeout_s=900.0):
    """Run to the end; raise if it fails."""
    begun = time.monotonic()
    process = subprocess.Popen(
        command,
        env={**os.environ, **(environment or {})},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
    cpu, roles, rss = {}, {}, {}
    while process.poll() is None:
        for pid in _family(process.pid):
            found = _look(pid)
            if found is None:
                continue
            name, seconds, size = found
            roles[pid] = "engine" if pid == process.pid else name
            cpu[pid] = seconds
            rss.setdefault(pid, []).append((time.monotonic() - begun, size))
        if time.monotonic() - begun > timeout_s:
            process.kill()
            raise RuntimeError(f"{command} took more than {timeout_s} s")
        time.sleep(POLL_S)
    wall_s = time.monotonic() - begun
    if process.returncode != 0:
        raise RuntimeError(
            f"{command} failed: {process.stderr.read().decode()[-2000:]}"
        )
    measured = Measured(wall_s)
    for pid, role in roles.items():
        measured.cpu_s[role] = measured.cpu_s.get(role, 0.0) + cpu[pid]
        measured.rss.setdefault(role, []).extend(rss[pid])
    return measured


def _family(root):
    """Return a process and its children, all started here."""
    found = [root]
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rsplit(")", 1)[1].split()
            except OSError:
                continue
            if int(fields[1]) == root:
                found.append(int(entry.name))
    return found


def _look(pid):
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
        files = Path(f"/proc/{pid}/environ").read_bytes()
    except OSError:
        return None
    fields = text.rsplit(")", 1)[1].split()
    seconds = (int(fields[11]) + int(fields[12])) / TICKS
    role = "plugin"
    for part in files.split(b"\0"):
        if part.startswith(b"BETTONG_PLUGIN="):
            role = part.split(b"=", 1)[1].decode().split("-")[0]
    return role, seconds, int(fields[21]) * PAGE
