"""A coordinator with a store that obeys; the test plays its one worker."""

from bettong_engine.core.coordinator import (
    Coordinator,
    CoordinatorLimits,
    CoordinatorState,
    Effect,
    GenerationRecord,
    Manifest,
    Record,
    Send,
    Transact,
)
from bettong_engine.core.ids import Epoch, Generation, Incarnation, Term, WorkerId
from bettong_engine.core.messages import (
    Cut,
    Installed,
    Prepared,
    Probed,
    WorkAvailable,
)

W = WorkerId("w")


class Store:
    """A coordination store that obeys, with the record that it holds."""

    def __init__(self) -> None:
        self.record = Record(
            GenerationRecord(Generation(4), Term(1)),
            Manifest(Epoch(6), Generation(4), Term(1), 0, (b"", b"")),
            leader_revision=1,
        )

    def apply(self, effect: Transact) -> bool:
        """Apply a transaction, unless it expects another record."""
        if effect.expected != self.record:
            return False
        held = self.record
        self.record = Record(
            effect.generation or held.generation,
            effect.commit or held.commit,
            held.leader_revision,
            held.generation_revision + (effect.generation is not None),
            held.commit_revision + (effect.commit is not None),
        )
        return True

    @property
    def revisions(self) -> tuple[int, int]:
        return self.record.generation_revision, self.record.commit_revision


class World:
    """A coordinator with a store; the test plays the one worker."""

    def __init__(self, limits: CoordinatorLimits | None = None) -> None:
        self.store = Store()
        self.it = Coordinator(
            Term(2), self.store.record, (W,), limits=limits or CoordinatorLimits()
        )
        self.now_ms = 1_000

    def apply(self, effects: list[Effect]) -> list[Effect]:
        """Let the store apply the transaction among `effects`; return what follows."""
        (tried,) = (e for e in effects if isinstance(e, Transact))
        assert self.store.apply(tried)
        return self.it.on_applied(tried.token, self.store.revisions, self.now_ms)

    def probed(
        self, *, in_sync: bool = True, missing: tuple[str, ...] = ()
    ) -> list[Effect]:
        answer = Probed(
            W, Incarnation(b"i"), self.it.generation, (in_sync, True), missing
        )
        return self.it.on_message(answer, self.now_ms)

    def run(self, effects: list[Effect]) -> list[Effect]:
        """Go from a generation's first transaction to RUNNING."""
        self.apply(effects)
        self.apply(self.probed())
        return self.installed()

    def installed(self) -> list[Effect]:
        return self.it.on_message(Installed(W, self.it.generation), self.now_ms)

    def started(self) -> "World":
        self.run(self.it.on_start())
        assert self.it.state is CoordinatorState.RUNNING
        return self

    def work(self, epoch: int, *, is_urgent: bool = False) -> list[Effect]:
        message = WorkAvailable(W, self.it.generation, Epoch(epoch), is_urgent)
        return self.it.on_message(message, self.now_ms)

    def prepared(self, epoch: int, *, cpu_us: int = 0) -> list[Effect]:
        message = Prepared(
            W, self.it.generation, Epoch(epoch), {1: b"%d" % epoch}, cpu_us
        )
        return self.it.on_message(message, self.now_ms)

    def cut(self, epoch: int) -> None:
        """Have an epoch cut, whatever the time."""
        self.now_ms += 2_000
        assert cuts(self.work(epoch)) == [epoch]


def messages(effects: list[Effect], kind: type) -> list[object]:
    return [
        e.message
        for e in effects
        if isinstance(e, Send) and isinstance(e.message, kind)
    ]


def cuts(effects: list[Effect]) -> list[int]:
    return [m.epoch for m in messages(effects, Cut) if isinstance(m, Cut)]


def kinds(effects: list[Effect]) -> list[str]:
    return [
        type(e.message).__name__ if isinstance(e, Send) else type(e).__name__
        for e in effects
    ]
