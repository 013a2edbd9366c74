"""What all tests share: tools that a machine may lack are named, never passed over."""

import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable

import pytest


def _has_tmpfs() -> bool:
    if os.geteuid() != 0 or shutil.which("mount") is None:
        return False
    with tempfile.TemporaryDirectory() as place:
        command = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", place]
        if subprocess.run(command, capture_output=True, check=False).returncode != 0:
            return False
        subprocess.run(["umount", place], check=True)
        return True


# A tool is there if its check says so; others are looked up on the path.
_CHECKS: dict[str, Callable[[], bool]] = {"tmpfs": _has_tmpfs}
_found: dict[str, bool] = {}


def has_tool(name: str) -> bool:
    """Tell whether this machine has a tool."""
    if name not in _found:
        check = _CHECKS.get(name)
        _found[name] = check() if check else shutil.which(name) is not None
    return _found[name]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--rewrite",
        action="store_true",
        help="write what scenarios give now into their files; then read the diff",
    )


def pytest_runtest_setup(item: pytest.Item) -> None:
    for marker in item.iter_markers("needs_tool"):
        name = str(marker.args[0])
        if has_tool(name):
            continue
        if os.environ.get("CI"):
            pytest.fail(f"CI must have {name}: nothing may be left out there")
        pytest.skip(f"NOT RUN: this machine has no {name}")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    reasons = {
        report.longrepr[2].removeprefix("Skipped: ")
        for report in terminalreporter.stats.get("skipped", [])
        if isinstance(report.longrepr, tuple) and "NOT RUN" in report.longrepr[2]
    }
    if reasons:
        terminalreporter.section("PARTS NOT RUN", sep="!", red=True, bold=True)
        for reason in sorted(reasons):
            terminalreporter.line(reason, red=True)
