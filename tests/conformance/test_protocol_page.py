"""PROTOCOL.md is complete where a machine can tell: rules, codes, limits, messages."""

import re
from collections import Counter
from pathlib import Path

from bettong_proto.plugin.v1 import (
    compute_pb2,
    control_pb2,
    error_pb2,
    sink_pb2,
    source_pb2,
)

PROTO_DIR = Path(__file__).resolve().parents[2] / "proto"
PAGE = (PROTO_DIR / "PROTOCOL.md").read_text("utf-8")
RULES = re.findall(r"^- \*\*([A-Z]+-\d+)\*\*", PAGE, re.MULTILINE)


def section(title: str) -> str:
    """Return the text of a section, up to the next one."""
    return PAGE.split(f"\n## {title}\n", 1)[1].split("\n## ", 1)[0]


def test_rule_numbers_are_unique_and_without_gaps() -> None:
    numbers: dict[str, list[int]] = {}
    for rule in RULES:
        letters, _, number = rule.partition("-")
        numbers.setdefault(letters, []).append(int(number))

    assert [rule for rule, times in Counter(RULES).items() if times > 1] == []
    for letters, found in numbers.items():
        assert sorted(found) == list(range(1, len(found) + 1)), letters


def test_every_rule_that_is_cited_exists() -> None:
    families = {rule.partition("-")[0] for rule in RULES}
    cited = {
        rule
        for rule in re.findall(r"\b[A-Z]{1,2}-\d+\b", PAGE.replace("UTF-8", ""))
        if rule.partition("-")[0] in families
    }

    assert cited <= set(RULES)


def test_every_error_code_and_class_has_its_line() -> None:
    text = section("19. Errors")

    codes = [
        name.removeprefix("ERROR_CODE_")
        for name in error_pb2.ErrorCode.DESCRIPTOR.values_by_name
    ]
    classes = [
        name.removeprefix("ERROR_CLASS_")
        for name in error_pb2.ErrorClass.DESCRIPTOR.values_by_name
    ]
    lines = [line for line in text.splitlines() if line.startswith("  | ")]
    named = {
        word.strip()
        for line in lines
        for word in line.strip().strip("|").split("|")[0].split(",")
    }

    assert {*codes, *classes} <= named


def test_every_limit_has_its_line_and_default() -> None:
    text = section("4. Limits")

    for field in control_pb2.Limits.DESCRIPTOR.fields:
        assert re.search(rf"^  \| `{field.name}` \| [\d,]+", text, re.MULTILINE), field


def test_every_arm_of_the_streams_is_spoken_of() -> None:
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
    arms = {
        arm.message_type.name
        for envelope in envelopes
        for arm in envelope.DESCRIPTOR.oneofs_by_name["message"].fields
    }

    silent = sorted(arm for arm in arms if not re.search(rf"\b{arm}\b", PAGE))

    assert silent == []
