"""What a stateful function may do with its context."""

from typing import Any

import pytest

import bettong as bt
from bettong.context import TIMER_KINDS, TimerChange
from bettong_proto.plugin.v1 import batch_pb2


def test_timer_changes_are_kept_in_order_for_the_runtime() -> None:
    context: bt.Context[str, Any] = bt.Context()

    context.set_timer("close", 5)
    context.set_timer("poll", -7, "processing")
    context.delete_timer("close")

    assert context.timer_changes == [
        TimerChange(batch_pb2.TIMER_KIND_EVENT_TIME, "close", 5),
        TimerChange(batch_pb2.TIMER_KIND_PROCESSING_TIME, "poll", -7),
        TimerChange(batch_pb2.TIMER_KIND_EVENT_TIME, "close", None),
    ]


def test_timer_kinds_are_those_of_the_wire() -> None:
    assert TIMER_KINDS == {
        "event": batch_pb2.TIMER_KIND_EVENT_TIME,
        "processing": batch_pb2.TIMER_KIND_PROCESSING_TIME,
    }


@pytest.mark.parametrize(
    ("name", "due_us", "kind"),
    [
        ("t", 1.5, "event"),
        ("t", True, "event"),
        ("t", 2**63, "event"),
        ("t", 1, "wall"),
        (b"t", 1, "event"),
    ],
)
def test_timer_that_the_wire_has_no_form_for_is_refused(
    name: Any, due_us: Any, kind: Any
) -> None:
    context: bt.Context[str, Any] = bt.Context()

    with pytest.raises(bt.TimerError, match="timer"):
        context.set_timer(name, due_us, kind)

    assert context.timer_changes == []


def test_deleted_state_is_none() -> None:
    context: bt.Context[str, list[int]] = bt.Context()
    context.state = [1]

    context.delete_state()

    assert context.state is None
