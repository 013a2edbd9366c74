"""Imports point one way: cli -> runtime -> {net, store} -> core."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ENGINE = ROOT / "engine" / "bettong_engine"
SDK = ROOT / "sdk-python" / "bettong"
CONNECTORS = ROOT / "connectors" / "python" / "bettong_connectors"

# The core may use these of the standard library: nothing that does I/O, tells the
# time, draws lots or runs beside something else.
PURE = {
    "bisect", "collections", "contextlib", "dataclasses", "enum", "functools",
    "hashlib", "heapq", "hmac", "itertools", "math", "operator", "typing", "zlib",
}  # fmt: skip

# Room of the engine to what it may import: rooms, and other packages of ours.
ROOMS = {
    "core": {"bettong_engine.core", "bettong_engine.errors"},
    "store": {"bettong_engine.core", "bettong_engine.errors", "bettong_engine.store"},
    "net": {
        "bettong_engine.core", "bettong_engine.errors", "bettong_engine.net",
        "bettong_proto", "bettong_engine.__version__",
    },
    "runtime": {
        "bettong_engine.core", "bettong_engine.errors", "bettong_engine.net",
        "bettong_engine.store", "bettong_engine.runtime", "bettong_proto",
    },
    "sim": {
        "bettong_engine.core", "bettong_engine.errors", "bettong_engine.net",
        "bettong_engine.sim", "bettong_proto",
    },
    "cli": {"bettong_engine", "bettong_proto"},
}  # fmt: skip
# Of net, the simulator may use what is pure.
PURE_NET = {
    "translate", "delta_codec", "records", "incoming", "outgoing", "outbox",
}  # fmt: skip


def imports_of(path: Path) -> Iterator[str]:
    """Yield every module that a file imports, `from a import b` as a.b."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def test_no_import_is_relative() -> None:
    # The other tests read names, and a relative one has none to read.
    found = [
        f"{path.relative_to(ROOT)}:{node.lineno}"
        for folder in (ENGINE, SDK, CONNECTORS)
        for path in sorted(folder.rglob("*.py"))
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ImportFrom) and node.level
    ]

    assert found == []


def test_what_every_room_uses_imports_no_room() -> None:
    found = [
        f"{path.name}: {name}"
        for path in sorted(ENGINE.glob("*.py"))
        for name in imports_of(path)
        if name.startswith("bettong")
    ]

    assert found == []


def is_within(name: str, allowed: set[str]) -> bool:
    return any(name == a or name.startswith(a + ".") for a in allowed)


@pytest.mark.parametrize("room", sorted(ROOMS))
def test_room_imports_downwards_only(room: str) -> None:
    wrong = [
        f"{path.relative_to(ROOT)}: {name}"
        for path in sorted((ENGINE / room).rglob("*.py"))
        for name in imports_of(path)
        if name.startswith("bettong") and not is_within(name, ROOMS[room])
    ]

    assert wrong == []


def test_core_imports_nothing_that_acts() -> None:
    wrong = [
        f"{path.name}: {name}"
        for path in sorted((ENGINE / "core").rglob("*.py"))
        for name in imports_of(path)
        if not name.startswith("bettong_engine.") and name.split(".")[0] not in PURE
    ]

    assert wrong == []


def test_simulator_uses_only_what_is_pure_of_net() -> None:
    wrong = [
        f"{path.name}: {name}"
        for path in sorted((ENGINE / "sim").rglob("*.py"))
        for name in imports_of(path)
        if name.startswith("bettong_engine.net.") and name.split(".")[2] not in PURE_NET
    ]

    assert wrong == []


def test_sdk_knows_the_protocol_and_not_the_engine() -> None:
    wrong = [
        f"{path.relative_to(SDK)}: {name}"
        for path in sorted(SDK.rglob("*.py"))
        for name in imports_of(path)
        if name.startswith("bettong_engine")
        or (name.startswith("bettong_connectors") and path != SDK / "__init__.py")
    ]

    assert wrong == []


def test_connectors_know_the_sdk_only() -> None:
    wrong = [
        f"{path.name}: {name}"
        for path in sorted(CONNECTORS.rglob("*.py"))
        for name in imports_of(path)
        if name.startswith(("bettong_engine", "bettong_proto", "bettong.runtime"))
    ]

    assert wrong == []
