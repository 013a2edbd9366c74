"""Credits keep to their side of a reset."""

from bettong_engine.core.dataflow import Grant
from bettong_engine.core.ids import InstanceId
from bettong_engine.net import translate
from bettong_engine.net.outbox import Outbox
from bettong_proto.plugin.v1 import compute_pb2

INPUT = compute_pb2.ComputeResponse(input=compute_pb2.StageInput(count=1))
RESET = compute_pb2.ComputeResponse(reset=compute_pb2.ComputeReset(generation=7))


def grant(records: int) -> Grant:
    return Grant(InstanceId(1), "", 0, 0, 0, records, 100)


def message(source: compute_pb2.ComputeResponse) -> compute_pb2.ComputeResponse:
    return compute_pb2.ComputeResponse.FromString(source.SerializeToString())


def test_credit_goes_out_with_the_next_message_the_newest_only() -> None:
    outbox = Outbox(translate.stage_credits)
    outbox.send(message(INPUT))
    outbox.grant(grant(5))
    outbox.grant(grant(8))

    assert [c.credit.records for c in outbox.take().credits] == [8]
    assert len(outbox) == 0


def test_credit_goes_out_alone_if_nothing_else_does() -> None:
    outbox = Outbox(translate.stage_credits)
    outbox.grant(grant(5))

    assert len(outbox) == 1
    assert [c.credit.records for c in outbox.take().credits] == [5]


def test_credit_from_before_a_reset_is_void() -> None:
    outbox = Outbox(translate.stage_credits)
    outbox.grant(grant(5))
    outbox.send(message(RESET))

    assert not outbox.take().credits
    assert len(outbox) == 0


def test_credit_from_after_a_reset_never_goes_out_ahead_of_it() -> None:
    outbox = Outbox(translate.stage_credits)
    outbox.send(message(INPUT))
    outbox.send(message(RESET))
    outbox.grant(grant(5))

    assert not outbox.take().credits
    assert not outbox.take().credits
    assert [c.credit.records for c in outbox.take().credits] == [5]
