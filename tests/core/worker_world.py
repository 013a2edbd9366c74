"""A worker with one source, one keyed stage and sinks; the test plays all others."""

from bettong_engine.core.boundary import Frame, SourceBatch
from bettong_engine.core.delivery import Deliver
from bettong_engine.core.delta import RowColumns, StoredDelta, TimerColumns
from bettong_engine.core.effects import (
    Effect,
    ResetCompute,
    SendBarrier,
    StoreDeltas,
    Tell,
    ToSinkPlugin,
)
from bettong_engine.core.ids import (
    Epoch,
    Generation,
    Incarnation,
    InstanceId,
    PartitionId,
    Term,
    WorkerId,
    partition_of,
)
from bettong_engine.core.limits import WorkerLimits
from bettong_engine.core.messages import (
    Assignment,
    Committed,
    Cut,
    FromWorker,
    Install,
    Probed,
    StartGeneration,
)
from bettong_engine.core.partition import Partition
from bettong_engine.core.topology import (
    OutputSpec,
    SinkSpec,
    SourceSpec,
    StageSpec,
    StateSpec,
    Topology,
)
from bettong_engine.core.worker import Worker, WorkerPorts
from bettong_engine.net.delta_codec import decode_delta, encode_delta
from bettong_engine.net.records import check_records, make_dead_letter, split_records
from bettong_proto.plugin.v1.batch_pb2 import Records

W = WorkerId("w")
HISTORY = b"h" * 16
PARTITIONS = 4
SOURCE, COMPUTE, SINK, DEAD = (InstanceId(n) for n in (1, 2, 3, 4))


def records(*values: bytes) -> bytes:
    return Records(keys=values, values=values).SerializeToString()


def topology(*, is_local: bool = False, has_dead_letters: bool = True) -> Topology:
    """Return in -> count -> out, with dead letters of `out` in `dead`."""
    return Topology(
        "test",
        (SourceSpec("in", is_local, (OutputSpec(0, None),)),),
        (
            StageSpec(
                "count", True, (OutputSpec(None, 0),), (StateSpec("n", "msgpack"),)
            ),
        ),
        (SinkSpec("out"), SinkSpec("dead")),
        PARTITIONS,
        dead_letter_sink=1 if has_dead_letters else None,
    )


class World:
    """Drives a worker as plugins, store and coordinator would."""

    def __init__(
        self, graph: Topology | None = None, *, limits: WorkerLimits | None = None
    ) -> None:
        self.graph = graph or topology()
        self.limits = limits or WorkerLimits()
        self.digests = [b""] * PARTITIONS
        self.committed = 0
        self.generation = 0
        self.stored: dict[int, tuple[StoredDelta, ...]] = {}
        self.numbers: dict[str, int] = {}
        self.is_local = self.graph.sources[0].is_local
        self.worker = self.new_worker([])

    def new_worker(self, deltas: list[StoredDelta]) -> Worker:
        """Return a worker that begins from what a store kept."""
        partitions = [Partition(PartitionId(p)) for p in range(PARTITIONS)]
        for partition in partitions:
            mine = [d for d in deltas if d.partition == partition.number]
            partition.load(None, b"", [(decode_delta(d.body), d) for d in mine])
        return Worker(
            W,
            Incarnation(b"i" * 16),
            self.graph,
            history=HISTORY,
            partitions=partitions,
            limits=self.limits,
            ports=WorkerPorts(
                encode_delta, split_records, check_records, make_dead_letter
            ),
        )

    def restart(self) -> None:
        """Lose the process; keep what is committed on disk."""
        kept = [
            delta
            for epoch, deltas in sorted(self.stored.items())
            if epoch <= self.committed
            for delta in deltas
        ]
        self.worker = self.new_worker(kept)

    # Plugins.

    def attach(self, streams: tuple[str, ...] = ("a",)) -> None:
        """Attach all plugins; the source names its streams."""
        self.worker.on_compute_attached(COMPUTE, ["count"])
        self.worker.on_source_attached(SOURCE, "in", is_local=self.is_local)
        self.worker.on_sink_attached(SINK, "out")
        self.worker.on_sink_attached(DEAD, "dead")
        self.worker.on_streams_found(SOURCE, streams, is_complete=False)

    def started(self, streams: tuple[str, ...] = ("a",)) -> "World":
        """Attach all, and run the first generation with open sinks."""
        self.attach(streams)
        self.next_generation()
        self.open_sinks()
        return self

    def open_sinks(self) -> list[Effect]:
        effects: list[Effect] = []
        for instance in (SINK, DEAD):
            effects += self.worker.on_sink_opened(
                instance, 0, Generation(self.generation), (b"", 0)
            )
        return effects

    def frame(
        self, stream: str, *values: bytes, more: bool = False, **fields: object
    ) -> list[Effect]:
        """Send a frame; one that is not `more` has its number as position."""
        number = self.numbers[stream] = self.numbers.get(stream, 0) + 1
        batches = (SourceBatch(0, 0, len(values), records(*values)),) if values else ()
        position = b"" if more or not values else b"%d" % number
        frame = Frame(
            stream,
            number,
            batches,
            more,
            position,
            bytes=len(values),
            **fields,  # type: ignore[arg-type]
        )
        return self.worker.on_frame(SOURCE, Generation(self.generation), frame)

    def compute(
        self,
        epoch: int,
        rows: dict[bytes, bytes],
        outputs: tuple[bytes, ...] = (),
        timers: dict[bytes, int | None] | None = None,
        *,
        kind: int = 1,
    ) -> list[Effect]:
        """Answer a barrier: outputs, one delta, the ack."""
        where = (COMPUTE, Generation(self.generation))
        if outputs:
            batch = SourceBatch(0, 0, len(outputs), records(*outputs))
            self.worker.on_stage_output(*where, 0, batch)
        parts: list[tuple[int, RowColumns | None, TimerColumns | None]] = []
        for key, value in rows.items():
            place = partition_of(key, PARTITIONS)
            parts.append((place, RowColumns([key], [value]), None))
        for key, due_us in (timers or {}).items():
            gone = [0] if due_us is None else []
            columns = TimerColumns([key], ["t"], [kind], [due_us or 0], gone)
            parts.append((partition_of(key, PARTITIONS), None, columns))
        self.worker.on_delta(*where, Epoch(epoch), 0, parts)
        return self.worker.on_barrier_ack(*where, Epoch(epoch), 0, 0)

    # The coordinator and the store.

    def next_generation(self) -> list[Effect]:
        """Begin a generation at the committed epoch, and install it."""
        return [*self.start_generation(), *self.install()]

    def start_generation(self) -> list[Effect]:
        self.generation += 1
        self.numbers.clear()
        return self.worker.on_coordinator(
            StartGeneration(
                Term(1),
                Generation(self.generation),
                Epoch(self.committed),
                tuple(self.digests),
            )
        )

    def install(self, *, is_answered: bool = True) -> list[Effect]:
        """Install, and let every computation answer its reset, or none."""
        generation = Generation(self.generation)
        effects = self.worker.on_coordinator(
            Install(generation, Epoch(self.committed), Assignment((W,) * PARTITIONS), 0)
        )
        for effect in effects:
            if isinstance(effect, ResetCompute) and is_answered:
                effects = effects + self.worker.on_compute_reset(
                    effect.instance, generation
                )
        return effects

    def cut(self, epoch: int, *, time_us: int = 0) -> list[Effect]:
        message = Cut(Generation(self.generation), Epoch(epoch), time_us)
        return self.worker.on_coordinator(message)

    def store(self, effects: list[Effect]) -> None:
        """Keep the deltas among effects."""
        for effect in effects:
            if isinstance(effect, StoreDeltas):
                self.stored[effect.epoch] = effect.deltas

    def decide(self, epoch: int) -> None:
        """Commit an epoch in the coordination store, and tell nobody."""
        for delta in self.stored[epoch]:
            self.digests[delta.partition] = delta.digest
        self.committed = epoch

    def commit(self, effects: list[Effect], epoch: int) -> list[Effect]:
        """Store the deltas among effects, commit their epoch and announce it."""
        self.store(effects)
        self.decide(epoch)
        message = Committed(Generation(self.generation), Epoch(epoch))
        return self.worker.on_coordinator(message)

    def epoch(
        self,
        rows: dict[bytes, bytes],
        outputs: tuple[bytes, ...] = (),
        timers: dict[bytes, int | None] | None = None,
    ) -> list[Effect]:
        """Cut, compute and commit the next epoch."""
        number = self.committed + 1
        self.cut(number)
        return self.commit(self.compute(number, rows, outputs, timers), number)

    def row(self, key: bytes) -> object:
        place = partition_of(key, PARTITIONS)
        return self.worker.partitions[place].row_of("count", 0, key, b"")


def told(effects: list[Effect], kind: type[FromWorker]) -> list[FromWorker]:
    """Return what the coordinator is told of one kind."""
    return [
        e.message
        for e in effects
        if isinstance(e, Tell) and isinstance(e.message, kind)
    ]


def in_sync(effects: list[Effect]) -> bool:
    """Tell whether the worker has answered that all its partitions are in sync."""
    (answer,) = told(effects, Probed)
    assert isinstance(answer, Probed)
    return all(answer.in_sync)


def delivered(effects: list[Effect], instance: InstanceId = SINK) -> list[list[bytes]]:
    """Return the values of each batch that a sink plugin is sent."""
    return [
        list(Records.FromString(e.message.batch.batch.records).values)
        for e in effects
        if isinstance(e, ToSinkPlugin)
        and isinstance(e.message, Deliver)
        and e.message.instance == instance
    ]


def barriers(effects: list[Effect]) -> list[SendBarrier]:
    return [e for e in effects if isinstance(e, SendBarrier)]
