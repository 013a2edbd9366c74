"""The few places where the engine opens a `Records`: counts, splits, dead letters."""

import json
from base64 import b64encode
from collections.abc import Sequence
from zlib import crc32

from google.protobuf.message import DecodeError

from bettong_engine.core.messages import Cause
from bettong_engine.errors import ProtocolError
from bettong_proto.plugin.v1.batch_pb2 import Records

# Of a key or value in a dead letter (PROTOCOL.md, DL-6).
LETTER_BYTES_MAX = 256 << 10


def parse_records(data: bytes) -> Records:
    """Return the columns of a batch. Raises `ProtocolError` for anything else."""
    try:
        return Records.FromString(data)
    except DecodeError as error:
        raise ProtocolError("PROTOCOL", f"a batch is no Records: {error}") from error


def check_records(data: bytes, count: int) -> None:
    """Refuse outputs whose columns do not fit their count.

    A wrong count would shift the numbers of all later outputs, for good. Cost: tens
    of nanoseconds a record.
    """
    records = parse_records(data)
    if records.value_is_key:
        raise ProtocolError("PROTOCOL", "value_is_key in an output to a sink")
    for name, column, allowed in (
        ("values", records.values, (count,)),
        ("keys", records.keys, (0, count)),
        ("headers", records.headers, (0, count)),
        ("event_time_us", records.event_time_us, (0, 1, count)),
    ):
        if len(column) not in allowed:
            raise ProtocolError(
                "PROTOCOL", f"{count} records with {len(column)} elements in {name}"
            )
    nulls = records.nulls
    if nulls and nulls[-1] >= count:
        raise ProtocolError("PROTOCOL", f"null record {nulls[-1]} of {count}")


def split_records(data: bytes, targets: Sequence[int]) -> list[tuple[int, int, bytes]]:
    """Group the records of a keyed batch by the target of their key.

    targets: the target of each partition. Returns (target, count, records),
    ascending, each in the order of the batch.
    """
    records = parse_records(data)
    count = len(records.keys)
    groups: dict[int, list[int]] = {}
    for index, key in enumerate(records.keys):
        target = targets[crc32(key) % len(targets)]
        groups.setdefault(target, []).append(index)
    if count == 0:
        # Records without a key: all to the first target.
        return [(0, len(records.values), data)]
    nulls = frozenset(records.nulls)
    parts: list[tuple[int, int, bytes]] = []
    for target in sorted(groups):
        indices = groups[target]
        part = Records(
            keys=[records.keys[i] for i in indices],
            nulls=[place for place, i in enumerate(indices) if i in nulls],
            value_is_key=records.value_is_key,
        )
        if records.values:
            part.values.extend(records.values[i] for i in indices)
        if records.headers:
            part.headers.extend(records.headers[i] for i in indices)
        if len(records.event_time_us) == count:
            part.event_time_us.extend(records.event_time_us[i] for i in indices)
        else:
            part.event_time_us.extend(records.event_time_us)
        parts.append((target, len(indices), part.SerializeToString()))
    return parts


def make_dead_letter(
    data: bytes, index: int, sink: str, sequence: int, cause: Cause
) -> bytes:
    """Return a Records of one: what a sink refused, as PROTOCOL.md lays it down."""
    records = parse_records(data)
    key = records.keys[index] if records.keys else None
    letter = {
        "step": sink,
        "key": None if key is None else _text(key),
        "value": _text(records.values[index]),
        "error": f"{cause.code}: {cause.message}",
        "stack": "",
        "stream": None,
        "position": None,
        "sequence": sequence,
    }
    value = json.dumps(letter, ensure_ascii=False, separators=(",", ":")).encode()
    return Records(
        keys=[key] if key is not None else [], values=[value]
    ).SerializeToString()


def _text(data: bytes) -> str | dict[str, str | int]:
    if len(data) > LETTER_BYTES_MAX:
        start = b64encode(data[:LETTER_BYTES_MAX]).decode()
        return {"base64_start": start, "bytes": len(data)}
    try:
        return data.decode()
    except UnicodeDecodeError:
        return {"base64": b64encode(data).decode()}
