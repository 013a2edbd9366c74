"""What a run in memory leaves behind: outputs, states, timers."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from bettong.plan import Plan, StagePlan
from bettong.testing.ledger import EVENT_TIME, Ledger
from bettong.testing.memory import MemorySink


@dataclass(frozen=True, slots=True)
class PendingTimer:
    """A timer that is set and has not fired. kind: "event" or "processing"."""

    name: str
    due_us: int
    kind: str


class Result(Mapping[str, list[Any]]):
    """The outputs of each sink, by its name, in the order of their sequences.

    They are values as the codec of the sink gives them back, and str as they were;
    those of a dead-letter sink are dicts.

    epochs: how many were committed.
    skipped: records that the policy "skip" left out.
    """

    def __init__(
        self, plan: Plan, ledger: Ledger, sinks: Mapping[str, MemorySink]
    ) -> None:
        self.epochs = ledger.epoch
        self.skipped = ledger.skipped
        self._plan = plan
        self._ledger = ledger
        self._outputs = {name: sink.records for name, sink in sinks.items()}

    def __getitem__(self, sink: str) -> list[Any]:
        """Return the outputs of a sink. Raises `KeyError`, naming those there are."""
        if sink not in self._outputs:
            known = ", ".join(map(repr, self._outputs))
            raise KeyError(f"no sink {sink!r}, only {known}")
        return self._outputs[sink]

    def __iter__(self) -> Iterator[str]:
        return iter(self._outputs)

    def __len__(self) -> int:
        return len(self._outputs)

    def __repr__(self) -> str:
        return f"Result({self._outputs!r})"

    def state(self, step: str) -> dict[Any, Any]:
        """Return the committed states of a step, by key.

        Raises:
            KeyError: no step of that name has state.
        """
        stage = self._stage(step)
        assert stage.keyed is not None, "only keyed steps are found"
        state = stage.keyed.state
        if state is None:
            raise KeyError(f"step {step!r} has no state=")
        return {
            self._key(stage, key): state.codec.decode(value)
            for (number, key), value in self._ledger.rows.items()
            if number == stage.index
        }

    def timers(self, step: str) -> dict[Any, list[PendingTimer]]:
        """Return the timers of a step that are still set, by key, the next one first.

        Raises:
            KeyError: no such step.
        """
        stage = self._stage(step)
        found: dict[Any, list[PendingTimer]] = {}
        pending = sorted(self._ledger.timers.items(), key=lambda item: item[::-1])
        for (number, key, kind, name), due_us in pending:
            if number == stage.index:
                kind_name = "event" if kind == EVENT_TIME else "processing"
                timer = PendingTimer(name, due_us, kind_name)
                found.setdefault(self._key(stage, key), []).append(timer)
        return found

    def _stage(self, step: str) -> StagePlan:
        stages = [s for s in self._plan.stages if s.keyed is not None]
        for stage in stages:
            if stage.name == step:
                return stage
        known = ", ".join(repr(stage.name) for stage in stages) or "none"
        raise KeyError(f"no stateful step {step!r}; there is: {known}")

    def _key(self, stage: StagePlan, key: bytes) -> Any:
        assert stage.key_codec is not None, "a keyed stage has keys"
        return stage.key_codec.decode(key)
