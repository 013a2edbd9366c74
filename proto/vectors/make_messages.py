"""Makes messages.json, golden bytes of the plugin protocol, from messages.txt.

    python proto/vectors/make_messages.py          writes messages.json
    python proto/vectors/make_messages.py --check  exits with 1 if it is out of date

Needs the generated code (`make proto`). Deterministic: the same protos and examples
give the same file. Fails if a message or a field of the protocol has no example.
"""

import argparse
import json
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from google.protobuf import json_format, text_encoding, text_format
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

from bettong_proto.plugin.v1 import (
    application_pb2,
    batch_pb2,
    compute_pb2,
    control_pb2,
    error_pb2,
    sink_pb2,
    source_pb2,
)

HERE = Path(__file__).resolve().parent
MODULES = (
    application_pb2,
    batch_pb2,
    compute_pb2,
    control_pb2,
    error_pb2,
    sink_pb2,
    source_pb2,
)
MESSAGE_TYPES = {
    name: getattr(module, name)
    for module in MODULES
    for name in module.DESCRIPTOR.message_types_by_name
}
# "records: @records-keyed", the bytes of another example.
_REFERENCE = re.compile(r"(?<=: )@([\w-]+)$", re.MULTILINE)


class ExampleError(Exception):
    """messages.txt is not what its first lines say, or not complete."""


@dataclass(slots=True)
class Example:
    """One entry of messages.txt. `unknown`: bytes appended to the message."""

    name: str
    type_name: str
    meaning: str = ""
    text: str = ""
    unknown: bytes = b""


class Examples:
    """All entries by name, and the messages that they stand for."""

    def __init__(self, text: str) -> None:
        self._examples: dict[str, Example] = {}
        self._messages: dict[str, Message] = {}
        for example in _split(text):
            if example.name in self._examples:
                raise ExampleError(f"two examples are named {example.name!r}")
            self._examples[example.name] = example

    def vectors(self) -> list[dict[str, Any]]:
        """Return the entries of messages.json, in the order of messages.txt."""
        vectors = [self._vector(example) for example in self._examples.values()]
        missing = sorted(_all_names() - self._seen_names())
        if missing:
            raise ExampleError("without an example: " + ", ".join(missing))
        return vectors

    def _vector(self, example: Example) -> dict[str, Any]:
        message = self._message(example.name)
        vector: dict[str, Any] = {
            "name": example.name,
            "type": message.DESCRIPTOR.full_name,
            "meaning": example.meaning,
            "hex": (_serialize(message) + example.unknown).hex(),
            "json": _meaning_of(message),
        }
        names = set(_REFERENCE.findall(example.text))
        held = {_serialize(self._message(name)): name for name in sorted(names)}
        contains = {
            path: held[value] for path, value in _bytes_of(message) if value in held
        }
        if contains:
            vector["contains"] = contains
        if example.unknown:
            vector["has_unknown_fields"] = True
        return vector

    def _message(self, name: str) -> Message:
        """Return the message of an example; references make no cycle."""
        if name not in self._messages:
            example = self._examples.get(name)
            if example is None or example.type_name not in MESSAGE_TYPES:
                raise ExampleError(f"unknown example, or unknown type of it: {name!r}")
            text = _REFERENCE.sub(self._quote, example.text)
            try:
                message = text_format.Parse(text, MESSAGE_TYPES[example.type_name]())
            except text_format.ParseError as error:
                raise ExampleError(f"example {name!r}: {error}") from error
            self._messages[name] = message
        return self._messages[name]

    def _quote(self, reference: re.Match[str]) -> str:
        data = _serialize(self._message(reference.group(1)))
        return f'"{text_encoding.CEscape(data, as_utf8=False)}"'

    def _seen_names(self) -> set[str]:
        seen: set[str] = set()
        for name in self._examples:
            for _, message in _walk(self._message(name)):
                seen.add(message.DESCRIPTOR.full_name)
                seen.update(field.full_name for field, _ in message.ListFields())
        return seen


def _split(text: str) -> Iterator[Example]:
    _, *blocks = re.split(r"^=== ", text, flags=re.MULTILINE)
    for block in blocks:
        head, *lines = block.rstrip().splitlines()
        name, _, type_name = head.partition(" ")
        example = Example(name, type_name)
        meaning = [line[2:] for line in lines if line.startswith("# ")]
        example.meaning = " ".join(meaning)
        unknown = [line[4:] for line in lines if line.startswith("+++ ")]
        example.unknown = bytes.fromhex("".join(unknown))
        example.text = "\n".join(
            line for line in lines if not line.startswith(("# ", "+++ "))
        )
        if not example.meaning:
            raise ExampleError(f"example {name!r} says no meaning")
        yield example


def _serialize(message: Message) -> bytes:
    return message.SerializeToString(deterministic=True)


def _meaning_of(message: Message) -> Any:
    """Return protobuf's JSON; members in order, since maps come in any."""
    meaning = json_format.MessageToDict(message, preserving_proto_field_name=True)
    return json.loads(json.dumps(meaning, sort_keys=True))


def _all_names() -> set[str]:
    found: set[str] = set()
    for message_type in MESSAGE_TYPES.values():
        descriptor = message_type.DESCRIPTOR
        found.add(descriptor.full_name)
        found.update(field.full_name for field in descriptor.fields)
    return found


def _walk(message: Message, path: str = "") -> Iterator[tuple[str, Message]]:
    """Yield a message and all below it, with their paths: "frame.batches[0]."."""
    yield path, message
    for child, value in message.ListFields():
        if child.type != FieldDescriptor.TYPE_MESSAGE or _is_map(child):
            continue
        if not child.is_repeated:
            yield from _walk(value, f"{path}{child.name}.")
            continue
        for index, element in enumerate(value):
            yield from _walk(element, f"{path}{child.name}[{index}].")


def _is_map(child: FieldDescriptor) -> bool:
    entry = child.message_type
    return entry is not None and bool(entry.GetOptions().map_entry)


def _bytes_of(message: Message) -> Iterator[tuple[str, bytes]]:
    """Yield every bytes value with its path: "frame.batches[0].records"."""
    for path, part in _walk(message):
        for child, value in part.ListFields():
            if child.type != FieldDescriptor.TYPE_BYTES:
                continue
            if not child.is_repeated:
                yield f"{path}{child.name}", value
                continue
            for index, element in enumerate(value):
                yield f"{path}{child.name}[{index}]", element


def main() -> int:
    """Write messages.json, or with --check compare it; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="write nothing")
    is_check = parser.parse_args().check
    given = (HERE / "messages.txt").read_text("utf-8")
    try:
        vectors = Examples(given).vectors()
    except ExampleError as error:
        print(f"messages.txt: {error}", file=sys.stderr)
        return 1
    text = json.dumps(vectors, indent=1, ensure_ascii=False) + "\n"
    path = HERE / "messages.json"
    if not is_check:
        path.write_text(text, "utf-8")
        return 0
    if path.exists() and path.read_text("utf-8") == text:
        return 0
    print(
        "messages.json is out of date: run make_messages.py, and read the diff."
        " A released vector never changes.",
        file=sys.stderr,
    )
    return 1


if __name__ == "__main__":
    sys.exit(main())
