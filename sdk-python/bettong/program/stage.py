"""The program of a stage: from its input columns and state to its output columns."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from operator import length_hint
from typing import Any

from bettong.context import Context, TimerChange
from bettong.errors import CodecError, KeyTypeError
from bettong.plan import FailurePolicy, KeyedStep, StagePlan
from bettong.program.chain import ChainOptions, ChainWriter, nests_too_deep
from bettong.program.columns import (
    DEFAULT_SIZES,
    Columns,
    SizeLimits,
    Slot,
    checked,
    may_be_key,
    new_slot,
)
from bettong.program.emitter import Emitter
from bettong.program.emitting import emitting
from bettong.program.failure import Blame, OnSkip, RecordFailedError
from bettong.program.source import encode_column
from bettong.program.state_writer import StateWriter


class Entry:
    """All that the cache knows of one key: one object, so one memory miss.

    key: as user code sees it.
    key_bytes: canonical.
    state: the live object; None: the key has no state now.
    mark: the epoch that touched it last; it is in that epoch's list of touched.
    partition: of the key.
    saved: the state as bytes, kept only under policies that put back a state.
    """

    __slots__ = ("key", "key_bytes", "mark", "partition", "saved", "state")

    def __init__(self, key: Any, key_bytes: bytes, partition: int) -> None:
        self.key = key
        self.key_bytes = key_bytes
        self.state: Any = None
        self.mark = 0
        self.partition = partition
        self.saved: bytes | None = None


@dataclass(slots=True)
class Keys:
    """What a program needs of the cache, for one batch.

    get: entry by key bytes, or None.
    miss: makes the entry of a key known to be new; None if it must be asked for.
    touch: notes an entry as touched by the open epoch, of number `mark`.
    """

    get: Callable[[bytes], Entry | None]
    miss: Callable[[bytes], Entry | None]
    touch: Callable[[Entry], None]
    mark: int


# (entry, timer changes in order) of one call.
OnTimers = Callable[[Entry, list[TimerChange]], None]


@dataclass(slots=True)
class Work:
    """A batch on its way through a program, which may stop for missing keys.

    keys, values, times: input columns; `values` None: each value is its key.
    begin: index of the first record that is still to do.
    """

    keys: list[bytes] | None
    values: list[Any] | None
    times: list[int] | None
    variant: "_Variant"
    slots: list[Slot]
    begin: int = 0


@dataclass(slots=True)
class _Variant:
    """One generated function with what belongs to it."""

    function: Callable[..., Any]
    writer: ChainWriter
    blame: Blame
    text: str


class StageProgram:
    """Runs the keyed step of a stage and the chain behind it.

    Variants, with or without values, event times or for timers, are generated when
    an input first needs them.
    """

    def __init__(
        self,
        plan: StagePlan,
        *,
        policy: FailurePolicy,
        sink_partitions: Mapping[str, int],
        limits: SizeLimits = DEFAULT_SIZES,
        on_timers: OnTimers,
    ) -> None:
        self.context: Context[Any, Any] = Context()
        self._plan = plan
        self._policy = policy
        self._guards = policy is not FailurePolicy.FAIL
        self._sink_partitions = sink_partitions
        self._limits = limits
        self._on_timers = on_timers
        self._variants: dict[tuple[bool, bool, bool], _Variant] = {}
        trusted: set[int] = set()
        if not nests_too_deep(plan.chain):
            trusted = {edge.number for edge in plan.outputs if may_be_key(edge)}
        self._trusts_keys = frozenset(trusted)

    @property
    def texts(self) -> list[str]:
        """The generated Python, for debugging."""
        return [variant.text for variant in self._variants.values()]

    def begin(
        self,
        keys: list[bytes] | None,
        values: list[Any] | None,
        times: list[int] | None,
    ) -> Work:
        """Take an input batch. A stage that is not keyed has values."""
        if self._plan.key_codec is None:
            keys = None
        if self._plan.keyed is None and values is None:
            assert keys is not None, "a batch has keys or values"
            values = self._decode_keys(keys)
        variant = self._variant(values is not None, times is not None, False)
        return self._work(keys, values, times, variant)

    def fire(
        self, due: Iterator[tuple[bytes, str, int]], keys: Keys, on_skip: OnSkip
    ) -> list[Columns]:
        """Fire timers, each as (key, name, due time); the cache has all their keys.

        `due` is asked for the next one only after the call before has returned, so
        that a timer may delete another.

        Raises:
            RecordFailedError: user code raised and the policy is FAIL.
        """
        variant = self._variant(True, True, True)
        work = self._work(None, None, None, variant)
        try:
            is_done = variant.function(due, None, None, work.slots, keys, on_skip)
        except Exception as error:
            self.context.timer_changes.clear()
            raise _failure(variant.blame, error, None) from error
        assert is_done, "the keys of timers are fetched before they fire"
        return self.finish(work)

    def run(self, work: Work, keys: Keys, on_skip: OnSkip) -> bool:
        """Go on with a batch; return whether it is done.

        False: the key of record `work.begin` has to be asked for, and perhaps those
        of later ones; call again when the cache has them.

        Raises:
            RecordFailedError: user code raised and the policy is FAIL.
        """
        variant = work.variant
        column = work.keys if work.keys is not None else work.values
        assert column is not None, "a batch has keys or values"
        begin = work.begin
        left = iter(column[begin:] if begin else column)
        values = work.values[begin:] if work.values and begin else work.values
        times = work.times[begin:] if work.times and begin else work.times
        try:
            is_done = variant.function(left, values, times, work.slots, keys, on_skip)
        except Exception as error:
            self.context.timer_changes.clear()
            index = len(column) - length_hint(left) - 1
            raise _failure(variant.blame, error, index) from error
        if not is_done:
            work.begin = len(column) - length_hint(left) - 1
        return bool(is_done)

    def finish(self, work: Work) -> list[Columns]:
        """Return the output columns of a batch that is done, in order of the plan.

        Raises:
            RecordFailedError: a value that its codec refuses, under the policy FAIL.
        """
        writer = work.variant.writer
        columns: list[Columns] = []
        for edge, (keys, values, times) in zip(
            self._plan.outputs, work.slots, strict=True
        ):
            encoded = values
            if values is not None and (not self._guards or writer.trusts(edge)):
                encoded = encode_column(edge, values)
            columns.append(Columns(keys, encoded, times))
            if writer.trusts(edge) and values is not None:
                self._trusts_keys -= {edge.number}
                self._variants.clear()
        return columns

    def decode(
        self, keys: list[bytes] | None, column: list[bytes], input_number: int
    ) -> list[Any]:
        """Decode the values of an input. Raises `RecordFailedError`."""
        codec = self._plan.inputs[input_number].codec
        try:
            return codec.decode_many(column)
        except CodecError as error:
            index = error.index
            key = keys[index] if keys and index is not None else None
            value = None if index is None else column[index]
            fed_by = self._plan.inputs[input_number].fed_by
            raise RecordFailedError(
                error,
                step=f"input of {self._plan.name} from {fed_by}",
                key=key,
                value=value,
                index=index,
            ) from error

    def _decode_keys(self, keys: list[bytes]) -> list[Any]:
        assert self._plan.key_codec is not None, "only keyed stages have keys"
        decode = self._plan.key_codec.decode
        try:
            return [decode(key) for key in keys]
        except KeyTypeError as error:
            raise RecordFailedError(
                error, step=f"input of {self._plan.name}"
            ) from error

    def _work(
        self,
        keys: list[bytes] | None,
        values: list[Any] | None,
        times: list[int] | None,
        variant: _Variant,
    ) -> Work:
        writer = variant.writer
        slots = [
            new_slot(
                has_keys=writer.has_keys(edge),
                has_values=not writer.trusts(edge),
                has_times=writer.has_times(edge),
            )
            for edge in self._plan.outputs
        ]
        return Work(keys, values, times, variant, slots)

    def _variant(self, has_values: bool, has_times: bool, is_timer: bool) -> _Variant:
        found = self._variants.get((has_values, has_times, is_timer))
        if found is None:
            found = self._compile(has_values, has_times, is_timer)
            self._variants[has_values, has_times, is_timer] = found
        return found

    def _compile(self, has_values: bool, has_times: bool, is_timer: bool) -> _Variant:
        plan = self._plan
        emitter = Emitter(f"stage {plan.name}{' timers' if is_timer else ''}")
        options = ChainOptions(
            sink_partitions=self._sink_partitions,
            inherits_key=plan.key_codec is not None,
            with_times=has_times,
            encodes=self._guards,
            trusts_keys=self._trusts_keys,
            limits=self._limits,
        )
        writer = ChainWriter(emitter, plan.outputs, options)
        blame = Blame(emitter, plan.name)
        head = _Head(emitter, writer, blame, self, is_timer)
        with emitter.block("def run(left, values, times, slots, keys, on_skip):"):
            writer.write_prologue()
            if plan.keyed is None:
                head.write_stateless_loop(has_times)
            else:
                head.write_keyed_loop(plan.keyed, has_values, has_times)
            writer.write_epilogue()
            emitter.line("return is_done")
        writer.write_deferred()
        return _Variant(emitter.compile("run"), writer, blame, emitter.text)

    @property
    def plan(self) -> StagePlan:
        """The stage that this program runs."""
        return self._plan

    @property
    def limits(self) -> SizeLimits:
        """What the engine accepts."""
        return self._limits

    @property
    def guards(self) -> bool:
        """Whether a failed record is taken out instead of stopping the stage."""
        return self._guards

    @property
    def on_timers(self) -> OnTimers:
        """Gets the timer changes of each call."""
        return self._on_timers


def _failure(
    blame: Blame, error: BaseException, index: int | None
) -> RecordFailedError:
    step, cause, variables = blame.find(error)
    return RecordFailedError(
        cause,
        step=step,
        key=variables.get("kb"),
        value=variables.get("v"),
        index=index,
    )


class _Head:
    """Writes the loop over the input and the call of the keyed step."""

    def __init__(
        self,
        emitter: Emitter,
        writer: ChainWriter,
        blame: Blame,
        program: StageProgram,
        is_timer: bool,
    ) -> None:
        self._emitter = emitter
        self._writer = writer
        self._blame = blame
        self._program = program
        self._is_timer = is_timer

    def write_stateless_loop(self, has_times: bool) -> None:
        """Write the loop of a stage without a keyed step."""
        emitter = self._emitter
        emitter.line("is_done = True")
        is_keyed = self._program.plan.key_codec is not None
        names = ["kb", "v"] if is_keyed else ["v"]
        columns = ["left", "values"] if is_keyed else ["left"]
        if has_times:
            names.append("t")
            columns.append("times")
        source = f"zip({', '.join(columns)})" if len(columns) > 1 else "left"
        with emitter.block(f"for {', '.join(names)} in {source}:"):
            self._write_guard(
                lambda: self._writer.write(self._program.plan.chain, "v"),
                "kb" if is_keyed else "None",
                "v",
            )

    def write_keyed_loop(
        self, keyed: KeyedStep, has_values: bool, has_times: bool
    ) -> None:
        """Write the loop of a keyed stage.

        It ends with `is_done` False at the first key that has to be asked for.
        """
        emitter = self._emitter
        for name in ("get", "miss", "touch", "mark"):
            emitter.line(f"{name} = keys.{name}")
        wants_context = self._is_timer or keyed.wants_context
        if wants_context:
            context = emitter.bind(self._program.context, "context")
            emitter.line(f"c = {context}")
            emitter.line("changes = c.timer_changes")
        names, columns = ["kb"], ["left"]
        if has_values:
            names.append("v")
            columns.append("values")
        if has_times:
            names.append("t")
            columns.append("times")
        source = f"zip({', '.join(columns)})" if len(columns) > 1 else "left"
        if self._is_timer:
            source = "left"
        with emitter.block(f"for {', '.join(names)} in {source}:"):
            self._write_guard(
                lambda: self._write_keyed_record(keyed, has_values, has_times),
                "kb",
                "v" if has_values else "kb if e is None else e.key",
            )
        with emitter.block("else:"):
            emitter.line("is_done = True")

    def _write_guard(
        self, write_record: Callable[[], None], key: str, value: str
    ) -> None:
        """Write the record's lines; under a policy, so that failing undoes them."""
        emitter, keyed = self._emitter, self._program.plan.keyed
        if not self._program.guards:
            write_record()
            return
        if keyed is not None:
            emitter.line("e = None")
        self._writer.write_marks()
        with emitter.block("try:"):
            write_record()
        with emitter.block("except Exception as error:"):
            self._writer.write_undo()
            if keyed is not None:
                if self._is_timer or keyed.wants_context:
                    emitter.line("changes.clear()")
                self._write_restore()
            skip = emitter.bind(self._blame.skip, "describe_skip")
            emitter.line(f"on_skip({skip}(error, {key}, {value}))")

    def _write_restore(self) -> None:
        keyed = self._program.plan.keyed
        if keyed is None or keyed.state is None:
            return
        emitter = self._emitter
        decode = emitter.bind(keyed.state.codec.decode, "decode_state")
        with emitter.block("if e is not None:"):
            emitter.line(f"e.state = None if e.saved is None else {decode}(e.saved)")

    def _write_keyed_record(
        self, keyed: KeyedStep, has_values: bool, has_times: bool
    ) -> None:
        emitter = self._emitter
        emitter.line("e = get(kb)")
        with emitter.block("if e is None:"):
            emitter.line("e = miss(kb)", step=keyed.name)
            with emitter.block("if e is None:"):
                emitter.line("is_done = False")
                emitter.line("break")
        emitter.line("k = e.key")
        if not has_values:
            emitter.line("v = k")
        arguments = "k, v"
        if keyed.state is not None:
            arguments = "k, v, s"
            self._write_touch(keyed)
        if self._is_timer or keyed.wants_context:
            self._write_call_with_context(keyed, arguments, has_times)
        else:
            self._write_call(keyed, f"({arguments})")
            self._write_save(keyed)

    def _write_touch(self, keyed: KeyedStep) -> None:
        assert keyed.state is not None
        emitter = self._emitter
        with emitter.block("if e.mark != mark:"):
            emitter.line("e.mark = mark")
            emitter.line("touch(e)")
        emitter.line("s = e.state")
        with emitter.block("if s is None:"):
            factory = emitter.bind(keyed.state.factory, "new_state")
            emitter.line(f"s = e.state = {factory}()", step=keyed.name)

    def _write_call_with_context(
        self, keyed: KeyedStep, arguments: str, has_times: bool
    ) -> None:
        emitter = self._emitter
        emitter.line("c.key = k")
        emitter.line(f"c.state = {'None' if keyed.state is None else 's'}")
        emitter.line(f"c.timestamp_us = {'t' if has_times else 'None'}")
        self._write_call(keyed, f"({arguments}, c)")
        if keyed.state is not None:
            with emitter.block("if c.state is not s:"):
                emitter.line("e.state = c.state")
            self._write_save(keyed)
        on_timers = emitter.bind(self._program.on_timers, "on_timers")
        with emitter.block("if changes:"):
            emitter.line(f"{on_timers}(e, changes[:])")
            emitter.line("changes.clear()")

    def _write_call(self, keyed: KeyedStep, arguments: str) -> None:
        """Write the call of user code; the chain runs inside it for each output."""
        emitter, chain = self._emitter, self._program.plan.chain
        function, is_generator = keyed.function, keyed.is_generator
        step = keyed.name
        if self._is_timer:
            assert keyed.on_timer is not None, f"step {step!r} has no on_timer"
            function, is_generator = keyed.on_timer, keyed.on_timer_is_generator
            step = f"{step}.on_timer"
        output = emitter.fresh("v")
        emits = emitting(function) if is_generator else None
        if emits is not None:
            self._write_emitting_call(emits, step, arguments, output)
            return
        name = emitter.bind(function, step)
        if is_generator:
            with emitter.block(f"for {output} in {name}{arguments}:", step=step):
                self._writer.write(chain, output)
        else:
            emitter.line(f"{output} = {name}{arguments}", step=step)
            with emitter.block(f"if {output} is not None:"):
                self._writer.write(chain, output)

    def _write_emitting_call(
        self, function: Callable[..., None], step: str, arguments: str, output: str
    ) -> None:
        """Write the call of a function that takes `emit`, and what follows it."""
        emitter, chain = self._emitter, self._program.plan.chain
        name = emitter.bind(function, step)
        column = self._writer.only_column(chain)
        if column is not None:
            emitter.line(f"{name}({arguments[1:-1]}, {column}_add)", step=step)
            return
        emitter.line("outputs = []")
        emitter.line(f"{name}({arguments[1:-1]}, outputs.append)", step=step)
        with emitter.block(f"for {output} in outputs:"):
            self._writer.write(chain, output)

    def _write_save(self, keyed: KeyedStep) -> None:
        """Under a policy, write down the state: the next call may have to undo."""
        if keyed.state is None or not self._program.guards:
            return
        emitter = self._emitter
        writer = StateWriter(keyed.state)
        checked_state = checked(writer.encode, self._program.limits.state, "state")
        encode = emitter.bind(checked_state, "encode_state")
        emitter.line("s = e.state")
        emitter.line(f"e.saved = None if s is None else {encode}(s)", step=keyed.name)
