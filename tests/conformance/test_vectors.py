"""Replays the golden vectors of keys and partitions against the Python SDK."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from bettong import KeyTypeError
from bettong.keys import key_codec, partition_of

VECTORS = Path(__file__).resolve().parents[2] / "proto" / "vectors"
KEYS = json.loads((VECTORS / "keys.json").read_text())
PARTITIONS = json.loads((VECTORS / "partitions.json").read_text())
KEY_TYPES: dict[str, type] = {
    "bytes": bytes,
    "str": str,
    "int": int,
    "bool": bool,
    "tuple": tuple,
}


def key_of(described: dict[str, Any]) -> Any:
    match described["type"]:
        case "bytes":
            return bytes.fromhex(described["hex"])
        case "str":
            return described["text"]
        case "int":
            return int(described["decimal"])
        case "bool":
            return described["value"]
        case "tuple":
            return tuple(map(key_of, described["elements"]))
    raise AssertionError(described)


def refused_key(codec: str, text: str) -> Any:
    key = json.loads(text)
    return tuples_for_lists(key) if codec == "tuple" else key


def tuples_for_lists(part: Any) -> Any:
    return tuple(map(tuples_for_lists, part)) if isinstance(part, list) else part


def test_vectors_are_what_their_script_makes() -> None:
    made = subprocess.run(
        [sys.executable, str(VECTORS / "make.py"), "--check"],
        capture_output=True,
        text=True,
        check=False,
    )

    assert made.returncode == 0, made.stderr


def test_keys_have_the_bytes_of_the_vectors_and_come_back() -> None:
    assert len(KEYS["keys"]) > 50
    for vector in KEYS["keys"]:
        codec = key_codec(KEY_TYPES[vector["key_codec"]])
        key, encoded = key_of(vector["key"]), bytes.fromhex(vector["encoded_hex"])

        assert codec.encode(key) == encoded, vector
        assert codec.encode_many([key, key]) == [encoded, encoded], vector
        assert codec.decode(encoded) == key, vector
        assert type(codec.decode(encoded)) is type(key), vector


@pytest.mark.parametrize("vector", KEYS["refused"], ids=lambda v: v["reason"])
def test_refused_keys_are_refused(vector: dict[str, str]) -> None:
    codec = key_codec(KEY_TYPES[vector["key_codec"]])

    with pytest.raises(KeyTypeError):
        codec.encode(refused_key(vector["key_codec"], vector["key"]))


def test_partitions_are_those_of_the_vectors() -> None:
    assert len(PARTITIONS["keys"]) > 20
    data_of_vector = [
        (bytes.fromhex(vector["key_hex"]), vector) for vector in PARTITIONS["keys"]
    ] + [(vector["name"].encode(), vector) for vector in PARTITIONS["homes"]]
    for data, vector in data_of_vector:
        for partitions, expected in vector["partition_of"].items():
            assert partition_of(data, int(partitions)) == expected, vector
