"""What the worker asks to send to plugins, as messages of their data streams.

Pure: the runtime sends them, and so does the simulator.
"""

from bettong_engine.core import effects as core
from bettong_engine.core.dataflow import FlowLimits, ToStage
from bettong_engine.core.ids import InstanceId
from bettong_engine.core.worker import Worker
from bettong_engine.net import translate
from bettong_proto.plugin.v1 import compute_pb2, sink_pb2, source_pb2

Message = (
    source_pb2.SourceResponse | compute_pb2.ComputeResponse | sink_pb2.SinkResponse
)

ToPlugin = (
    ToStage
    | core.ToSinkPlugin
    | core.SendBarrier
    | core.SendTimers
    | core.SendRows
    | core.NotifyCommitted
    | core.HoldSource
    | core.OpenStream
    | core.ResetSource
    | core.ResetCompute
)


def instance_of(effect: ToPlugin) -> InstanceId:
    """Return the data stream that an effect is for."""
    if isinstance(effect, core.ToSinkPlugin):
        return effect.message.instance
    return effect.instance


def messages_of(effect: ToPlugin, worker: Worker, limits: FlowLimits) -> list[Message]:
    """Return the messages that an effect asks for, in order."""
    window = (limits.credit_records, limits.credit_bytes)
    match effect:
        case ToStage():
            return [translate.stage_input(effect, worker.generation)]
        case core.ToSinkPlugin():
            return [
                translate.sink_response(
                    effect.message, worker.history, worker.committed_epoch
                )
            ]
        case core.SendBarrier():
            return [translate.barrier(effect)]
        case core.SendTimers():
            return [*translate.timers_due(effect)]
        case core.SendRows():
            return [*translate.state_values(effect)]
        case core.NotifyCommitted():
            return [translate.committed(effect)]
        case core.HoldSource():
            return [translate.hold(effect)]
        case core.OpenStream():
            return [translate.open_stream(effect)]
        case core.ResetSource():
            return [translate.reset_source(effect, *window)]
        case core.ResetCompute():
            return [translate.reset_compute(effect, *window)]
