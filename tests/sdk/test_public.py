"""What `import bettong` offers."""

import subprocess
import sys
from pathlib import Path

import pytest

import bettong as bt

SDK = Path(bt.__file__).resolve().parents[1]
LAZY = {
    "FileSink",
    "FileSource",
    "GeneratorSource",
    "StdinSource",
    "StdoutSink",
    "TcpSink",
    "TcpSource",
}


def test_everything_promised_is_there() -> None:
    for name in {*bt.__all__} - LAZY:
        assert getattr(bt, name) is not None
    assert {*bt.__all__} >= LAZY
    assert {*dir(bt)} >= {*bt.__all__}


def test_name_that_does_not_exist_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'TcpSauce'"):
        _ = bt.TcpSauce


def test_import_brings_in_neither_connectors_nor_grpc_nor_the_engine() -> None:
    check = """
import sys, bettong
bettong.App("app")
heavy = {"bettong_connectors", "bettong_engine", "bettong_proto", "grpc"}
assert not heavy & {*sys.modules}, heavy & {*sys.modules}
"""
    command = [sys.executable, "-S", "-c", check]
    site = [path for path in sys.path if path.endswith("site-packages")]

    done = subprocess.run(
        command,
        env={"PYTHONPATH": ":".join([str(SDK), *site])},
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", sorted(LAZY))
def test_connectors_come_at_first_use(name: str) -> None:
    import bettong_connectors

    assert getattr(bt, name) is getattr(bettong_connectors, name)
