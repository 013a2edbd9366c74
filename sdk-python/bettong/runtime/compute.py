"""The compute role: all stages of a plan on one data stream.

Messages in, messages out; no I/O, no thread, no clock. The caller feeds what arrives
to `on_message` and calls `step` while `has_work`.

Later stages go first, always: a stage may be stopped because a later one has not
consumed its outputs, and taking more input for it would only fill the process.
"""

import itertools
from collections.abc import Callable, Sequence

from bettong.errors import ProtocolError
from bettong.plan import Plan
from bettong.program.columns import SizeLimits
from bettong.program.failure import RecordFailedError
from bettong.runtime import limits
from bettong.runtime.stage_runner import CpuClock, StageRunner
from bettong_proto.plugin.v1 import compute_pb2


class ComputeMachine:
    """Invariant: nothing is sent for a generation before its `reset_done`."""

    def __init__(
        self,
        plan: Plan,
        *,
        sizes: SizeLimits,
        cpu_clock: CpuClock,
        batch_records: int = limits.BATCH_RECORDS_TARGET,
    ) -> None:
        requests = itertools.count(1)
        next_request: Callable[[], int] = requests.__next__
        self._stages = [
            StageRunner(
                plan,
                stage,
                sizes=sizes,
                cpu_clock=cpu_clock,
                next_request=next_request,
                batch_records=batch_records,
            )
            for stage in plan.stages
        ]
        self._generation = 0
        # By channel of the engine: (records, bytes) consumed in this generation.
        self._consumed: dict[int, tuple[int, int]] = {}
        self._unreported: dict[int, None] = {}

    def attach(self, session_id: bytes) -> compute_pb2.ComputeRequest:
        """Return the first message of a data stream."""
        return compute_pb2.ComputeRequest(
            attach=compute_pb2.ComputeAttach(
                session_id=session_id, stages=[stage.name for stage in self._stages]
            )
        )

    @property
    def generation(self) -> int:
        """The generation of the last reset; 0: none yet."""
        return self._generation

    @property
    def stages(self) -> Sequence[StageRunner]:
        """The stages in topological order."""
        return self._stages

    def on_message(
        self, message: compute_pb2.ComputeResponse
    ) -> list[compute_pb2.ComputeRequest]:
        """Take a message of the engine; return what is to be sent at once.

        Raises:
            ProtocolError: the engine broke the contract; the session ends.
        """
        sent: list[compute_pb2.ComputeRequest] = []
        kind = message.WhichOneof("message")
        match kind:
            case "reset":
                sent = self._on_reset(message.reset)
            case "input":
                if self._is_current(message.input.generation):
                    self._stage(message.input.stage).enqueue(message.input)
            case "state_values":
                if self._is_current(message.state_values.generation):
                    sent = self._on_state_values(message.state_values)
            case "timers_due":
                if self._is_current(message.timers_due.generation):
                    stage = self._stage(message.timers_due.stage)
                    stage.enqueue(message.timers_due)
            case "barrier":
                if self._is_current(message.barrier.generation):
                    self._stage(message.barrier.stage).enqueue(message.barrier)
            case None:
                if not message.credits:
                    raise ProtocolError(
                        "the engine sent a message of a kind that this SDK does not"
                        " know; it may only do so for capabilities in common"
                    )
        for credit in message.credits:
            sent += self._stage(credit.stage).on_credit(credit.credit)
        self._collect_consumed(sent)
        return sent

    def has_work(self) -> bool:
        """Return whether `step` would do something."""
        return any(stage.is_runnable() for stage in self._stages)

    def step(self) -> list[compute_pb2.ComputeRequest]:
        """Do one unit of work of the latest stage that can; return what to send."""
        for stage in reversed(self._stages):
            if stage.is_runnable():
                sent = stage.step()
                self._collect_consumed(sent)
                return sent
        return []

    def _on_reset(
        self, reset: compute_pb2.ComputeReset
    ) -> list[compute_pb2.ComputeRequest]:
        if reset.generation <= self._generation:
            return []
        self._generation = reset.generation
        self._consumed.clear()
        self._unreported.clear()
        assignments = {assignment.stage: assignment for assignment in reset.stages}
        for number, stage in enumerate(self._stages):
            stage.on_reset(
                generation=reset.generation,
                committed_epoch=reset.committed_epoch,
                assignment=assignments.pop(number, None),
                credit=(reset.credit_records, reset.credit_bytes),
                processing_time_us=reset.processing_time_us,
            )
        if assignments:
            raise ProtocolError(f"the engine assigned unknown stages {[*assignments]}")
        return [
            compute_pb2.ComputeRequest(
                reset_done=compute_pb2.ComputeResetDone(generation=reset.generation)
            )
        ]

    def _on_state_values(
        self, values: compute_pb2.StateValues
    ) -> list[compute_pb2.ComputeRequest]:
        for stage in self._stages:
            try:
                if stage.on_state_values(values):
                    return []
            except RecordFailedError as failure:
                return [stage.stop(failure)]
        return []

    def _is_current(self, generation: int) -> bool:
        if generation > self._generation:
            raise ProtocolError(
                f"a message of generation {generation} before its reset; the last was"
                f" {self._generation}"
            )
        return generation == self._generation

    def _stage(self, number: int) -> StageRunner:
        if number >= len(self._stages):
            raise ProtocolError(f"a message for stage {number}, which does not exist")
        return self._stages[number]

    def _collect_consumed(self, sent: list[compute_pb2.ComputeRequest]) -> None:
        """Note what was consumed, and report it with the last message or alone."""
        for stage in self._stages:
            consumption = stage.take_consumed()
            if consumption is not None:
                records, size = self._consumed.get(consumption.channel, (0, 0))
                self._consumed[consumption.channel] = (
                    records + consumption.records,
                    size + consumption.size,
                )
                self._unreported[consumption.channel] = None
        if not self._unreported:
            return
        if not sent:
            sent.append(compute_pb2.ComputeRequest())
        for channel in self._unreported:
            records, size = self._consumed[channel]
            sent[-1].consumed.add(channel=channel, records=records, bytes=size)
        self._unreported.clear()
