"""Writes the loops of a chain: its stateless steps, branches and outputs.

The text appends to the slots of `bettong.program.columns`. Where keys and values of
an output are the same objects, the values column is left out until the first record
for which they are not; then the values so far are read back from the keys.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from bettong.errors import GraphError
from bettong.plan import Chain, Edge, Step, StepKind
from bettong.program.columns import (
    DEFAULT_SIZES,
    Encode,
    SizeLimits,
    checked,
    may_be_key,
)
from bettong.program.emitter import DEPTH_MAX, Emitter


@dataclass(frozen=True, slots=True)
class ChainOptions:
    """How the loops of one program are written.

    sink_partitions: of each sink, by name.
    inherits_key: the text has `kb`, the key bytes of the record at hand.
    with_times: the text has `t`, its event time.
    encodes: keys and values are encoded and measured one by one, so that a bad one
        fails alone.
    trusts_keys: outputs whose values were their keys so far, by number.
    limits: checked here only with `encodes`.
    """

    sink_partitions: Mapping[str, int]
    inherits_key: bool
    with_times: bool
    encodes: bool
    trusts_keys: frozenset[int] = frozenset()
    limits: SizeLimits = DEFAULT_SIZES


class UnknownChoiceError(Exception):
    """A `choose` function named a branch that does not exist."""


def refuse_choice(chosen: object, known: tuple[str, ...]) -> None:
    """Raise for a name that no branch has."""
    raise UnknownChoiceError(
        f"the function chose {chosen!r}, but the branches are {', '.join(known)};"
        " return one of these names"
    )


class ChainWriter:
    """Writes one chain into an emitter."""

    def __init__(
        self, emitter: Emitter, edges: tuple[Edge, ...], options: ChainOptions
    ) -> None:
        self._emitter = emitter
        self._edges = edges
        self._options = options
        self._deferred: list[tuple[str, Chain, int]] = []

    def has_keys(self, edge: Edge) -> bool:
        """Return whether the output carries a keys column."""
        if edge.to_sink is not None:
            partitions = self._options.sink_partitions.get(edge.to_sink, 1)
            has_key = edge.key is not None or self._options.inherits_key
            return has_key and partitions > 1
        return edge.key is not None or self._options.inherits_key

    def has_times(self, edge: Edge) -> bool:
        """Return whether the output carries event times; sinks have no use for it."""
        return self._options.with_times and edge.to_stage is not None

    def trusts(self, edge: Edge) -> bool:
        """Return whether the values column is left out as long as possible."""
        return edge.number in self._options.trusts_keys and may_be_key(edge)

    def only_column(self, chain: Chain) -> str | None:
        """Return the column that all values go to as they are, if it is so simple."""
        if chain.steps or chain.branches or chain.choose or len(chain.edges) != 1:
            return None
        edge = chain.edges[0]
        if self.has_keys(edge) or self.has_times(edge) or self._options.encodes:
            return None
        return None if self.trusts(edge) else f"x{edge.number}"

    def write_prologue(self) -> None:
        """Unpack the slots into local names."""
        for edge in self._edges:
            n = edge.number
            self._emitter.line(f"k{n}, x{n}, t{n} = slots[{n}]")
            if self.has_keys(edge):
                self._emitter.line(f"k{n}_add = k{n}.append")
            if not self.trusts(edge):
                self._emitter.line(f"x{n}_add = x{n}.append")
            if self.has_times(edge):
                self._emitter.line(f"t{n}_add = t{n}.append")

    def write_epilogue(self) -> None:
        """Put back the slots whose columns may have been made meanwhile."""
        for edge in self._edges:
            if self.trusts(edge):
                self._emitter.line(f"slots[{edge.number}][1] = x{edge.number}")

    def write_marks(self) -> None:
        """Remember how long the columns are before a record."""
        for edge in self._edges:
            n = edge.number
            column = f"k{n}" if self.has_keys(edge) else f"x{n}"
            self._emitter.line(f"m{n} = len({column})")

    def write_undo(self) -> None:
        """Cut the columns back to the marks."""
        for edge in self._edges:
            n = edge.number
            if self.has_keys(edge):
                self._emitter.line(f"del k{n}[m{n}:]")
            if self.trusts(edge):
                with self._emitter.block(f"if x{n} is not None:"):
                    self._emitter.line(f"del x{n}[m{n}:]")
            else:
                self._emitter.line(f"del x{n}[m{n}:]")
            if self.has_times(edge):
                self._emitter.line(f"del t{n}[m{n}:]")

    def write(self, chain: Chain, variable: str) -> None:
        """Write the chain for the value in `variable`."""
        self._write_steps(chain, variable, 0)

    def write_deferred(self) -> None:
        """Write the functions that took over where nesting became too deep."""
        while self._deferred:
            name, chain, start = self._deferred.pop()
            with self._emitter.block(f"def {name}(slots, v, kb, t):"):
                self.write_prologue()
                self._write_steps(chain, "v", start)

    def _write_steps(self, chain: Chain, variable: str, start: int) -> None:
        emitter = self._emitter
        if emitter.depth >= DEPTH_MAX:
            self._defer(chain, variable, start)
            return
        if start == len(chain.steps):
            self._write_end(chain, variable)
            return
        step = chain.steps[start]
        function = emitter.bind(step.function, step.name)
        match step.kind:
            case StepKind.MAP:
                value = emitter.fresh("v")
                emitter.line(f"{value} = {function}({variable})", step=step.name)
                self._write_steps(chain, value, start + 1)
            case StepKind.FILTER:
                with emitter.block(f"if {function}({variable}):", step=step.name):
                    self._write_steps(chain, variable, start + 1)
            case StepKind.FLAT_MAP:
                self._write_flat_map(chain, step, function, variable, start)

    def _write_flat_map(
        self, chain: Chain, step: Step, function: str, variable: str, start: int
    ) -> None:
        value = self._emitter.fresh("v")
        head = f"for {value} in {function}({variable}):"
        with self._emitter.block(head, step=step.name):
            self._write_steps(chain, value, start + 1)

    def _defer(self, chain: Chain, variable: str, start: int) -> None:
        name = self._emitter.fresh("rest")
        self._deferred.append((name, chain, start))
        kb = "kb" if self._options.inherits_key else "None"
        t = "t" if self._options.with_times else "None"
        self._emitter.line(f"{name}(slots, {variable}, {kb}, {t})")

    def _write_end(self, chain: Chain, variable: str) -> None:
        if not (chain.edges or chain.branches or chain.choose):
            self._emitter.line("pass")
        for edge in chain.edges:
            self._write_edge(edge, variable)
        for branch in chain.branches:
            self._write_steps(branch, variable, 0)
        if chain.choose is not None:
            self._write_choice(chain, variable)

    def _write_choice(self, chain: Chain, variable: str) -> None:
        emitter, step = self._emitter, chain.choose_step
        function = emitter.bind(chain.choose, step)
        refuse = emitter.bind(refuse_choice, "refuse_choice")
        names = emitter.bind(tuple(chain.choices), "choices")
        chosen = emitter.fresh("chosen")
        emitter.line(f"{chosen} = {function}({variable})", step=step)
        word = "if"
        for name, branch in chain.choices.items():
            with emitter.block(f"{word} {chosen} == {name!r}:", step=step):
                self._write_steps(branch, variable, 0)
            word = "elif"
        with emitter.block("else:"):
            emitter.line(f"{refuse}({chosen}, {names})", step=step)

    def _write_edge(self, edge: Edge, variable: str) -> None:
        n, emitter = edge.number, self._emitter
        key = self._write_key(edge, variable) if self.has_keys(edge) else None
        if self.trusts(edge):
            self._write_trusting_value(edge, variable, key)
        else:
            encode = ""
            if self._options.encodes:
                encode = emitter.bind(self._checked_value(edge), "encode")
            receiver = edge.to_stage or edge.to_sink or ""
            emitter.line(
                f"x{n}_add({encode}({variable}))"
                if encode
                else f"x{n}_add({variable})",
                step=f"output to {receiver}" if encode else "",
            )
        if key is not None:
            line = emitter.line(f"k{n}_add({key[1]})", step=edge.key_step)
            if edge.key is not None:
                emitter.key_of_line[line] = (key[0], edge.key_codec)
        if self.has_times(edge):
            emitter.line(f"t{n}_add(t)")

    def _write_key(self, edge: Edge, variable: str) -> tuple[str, str]:
        """Write the call of the key function; return the key, and its bytes."""
        emitter = self._emitter
        if edge.key is None:
            return "kb", "kb"
        if edge.key_codec is None:
            raise GraphError("the edge has a key but no key codec", step=edge.key_step)
        key = emitter.fresh("key")
        function = emitter.bind(edge.key, edge.key_step or "key")
        emitter.line(f"{key} = {function}({variable})", step=edge.key_step)
        if self._options.encodes:
            limit = self._options.limits.key
            checked_key = checked(edge.key_codec.encode, limit, "key")
            return key, f"{emitter.bind(checked_key, 'encode_key')}({key})"
        if edge.key_codec.name == "str":
            return key, f"{key}.encode()"
        encode = emitter.bind(edge.key_codec.encode, "encode_key")
        return key, f"{encode}({key})"

    def _checked_value(self, edge: Edge) -> Encode:
        return checked(edge.codec.encode, self._options.limits.record, "value")

    def _write_trusting_value(
        self, edge: Edge, variable: str, key: tuple[str, str] | None
    ) -> None:
        if key is None or edge.key_codec is None:
            raise GraphError("only keyed edges may leave out values")
        n, emitter = edge.number, self._emitter
        decode = emitter.bind(edge.key_codec.decode, "decode_key")
        with emitter.block(f"if {key[0]} is not {variable} or x{n} is not None:"):
            with emitter.block(f"if x{n} is None:"):
                emitter.line(f"x{n} = [{decode}(b) for b in k{n}]")
            if self._options.encodes:
                encode = emitter.bind(self._checked_value(edge), "encode")
                emitter.line(f"{encode}({variable})", step=f"output to {edge.to_stage}")
            emitter.line(f"x{n}.append({variable})")


def nests_too_deep(chain: Chain) -> bool:
    """Return whether part of the chain has to go into a function of its own.

    Such a function cannot make a column that the main one has left out.
    """
    # Blocks around the chain: def, for, try, the blocks of a key's output.
    return _nesting(chain) + 6 >= DEPTH_MAX


def _nesting(chain: Chain) -> int:
    blocks = sum(step.kind is not StepKind.MAP for step in chain.steps)
    below = [_nesting(branch) for branch in chain.branches]
    below += [1 + _nesting(branch) for branch in chain.choices.values()]
    return blocks + max(below, default=0)
