"""Log records on their way to the engine."""

import logging

import pytest

from bettong.runtime.logs import LogRing
from bettong_proto.plugin.v1 import control_pb2


@pytest.fixture
def logger() -> logging.Logger:
    made = logging.Logger("words")
    made.setLevel(logging.DEBUG)
    return made


def test_record_keeps_level_fields_and_exception(logger: logging.Logger) -> None:
    ring = LogRing()
    logger.addHandler(ring)

    try:
        raise ValueError("no")
    except ValueError:
        logger.exception("failed on %s", "x", extra={"epoch": 7})

    batch = ring.take()
    assert batch is not None
    (entry,) = batch.entries
    assert (entry.message, entry.logger) == ("failed on x", "words")
    assert entry.level == control_pb2.LOG_LEVEL_ERROR
    assert dict(entry.fields) == {"epoch": "7"}
    assert "ValueError: no" in entry.exception
    assert ring.take() is None


def test_event_dict_becomes_message_and_fields(logger: logging.Logger) -> None:
    ring = LogRing()
    logger.addHandler(ring)

    logger.warning({"event": "checkpoint_completed", "epoch": 7})

    batch = ring.take()
    assert batch is not None
    assert batch.entries[0].message == "checkpoint_completed"
    assert dict(batch.entries[0].fields) == {"epoch": "7"}


def test_full_ring_drops_the_oldest_and_counts_them(logger: logging.Logger) -> None:
    ring = LogRing(records_max=2)
    logger.addHandler(ring)

    for number in range(5):
        logger.info("%d", number)

    batch = ring.take()
    assert batch is not None
    assert [entry.message for entry in batch.entries] == ["3", "4"]
    assert batch.dropped == 3


def test_records_below_the_level_are_not_kept(logger: logging.Logger) -> None:
    ring = LogRing()
    logger.addHandler(ring)
    ring.on_level(control_pb2.LOG_LEVEL_WARNING)

    logger.info("quiet")

    assert ring.take() is None
