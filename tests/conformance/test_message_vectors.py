"""Replays the golden messages of the plugin protocol against the generated code.

What holds for the Python code has to hold in every language; a test of another SDK
reads the same file.
"""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from google.protobuf import json_format
from google.protobuf.message import DecodeError, Message

from bettong_proto.plugin.v1 import (
    application_pb2,
    batch_pb2,
    compute_pb2,
    control_pb2,
    error_pb2,
    sink_pb2,
    source_pb2,
)

VECTORS_DIR = Path(__file__).resolve().parents[2] / "proto" / "vectors"
VECTORS: list[dict[str, Any]] = json.loads((VECTORS_DIR / "messages.json").read_text())
BY_NAME = {vector["name"]: vector for vector in VECTORS}
MODULES = (
    application_pb2,
    batch_pb2,
    compute_pb2,
    control_pb2,
    error_pb2,
    sink_pb2,
    source_pb2,
)
# Field 1000 with three bytes: no released revision has it.
UNKNOWN_FIELD = bytes.fromhex("c23e03") + b"new"

each_vector = pytest.mark.parametrize("vector", VECTORS, ids=BY_NAME)


def new_message(type_name: str) -> Any:
    package, _, name = type_name.rpartition(".")
    assert package == "bettong.plugin.v1", f"{type_name} is of another package"
    found = [getattr(module, name) for module in MODULES if hasattr(module, name)]
    return found[0]()


def parse(vector: dict[str, Any]) -> Any:
    message = new_message(vector["type"])
    message.ParseFromString(bytes.fromhex(vector["hex"]))
    return message


def parse_named(name: str) -> Any:
    return parse(BY_NAME[name])


def meaning_of(message: Message) -> dict[str, Any]:
    meaning: dict[str, Any] = json_format.MessageToDict(
        message, preserving_proto_field_name=True
    )
    return meaning


def value_at(message: Message, path: str) -> Any:
    """Follow a path of `contains`: "frame.batches[0].records"."""
    value: Any = message
    for part in path.split("."):
        name, _, index = part.partition("[")
        value = getattr(value, name)
        if index:
            value = value[int(index.removesuffix("]"))]
    return value


def batches_in(message: Any) -> Iterator[tuple[int, bytes]]:
    """Yield (count, records) of every batch in a message, opened or forwarded."""
    if isinstance(message, batch_pb2.Batch):
        yield message.count, message.records
        return
    if isinstance(message, compute_pb2.StageInput | sink_pb2.SinkInput):
        yield message.count, message.records
        return
    for field, value in message.ListFields():
        if field.message_type is None or field.message_type.GetOptions().map_entry:
            continue
        for child in value if field.is_repeated else [value]:
            yield from batches_in(child)


def test_vectors_are_what_their_script_makes() -> None:
    made = subprocess.run(
        [sys.executable, str(VECTORS_DIR / "make_messages.py"), "--check"],
        capture_output=True,
        text=True,
        check=False,
    )

    assert made.returncode == 0, made.stderr


def test_names_are_unique() -> None:
    assert len(BY_NAME) == len(VECTORS)


def test_every_message_of_the_streams_has_a_vector_for_each_arm() -> None:
    envelopes = [
        control_pb2.ControlRequest,
        control_pb2.ControlResponse,
        source_pb2.SourceRequest,
        source_pb2.SourceResponse,
        compute_pb2.ComputeRequest,
        compute_pb2.ComputeResponse,
        sink_pb2.SinkRequest,
        sink_pb2.SinkResponse,
    ]

    expected = {
        (envelope.DESCRIPTOR.full_name, arm.name)
        for envelope in envelopes
        for arm in envelope.DESCRIPTOR.oneofs_by_name["message"].fields
    }
    messages = [parse(vector) for vector in VECTORS]
    seen = {
        (message.DESCRIPTOR.full_name, message.WhichOneof("message"))
        for message in messages
        if isinstance(message, tuple(envelopes))
    }

    assert expected <= seen


@each_vector
def test_bytes_have_the_meaning_that_the_vector_says(vector: dict[str, Any]) -> None:
    assert meaning_of(parse(vector)) == vector["json"]


@each_vector
def test_parsed_message_serializes_to_the_same_bytes(vector: dict[str, Any]) -> None:
    again = parse(vector).SerializeToString(deterministic=True)

    assert again.hex() == vector["hex"]


@each_vector
def test_meaning_alone_gives_the_bytes_but_for_unknown_fields(
    vector: dict[str, Any],
) -> None:
    message = json_format.ParseDict(vector["json"], new_message(vector["type"]))

    data = message.SerializeToString(deterministic=True)

    if vector.get("has_unknown_fields"):
        assert bytes.fromhex(vector["hex"]) == data + UNKNOWN_FIELD
    else:
        assert data.hex() == vector["hex"]


@each_vector
def test_unknown_field_is_ignored_and_survives(vector: dict[str, Any]) -> None:
    message = new_message(vector["type"])

    message.ParseFromString(bytes.fromhex(vector["hex"]) + UNKNOWN_FIELD)

    assert meaning_of(message) == vector["json"]
    assert message.SerializeToString(deterministic=True).endswith(UNKNOWN_FIELD)


@each_vector
def test_message_cut_anywhere_raises_nothing_but_a_decode_error(
    vector: dict[str, Any],
) -> None:
    data = bytes.fromhex(vector["hex"])

    refused = []
    for length in range(len(data)):
        try:
            new_message(vector["type"]).ParseFromString(data[:length])
        except DecodeError:
            refused.append(length)

    # A cut between two fields is a whole message; one inside a field never is.
    assert not data or len(data) - 1 in refused


@each_vector
def test_contained_bytes_are_those_of_the_named_vector(vector: dict[str, Any]) -> None:
    message = parse(vector)

    held = {path: value_at(message, path).hex() for path in vector.get("contains", {})}

    named = vector.get("contains", {}).items()
    assert held == {path: BY_NAME[name]["hex"] for path, name in named}


@each_vector
def test_columns_fit_the_count_beside_them(vector: dict[str, Any]) -> None:
    """B-2."""
    for count, data in batches_in(parse(vector)):
        records = batch_pb2.Records.FromString(data)

        assert count >= 1
        assert len(records.values) == (0 if records.value_is_key else count)
        assert len(records.keys) in (0, count)
        assert len(records.event_time_us) in (0, 1, count)
        assert len(records.headers) in (0, count)
        nulls = list(records.nulls)
        assert nulls == sorted(set(nulls))
        assert all(index < count for index in nulls)


@each_vector
def test_rows_and_timers_are_full_columns(vector: dict[str, Any]) -> None:
    """ST-6 and TM-6."""
    message = parse(vector)
    if isinstance(message, batch_pb2.StateRows):
        count = len(message.keys)
        assert len(message.values) == count
        assert len(message.states) in (0, count)
        assert len(message.entries) in (0, count)
        assert len(message.schema_versions) in (0, 1, count)
        assert all(index < count for index in message.absent)
        assert not any(message.values[index] for index in message.absent)
    if isinstance(message, batch_pb2.Timers):
        count = len(message.keys)
        assert len(message.names) == count
        assert len(message.kinds) == count
        assert len(message.due_us) == count
        assert all(message.due_us[index] == 0 for index in message.deleted)


def test_absent_watermark_is_not_the_watermark_zero() -> None:
    """S-20."""
    absent = parse_named("frame-mark-idle").frame
    zero = parse_named("frame-mark-watermark-zero").frame

    assert not absent.HasField("watermark_us")
    assert zero.HasField("watermark_us")
    assert zero.watermark_us == absent.watermark_us == 0


def test_stream_never_committed_has_no_position() -> None:
    """S-4."""
    stream = parse_named("open-stream-from-start").open_stream.stream

    assert not stream.HasField("position")


def test_empty_sink_position_is_not_unknown() -> None:
    """O-5."""
    empty = parse_named("sink-opened-empty").opened
    unknown = parse_named("sink-opened-unknown").opened

    assert empty.WhichOneof("position") == "durable"
    assert (empty.durable.history, empty.durable.sequence) == (b"", 0)
    assert unknown.WhichOneof("position") == "unknown"


def test_empty_value_is_not_a_null() -> None:
    """B-3."""
    records = parse_named("records-nulls")

    assert list(records.values) == [b"1", b"", b""]
    assert list(records.nulls) == [2]


def test_arm_from_the_future_is_no_arm() -> None:
    """V-5."""
    assert parse_named("arm-from-the-future").WhichOneof("message") is None


def test_unknown_error_class_survives_as_a_number() -> None:
    """V-4: the receiver maps it to the zero value; it is no error to parse it."""
    error = parse_named("enum-from-the-future").error

    assert error.error_class not in error_pb2.ErrorClass.values()
