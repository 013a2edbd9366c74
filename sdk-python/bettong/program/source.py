"""The program of a source: from the records of a read to its output columns."""

from collections.abc import Mapping, Sequence
from operator import length_hint
from typing import Any

from bettong.errors import CodecError
from bettong.plan import Edge, FailurePolicy, SourcePlan
from bettong.program.chain import ChainOptions, ChainWriter, nests_too_deep
from bettong.program.columns import (
    DEFAULT_SIZES,
    Columns,
    SizeLimits,
    Slot,
    may_be_key,
    new_slot,
)
from bettong.program.emitter import Emitter
from bettong.program.failure import Blame, OnSkip, RecordFailedError

# Smaller than every event time.
NO_TIME = -(1 << 63)


class SourceProgram:
    """Runs the chain that is fused into a source.

    `text` is the generated Python of the variant in use.
    """

    def __init__(
        self,
        plan: SourcePlan,
        *,
        policy: FailurePolicy,
        sink_partitions: Mapping[str, int],
        limits: SizeLimits = DEFAULT_SIZES,
    ) -> None:
        self._plan = plan
        self._policy = policy
        self._sink_partitions = sink_partitions
        self._limits = limits
        trusted: set[int] = set()
        if not nests_too_deep(plan.chain):
            trusted = {edge.number for edge in plan.outputs if may_be_key(edge)}
        self._trusts_keys = frozenset(trusted)
        self.text = ""
        self._compile()

    def run(
        self, records: Sequence[Any], on_skip: OnSkip
    ) -> tuple[list[Columns], int | None]:
        """Run the chain on records, in order.

        Args:
            records: as the reader gave them.
            on_skip: is told each record that the policy takes out.

        Returns:
            Columns per output, in the order of the plan, and the highest event time
            (None: the source has none, or there was no record).

        Raises:
            RecordFailedError: user code raised and the policy is FAIL.
        """
        slots = [self._new_slot(edge) for edge in self._plan.outputs]
        left = iter(records)
        try:
            latest = self._function(left, slots, on_skip)
        except Exception as error:
            index = len(records) - length_hint(left) - 1
            step, cause, variables = self._blame.find(error)
            value = variables.get("v")
            raise RecordFailedError(
                cause, step=step, value=value, index=index
            ) from cause
        columns = [self._finish(edge, slot) for edge, slot in self._pairs(slots)]
        self._learn(slots)
        return columns, None if latest == NO_TIME else latest

    def _pairs(self, slots: list[Slot]) -> list[tuple[Edge, Slot]]:
        return list(zip(self._plan.outputs, slots, strict=True))

    def _new_slot(self, edge: Edge) -> Slot:
        return new_slot(
            has_keys=self._writer.has_keys(edge),
            has_values=not self._writer.trusts(edge),
            has_times=self._writer.has_times(edge),
        )

    def _finish(self, edge: Edge, slot: Slot) -> Columns:
        keys, values, times = slot
        if values is not None and not (self._encodes and not self._writer.trusts(edge)):
            values = encode_column(edge, values)
        return Columns(keys, values, times)

    def _learn(self, slots: list[Slot]) -> None:
        """Stop leaving out the values of outputs whose values are not their keys."""
        wrong = {
            edge.number
            for edge, slot in self._pairs(slots)
            if self._writer.trusts(edge) and slot[1] is not None
        }
        if wrong:
            self._trusts_keys -= wrong
            self._compile()

    @property
    def _encodes(self) -> bool:
        return self._policy is not FailurePolicy.FAIL

    def _compile(self) -> None:
        plan = self._plan
        emitter = Emitter(f"source {plan.name}")
        options = ChainOptions(
            sink_partitions=self._sink_partitions,
            inherits_key=False,
            with_times=plan.event_time is not None,
            encodes=self._encodes,
            trusts_keys=self._trusts_keys,
            limits=self._limits,
        )
        writer = ChainWriter(emitter, plan.outputs, options)
        self._blame = Blame(emitter, plan.name)
        with emitter.block("def run(records, slots, on_skip):"):
            writer.write_prologue()
            emitter.line(f"latest = {NO_TIME}")
            with emitter.block("for v in records:"):
                if self._encodes:
                    self._write_guarded(emitter, writer)
                else:
                    self._write_record(emitter, writer)
            writer.write_epilogue()
            emitter.line("return latest")
        writer.write_deferred()
        self._writer = writer
        self._function = emitter.compile("run")
        self.text = emitter.text

    def _write_guarded(self, emitter: Emitter, writer: ChainWriter) -> None:
        skip = emitter.bind(self._blame.skip, "describe_skip")
        writer.write_marks()
        with emitter.block("try:"):
            self._write_record(emitter, writer)
        with emitter.block("except Exception as error:"):
            writer.write_undo()
            emitter.line(f"on_skip({skip}(error, None, v))")

    def _write_record(self, emitter: Emitter, writer: ChainWriter) -> None:
        event_time = self._plan.event_time
        if event_time is not None:
            function = emitter.bind(event_time, "event_time")
            refuse = emitter.bind(_refuse_time, "refuse_time")
            emitter.line(f"t = {function}(v)", step=f"{self._plan.name}.event_time")
            with emitter.block("if t.__class__ is not int:"):
                emitter.line(f"{refuse}(t)", step=f"{self._plan.name}.event_time")
        writer.write(self._plan.chain, "v")
        if event_time is not None:
            with emitter.block("if t > latest:"):
                emitter.line("latest = t")


def _refuse_time(time: object) -> None:
    raise TypeError(
        f"event_time must return an int, microseconds since the Unix epoch, got"
        f" {time!r}"
    )


def encode_column(edge: Edge, values: list[Any]) -> list[bytes]:
    """Encode what leaves one output. Raises `RecordFailedError` naming the output."""
    try:
        return edge.codec.encode_many(values)
    except CodecError as error:
        value = None if error.index is None else values[error.index]
        receiver = edge.to_stage or edge.to_sink
        raise RecordFailedError(
            error, step=f"output to {receiver}", value=value
        ) from error
