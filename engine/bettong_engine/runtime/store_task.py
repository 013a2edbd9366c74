"""Runs the store in one thread of its own, in order, and retries what must not fail.

An epoch costs one hop to that thread: its deltas wait here until its commit, and
both are made durable together.
"""

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol

import structlog

from bettong_engine.core.coordinator import Record, Transact
from bettong_engine.core.delta import StoredDelta
from bettong_engine.core.ids import Epoch
from bettong_engine.errors import StoreUnavailableError, StoreUnknownError
from bettong_engine.net.delta_codec import (
    decode_generation,
    decode_manifest,
    encode_generation,
    encode_manifest,
)
from bettong_engine.store.interface import (
    Applied,
    CoordinationStore,
    DeltaStore,
    StoredSnapshot,
)

log = structlog.get_logger()

LEADER_KEY = "leader"
GENERATION_KEY = "generation"
COMMIT_KEY = "commit"

RETRY_MS_MIN = 50
RETRY_MS_MAX = 2_000


class EngineStore(CoordinationStore, DeltaStore, Protocol):
    """A store that keeps commit records and deltas in the same transactions."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """Of a transaction. revisions: of generation and commit; None: conflict."""

    token: int
    revisions: tuple[int, int] | None
    cpu_us: int


class StoreTask:
    """Invariant: jobs reach the store in the order they were given."""

    def __init__(
        self,
        store: EngineStore,
        on_outcome: Callable[[Outcome], None],
        on_unknown: Callable[[int], None],
        on_record: Callable[[int, Record], None],
        on_trouble: Callable[[str | None], None],
        on_fatal: Callable[[BaseException], None],
    ) -> None:
        self._store = store
        self._on_outcome = on_outcome
        self._on_unknown = on_unknown
        self._on_record = on_record
        self._on_trouble = on_trouble
        self._on_fatal = on_fatal
        self._thread = ThreadPoolExecutor(1, "bettong-store")
        self._deltas: list[tuple[Epoch, tuple[StoredDelta, ...]]] = []
        self._jobs: asyncio.Queue[Callable[[], Callable[[], None]]] = asyncio.Queue()
        self._runner = asyncio.create_task(self._run())

    def append(self, epoch: Epoch, deltas: tuple[StoredDelta, ...]) -> None:
        """Keep an epoch's deltas until the transaction that commits it."""
        self._deltas.append((epoch, deltas))

    def truncate_after(self, epoch: Epoch) -> None:
        """Drop deltas after `epoch`, those that wait here too."""
        self._deltas = [item for item in self._deltas if item[0] <= epoch]

        def job() -> Callable[[], None]:
            self._store.truncate_after(epoch)
            return _nothing

        self._jobs.put_nowait(job)

    def transact(self, effect: Transact) -> None:
        """Write deltas and records in one durable transaction."""
        deltas, self._deltas = self._deltas, []
        expected = effect.expected
        guards = {
            LEADER_KEY: expected.leader_revision,
            GENERATION_KEY: expected.generation_revision,
            COMMIT_KEY: expected.commit_revision,
        }
        puts: dict[str, bytes] = {}
        if effect.generation is not None:
            puts[GENERATION_KEY] = encode_generation(effect.generation)
        if effect.commit is not None:
            puts[COMMIT_KEY] = encode_manifest(effect.commit)
        revisions = (expected.generation_revision, expected.commit_revision)
        waiting = deltas

        def job() -> Callable[[], None]:
            nonlocal waiting
            begun = time.thread_time_ns()
            while waiting:
                epoch, items = waiting[0]
                self._store.append(epoch, items)
                waiting = waiting[1:]
            try:
                result = self._store.transact(guards, puts)
            except StoreUnknownError:
                return lambda: self._on_unknown(effect.token)
            found = None
            if isinstance(result, Applied):
                found = (
                    result.revision if effect.generation else revisions[0],
                    result.revision if effect.commit else revisions[1],
                )
            cpu_us = (time.thread_time_ns() - begun) // 1000
            return lambda: self._on_outcome(Outcome(effect.token, found, cpu_us))

        self._jobs.put_nowait(job)

    def read(self, token: int) -> None:
        """Read the records again."""

        def job() -> Callable[[], None]:
            record = read_record(self._store)
            assert record is not None, "the records exist since the creation"
            return lambda: self._on_record(token, record)

        self._jobs.put_nowait(job)

    def put_snapshot(
        self, snapshot: StoredSnapshot, on_done: Callable[[], None]
    ) -> None:
        """Replace a partition's snapshot and drop the deltas that it holds."""

        def job() -> Callable[[], None]:
            try:
                self._store.put_snapshot(snapshot)
            except StoreUnavailableError as error:
                # The old snapshot and its deltas stay; commits must not wait for it.
                log.warning("snapshot_put_off", why=str(error))
            return on_done

        self._jobs.put_nowait(job)

    async def close(self) -> None:
        """Do what was given, then close the store."""
        done = asyncio.Event()

        def job() -> Callable[[], None]:
            self._store.close()
            return done.set

        self._jobs.put_nowait(job)
        finished = asyncio.create_task(done.wait())
        await asyncio.wait(
            (finished, self._runner), return_when=asyncio.FIRST_COMPLETED
        )
        finished.cancel()
        self._runner.cancel()
        self._thread.shutdown(wait=False)

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            job = await self._jobs.get()
            delay_ms = RETRY_MS_MIN
            is_troubled = False
            while True:
                try:
                    tell = await loop.run_in_executor(self._thread, job)
                    break
                except StoreUnavailableError as error:
                    is_troubled = True
                    log.error("store_unavailable", why=str(error), retry_ms=delay_ms)
                    self._on_trouble(str(error))
                    await asyncio.sleep(delay_ms / 1000)
                    delay_ms = min(delay_ms * 2, RETRY_MS_MAX)
                except Exception as error:  # a bug, or a damaged store: stop
                    log.exception("store_failed")
                    self._on_fatal(error)
                    return
            if is_troubled:
                log.info("store_recovered")
                self._on_trouble(None)
            try:
                tell()
            except Exception as error:  # a bug of the core: stop
                log.exception("engine_failed")
                self._on_fatal(error)
                return
            if self._jobs.empty():
                await loop.run_in_executor(self._thread, self._tidy)

    def _tidy(self) -> None:
        """Let the store do what can wait, while nobody waits."""
        try:
            self._store.tidy()
        except StoreUnavailableError as error:
            log.debug("store_untidy", why=str(error))


def read_record(store: CoordinationStore) -> Record | None:
    """Return what the store holds, or None before the application is created."""
    found = store.get((LEADER_KEY, GENERATION_KEY, COMMIT_KEY))
    if COMMIT_KEY not in found:
        return None
    leader = found.get(LEADER_KEY)
    generation, commit = found[GENERATION_KEY], found[COMMIT_KEY]
    return Record(
        decode_generation(generation.value),
        decode_manifest(commit.value),
        leader.revision if leader else 0,
        generation.revision,
        commit.revision,
    )


def _nothing() -> None:
    pass
