"""The sinks of a worker: their output logs, deliveries and refused outputs."""

from collections.abc import Callable, Sequence

from bettong_engine.core import delivery
from bettong_engine.core.delivery import Delivery
from bettong_engine.core.delta import OutputBatch
from bettong_engine.core.effects import Effect, Tell, ToSinkPlugin
from bettong_engine.core.ids import Generation, InstanceId, WorkerId, sink_home
from bettong_engine.core.messages import Cause, NeedPause
from bettong_engine.core.output_log import OutputLog
from bettong_engine.core.partition import Partition
from bettong_engine.core.run import Run
from bettong_engine.core.topology import Topology
from bettong_engine.errors import ProtocolError

# (records of the batch, index, sink, sequence, cause) -> a Records of one.
MakeDeadLetter = Callable[[bytes, int, str, int, Cause], bytes]


class SinkDesk:
    """Invariant: a sink partition has one delivery, over the log of its home."""

    def __init__(
        self,
        worker: WorkerId,
        topology: Topology,
        partitions: Sequence[Partition],
        *,
        history: bytes,
        make_dead_letter: MakeDeadLetter,
    ) -> None:
        # By (sink, sink partition).
        self.deliveries: dict[tuple[int, int], Delivery] = {}
        self._worker = worker
        self._topology = topology
        self._make_dead_letter = make_dead_letter
        for number, sink in enumerate(topology.sinks):
            for place in range(sink.partitions):
                home = sink_home(sink.name, place, topology.partitions)
                log = partitions[home].log_of(sink.name, place)
                self.deliveries[number, place] = Delivery(log, history)

    @property
    def logs(self) -> dict[tuple[int, int], OutputLog]:
        """The output logs, by (sink, sink partition)."""
        return {place: target.log for place, target in self.deliveries.items()}

    @property
    def log_bytes(self) -> int:
        """Of committed outputs that targets do not have."""
        return sum(target.log.bytes for target in self.deliveries.values())

    def has_unrecorded_progress(self) -> bool:
        """Tell whether some target has more than any prepared epoch says."""
        return any(d.log.has_unrecorded_progress() for d in self.deliveries.values())

    def has_delivered_all(self) -> bool:
        """Tell whether every committed output is durable in its target."""
        return all(target.has_delivered_all for target in self.deliveries.values())

    def on_attached(
        self, run: Run | None, sink: int, instance: InstanceId, generation: Generation
    ) -> list[Effect]:
        """Deliver to this plugin from now on."""
        effects: list[Effect] = []
        for place, target in self._of(sink):
            opened = target.on_attached(instance, generation)
            if run is not None:
                effects += self._do(run, place, target, opened)
        return effects

    def on_lost(self, sink: int) -> None:
        """Keep outputs until another plugin comes."""
        for _, target in self._of(sink):
            target.on_lost()

    def on_generation(self, run: Run) -> list[Effect]:
        """Open every target anew, with the new fence."""
        effects: list[Effect] = []
        for place, target in self.deliveries.items():
            opened = target.on_generation(run.generation)
            effects += self._do(run, place, target, opened)
        return effects

    def on_committed(self, run: Run) -> list[Effect]:
        """Send what a commit has released."""
        effects: list[Effect] = []
        for place, target in self.deliveries.items():
            effects += self._do(run, place, target, target.on_committed())
        return effects

    def on_event(
        self,
        run: Run,
        sink: int,
        sink_partition: int,
        event: Callable[[Delivery], list[delivery.Effect]],
    ) -> list[Effect]:
        """Tell a delivery what its plugin says. Raises `ProtocolError`."""
        place = (sink, sink_partition)
        target = self.deliveries.get(place)
        if target is None:
            raise ProtocolError(
                "PROTOCOL",
                f"sink {self._topology.sinks[sink].name!r} has no sink partition"
                f" {sink_partition}",
            )
        return self._do(run, place, target, event(target))

    def _of(self, sink: int) -> list[tuple[tuple[int, int], Delivery]]:
        return [item for item in self.deliveries.items() if item[0][0] == sink]

    def _do(
        self,
        run: Run,
        place: tuple[int, int],
        target: Delivery,
        found: Sequence[delivery.Effect],
    ) -> list[Effect]:
        effects: list[Effect] = []
        for item in found:
            if isinstance(item, delivery.Quarantine):
                effects += self._quarantine(run, place, target, item)
            elif isinstance(item, delivery.Blocked):
                effects.append(self._pause(run, item.cause))
            else:
                effects.append(ToSinkPlugin(item))
        return effects

    def _quarantine(
        self,
        run: Run,
        place: tuple[int, int],
        target: Delivery,
        item: delivery.Quarantine,
    ) -> list[Effect]:
        """Make a dead letter of a refused output, in the open epoch, with its mark."""
        dead = self._topology.dead_letter_sink
        if dead is None or dead == place[0]:
            return [self._pause(run, item.cause)]
        numbered = target.log.batch_of(item.sequence)
        assert numbered is not None, "a delivery quarantines what it has sent"
        record = self._make_dead_letter(
            numbered.batch.records,
            item.sequence - numbered.first_sequence,
            target.log.sink,
            item.sequence,
            item.cause,
        )
        entry = run.ledger.of(run.boundary.open_epoch)
        entry.add_output((dead, 0), OutputBatch(1, record))
        entry.skipped.setdefault(place, []).append(item.sequence)
        return []

    def _pause(self, run: Run, cause: Cause) -> Effect:
        return Tell(NeedPause(self._worker, run.generation, cause))
