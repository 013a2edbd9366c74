"""Finds rows of keyed state for a computation that does not hold them."""

from collections.abc import Sequence

from bettong_engine.core.dataflow import Dataflow
from bettong_engine.core.effects import FoundRow
from bettong_engine.core.ids import InstanceId, partition_of
from bettong_engine.core.partition import Partition
from bettong_engine.errors import ProtocolError


def find_rows(
    flow: Dataflow,
    partitions: Sequence[Partition],
    instance: InstanceId,
    stage: int,
    wanted: Sequence[tuple[int, bytes, bytes]],
    *,
    all_entries: bool,
) -> list[FoundRow]:
    """Return the newest rows of (state, key, entry), open epochs included, in order.

    all_entries: all entries of each key instead, by name.

    Raises:
        ProtocolError: a key is in a partition that the instance does not own.
    """
    name = flow.stage_name(stage)
    rows: list[FoundRow] = []
    for state, key, entry in wanted:
        place = partition_of(key, len(partitions))
        if flow.owner_of(stage, place) != instance:
            raise ProtocolError(
                "PROTOCOL", f"state of partition {place}, which is not its own"
            )
        if all_entries:
            entries = partitions[place].entries_of(name, state, key)
            rows += [FoundRow(state, key, e, row) for e, row in entries.items()]
        else:
            row = partitions[place].row_of(name, state, key, entry)
            rows.append(FoundRow(state, key, entry, row))
    return rows
