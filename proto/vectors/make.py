"""Makes the golden vectors of keys and partitions.

    python proto/vectors/make.py            writes keys.json and partitions.json
    python proto/vectors/make.py --check    exits with 1 if they are not up to date

It encodes by a few lines of its own, with the standard library only: an SDK that
agrees with the vectors agrees with a second reading of PROTOCOL.md, not with itself.
"""

import argparse
import json
import struct
import sys
import zlib
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent

Key = bytes | str | int | bool | tuple["Key", ...]


def key_bytes(key: Key) -> bytes:
    """Return the canonical bytes of a key."""
    if isinstance(key, bytes):
        return key
    if isinstance(key, str):
        return key.encode()
    return packed(key)


def packed(key: Key) -> bytes:
    """Return a key, or an element of a tuple, in the msgpack profile."""
    if isinstance(key, bool):
        return b"\xc3" if key else b"\xc2"
    if isinstance(key, int):
        return packed_int(key)
    if isinstance(key, str):
        data = key.encode()
        if len(data) <= 31:
            return bytes([0xA0 + len(data)]) + data
        return sized(len(data), 0xD9, 0xDA, 0xDB) + data
    if isinstance(key, bytes):
        return sized(len(key), 0xC4, 0xC5, 0xC6) + key
    if len(key) <= 15:
        header = bytes([0x90 + len(key)])
    else:
        header = sized(len(key), None, 0xDC, 0xDD)
    return header + b"".join(map(packed, key))


def packed_int(number: int) -> bytes:
    """Return the shortest form; zero and above in the unsigned family only."""
    if 0 <= number <= 127:
        return struct.pack(">B", number)
    if -32 <= number < 0:
        return struct.pack(">b", number)
    families = (
        [(0xCC, ">B"), (0xCD, ">H"), (0xCE, ">I"), (0xCF, ">Q")]
        if number >= 0
        else [(0xD0, ">b"), (0xD1, ">h"), (0xD2, ">i"), (0xD3, ">q")]
    )
    for first, layout in families:
        try:
            return bytes([first]) + struct.pack(layout, number)
        except struct.error:
            continue
    raise ValueError(f"{number} has more than 64 bits")


def sized(length: int, one: int | None, two: int, four: int) -> bytes:
    """Return a header with the shortest length that the family has."""
    if one is not None and length <= 0xFF:
        return struct.pack(">BB", one, length)
    if length <= 0xFFFF:
        return struct.pack(">BH", two, length)
    return struct.pack(">BI", four, length)


def described(key: Key) -> dict[str, Any]:
    """Return a key as JSON that no language reads wrongly (ints as decimal text)."""
    if isinstance(key, bool):
        return {"type": "bool", "value": key}
    if isinstance(key, int):
        return {"type": "int", "decimal": str(key)}
    if isinstance(key, bytes):
        return {"type": "bytes", "hex": key.hex()}
    if isinstance(key, str):
        return {"type": "str", "text": key}
    return {"type": "tuple", "elements": [described(part) for part in key]}


def codec_of(key: Key) -> str:
    """Return the name of the key codec."""
    return type(key).__name__


BYTES_KEYS: list[Key] = [b"", b"\x00", b"abc", bytes(range(256)), b"\xff\xfe\xfd"]
STR_KEYS: list[Key] = [
    "",
    "a",
    "word",
    "Grüße",
    "日本語",
    "\U0001f998",
    # Composed and decomposed: no normalization, so two keys.
    "\u00e9",
    "e\u0301",
    "\x00",
    "two\nlines",
    "\ufeffbyte order mark is kept",
]
INT_EDGES = [
    0,
    127,
    2**7,
    2**8 - 1,
    2**8,
    2**16 - 1,
    2**16,
    2**32 - 1,
    2**32,
    2**53 + 1,
    2**63 - 1,
    2**63,
    2**64 - 1,
    -1,
    -32,
    -33,
    -(2**7),
    -(2**7) - 1,
    -(2**15),
    -(2**15) - 1,
    -(2**31),
    -(2**31) - 1,
    -(2**63),
]
INT_KEYS: list[Key] = [*INT_EDGES]
BOOL_KEYS: list[Key] = [False, True]
TUPLE_KEYS: list[Key] = [
    (),
    (1,),
    (True,),
    ("1",),
    (b"1",),
    ("user", 42),
    ("a", "b"),
    ("ab", ""),
    (("a",), "b"),
    ("", b"", (), 0, False),
    (-1, 2**64 - 1, -(2**63)),
    ("x" * 31,),
    ("x" * 32,),
    ("x" * 255,),
    ("x" * 256,),
    # The length is in bytes: 16 characters, 32 bytes.
    ("é" * 16,),
    (b"y" * 255,),
    (b"y" * 256,),
    tuple(range(15)),
    tuple(range(16)),
    ((((1, "deep"), b"\x00"), False), "end"),
]
REFUSED: list[dict[str, str]] = [
    {"key_codec": "int", "key": "1.0", "reason": "floats are no keys"},
    {"key_codec": "int", "key": "NaN", "reason": "floats are no keys"},
    {"key_codec": "int", "key": "true", "reason": "a bool is not an int"},
    {
        "key_codec": "int",
        "key": "18446744073709551616",
        "reason": "beyond 2^64 - 1",
    },
    {
        "key_codec": "int",
        "key": "-9223372036854775809",
        "reason": "below -2^63",
    },
    {"key_codec": "bool", "key": "1", "reason": "an int is not a bool"},
    {"key_codec": "str", "key": "null", "reason": "null is no key"},
    {"key_codec": "str", "key": "1", "reason": "an int is not a str"},
    {"key_codec": "str", "key": '"\\ud800"', "reason": "a lone surrogate"},
    {"key_codec": "bytes", "key": '"text"', "reason": "a str is not bytes"},
    {"key_codec": "tuple", "key": "[1.5]", "reason": "floats are no keys"},
    {"key_codec": "tuple", "key": "[null]", "reason": "null is no key"},
    {"key_codec": "tuple", "key": '[{"a": 1}]', "reason": "a map is no key"},
    {
        "key_codec": "tuple",
        "key": "[[[[[[[[[[[[[[[[[1]]]]]]]]]]]]]]]]]",
        "reason": "nested 17 deep, at most 16 are allowed",
    },
]


def keys_document() -> dict[str, Any]:
    """Return what keys.json holds."""
    keys = [*BYTES_KEYS, *STR_KEYS, *INT_KEYS, *BOOL_KEYS, *TUPLE_KEYS]
    return {
        "about": (
            "Canonical bytes of keys (PROTOCOL.md, Keys). encoded_hex is what a"
            " writer sends and a reader decodes to key. In refused, key is JSON, its"
            " arrays standing for tuples; no bytes may be sent for it."
        ),
        "keys": [
            {
                "key_codec": codec_of(key),
                "key": described(key),
                "encoded_hex": key_bytes(key).hex(),
            }
            for key in keys
        ],
        "refused": REFUSED,
    }


def partitions_document() -> dict[str, Any]:
    """Return what partitions.json holds."""
    keys = [
        *BYTES_KEYS,
        *STR_KEYS,
        *(0, 1, -1, 2**64 - 1),
        *BOOL_KEYS,
        ("user", 42),
        b"123456789",
    ]
    homes = [
        "stream/lines/0",
        "stream/lines/file:///var/log/app.log",
        "stream/orders/Grüße",
        "sink/counts/0",
        "sink/counts/15",
    ]
    return {
        "about": (
            "partition = CRC-32/IEEE of the bytes, unsigned, modulo partitions"
            " (PROTOCOL.md, Partitions). 123456789 is the check input of CRC"
            " catalogues: cbf43926."
        ),
        "keys": [
            partition_vector({"key_hex": key_bytes(key).hex()}, key_bytes(key))
            for key in keys
        ],
        "homes": [partition_vector({"name": name}, name.encode()) for name in homes],
    }


def partition_vector(start: dict[str, Any], data: bytes) -> dict[str, Any]:
    """Return one entry: the CRC, and the partition for several partition counts."""
    crc = zlib.crc32(data)
    counts = (1, 2, 3, 64, 1000, 65_536)
    return {
        **start,
        "crc32_hex": f"{crc:08x}",
        "partition_of": {str(count): crc % count for count in counts},
    }


def main() -> int:
    """Write or check both files; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="compare, write nothing")
    is_check = parser.parse_args().check
    documents = {
        "keys.json": keys_document(),
        "partitions.json": partitions_document(),
    }
    stale = []
    for name, document in documents.items():
        content = json.dumps(document, indent=1, ensure_ascii=True) + "\n"
        path = HERE / name
        if is_check:
            if not path.exists() or path.read_text() != content:
                stale.append(name)
        else:
            path.write_text(content)
    if stale:
        sys.stderr.write(
            f"proto/vectors: {', '.join(stale)} differ from make.py: run it without"
            " --check, and bump the protocol if bytes changed\n"
        )
    return 1 if stale else 0


if __name__ == "__main__":
    sys.exit(main())
