"""Any sequence of calls, restarts and crashes leaves what a naive store would hold."""

import shutil
import tempfile
from pathlib import Path

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from tests.store.values import META, commit, created, delta, opened, snapshot

from bettong_engine.core.delta import StoredDelta
from bettong_engine.store.interface import (
    Applied,
    Conflict,
    LoadedPartition,
    StoredSnapshot,
)

PARTITIONS = st.integers(0, 5)


class StoreMachine(RuleBasedStateMachine):
    """Compares a SingleStore with lists and dictionaries."""

    def __init__(self) -> None:
        super().__init__()
        self.root = Path(tempfile.mkdtemp(prefix="bettong-model-"))
        self.path = self.root / "0"
        self.store = created(self.path)
        self.records: dict[str, tuple[bytes, int]] = {}
        self.waiting: list[StoredDelta] = []
        self.durable: list[StoredDelta] = []
        self.snapshots: dict[int, StoredSnapshot] = {}
        # committed <= epoch: of the last append.
        self.committed = 0
        self.epoch = 0
        self.copies = 0

    def teardown(self) -> None:
        self.store.close()
        shutil.rmtree(self.root)

    @rule(
        bodies=st.dictionaries(PARTITIONS, st.binary(max_size=20), max_size=6),
        times=st.sampled_from([1, 1, 5_000]),
    )
    def append(self, bodies: dict[int, bytes], times: int) -> None:
        self.epoch += 1
        deltas = [
            delta(partition, self.epoch, body * times)
            for partition, body in bodies.items()
        ]
        self.store.append(self.epoch, deltas)
        self.waiting += deltas

    @precondition(lambda self: self.committed < self.epoch)
    @rule()
    def commit_next(self) -> None:
        self.committed += 1
        commit(self.store, self.committed)
        found = self.store.get(["commit"])["commit"]
        self.records["commit"] = (found.value, found.revision)
        self.durable += self.waiting
        self.waiting.clear()

    @rule(key=st.sampled_from(["a", "commit"]), revision=st.integers(0, 3))
    def transact_with_a_guess(self, key: str, revision: int) -> None:
        known = self.records.get(key, (b"", 0))[1]

        result = self.store.transact({key: revision}, {"a": b"guessed"})

        if revision == known:
            assert isinstance(result, Applied)
            assert result.revision > max(
                (r for _, r in self.records.values()), default=0
            )
            self.records["a"] = (b"guessed", result.revision)
            self.durable += self.waiting
            self.waiting.clear()
        else:
            assert isinstance(result, Conflict)

    @rule()
    def sync(self) -> None:
        self.store.sync()
        self.durable += self.waiting
        self.waiting.clear()

    @rule()
    def truncate(self) -> None:
        self.store.truncate_after(self.committed)
        self._drop_uncommitted()

    @precondition(lambda self: not self._waits_committed())
    @rule(partition=PARTITIONS, body=st.binary(max_size=20), back=st.integers(0, 2))
    def put_snapshot(self, partition: int, body: bytes, back: int) -> None:
        known = self.snapshots.get(partition)
        epoch = max(self.committed - back, known.epoch if known else 0)
        self.snapshots[partition] = snapshot(partition, epoch, body)
        self.store.put_snapshot(self.snapshots[partition])

    @rule()
    def tidy(self) -> None:
        self.store.tidy()

    @rule()
    def restart(self) -> None:
        self.store.close()
        self._reopen(self.path)

    @rule()
    def crash(self) -> None:
        self.copies += 1
        path = self.root / str(self.copies)
        shutil.copytree(self.path, path)
        self.store.close()
        self._reopen(path)

    @invariant()
    def holds_what_the_model_holds(self) -> None:
        found = {
            key: (record.value, record.revision)
            for key, record in self.store.get(["a", "commit"]).items()
        }
        assert found == self.records
        assert list(self.store.load()) == list(self._expected())
        assert self.store.meta() == META

    def _reopen(self, path: Path) -> None:
        self.path = path
        self.store = opened(path)
        self.waiting.clear()
        self.holds_what_the_model_holds()
        self.store.truncate_after(self.committed)
        self._drop_uncommitted()

    def _drop_uncommitted(self) -> None:
        self.waiting = [d for d in self.waiting if d.epoch <= self.committed]
        self.durable = [d for d in self.durable if d.epoch <= self.committed]
        self.epoch = self.committed

    def _waits_committed(self) -> bool:
        return any(d.epoch <= self.committed for d in self.waiting)

    def _expected(self) -> list[LoadedPartition]:
        result = []
        for partition in range(6):
            kept = self.snapshots.get(partition)
            deltas = [
                d
                for d in self.durable
                if d.partition == partition and d.epoch > (kept.epoch if kept else 0)
            ]
            if kept or deltas:
                result.append(LoadedPartition(partition, kept, deltas))
        return result


TestStore = StoreMachine.TestCase
TestStore.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
