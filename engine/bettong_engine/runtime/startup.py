"""Creates an application in a store, or loads the one that is there."""

import secrets
from dataclasses import dataclass

from bettong_engine.core.coordinator import GenerationRecord, Manifest, Record
from bettong_engine.core.ids import Epoch, Generation, PartitionId, Term
from bettong_engine.core.partition import Partition
from bettong_engine.core.registration import Consent, check_change
from bettong_engine.core.renaming import copy_renamed, drop_names
from bettong_engine.core.topology import Topology
from bettong_engine.errors import StateCorruptedError
from bettong_engine.net import translate
from bettong_engine.net.delta_codec import (
    decode_delta,
    encode_delta,
    encode_generation,
    encode_manifest,
)
from bettong_engine.runtime.store_task import (
    COMMIT_KEY,
    GENERATION_KEY,
    EngineStore,
    read_record,
)
from bettong_engine.store.interface import Applied, Meta, StoredSnapshot
from bettong_proto.plugin.v1 import application_pb2


@dataclass(frozen=True, slots=True)
class Application:
    """An application as it stands at the last commit."""

    topology: Topology
    history: bytes
    term: Term
    record: Record
    partitions: tuple[Partition, ...]


def create_or_load(
    store: EngineStore,
    topology: Topology,
    body: bytes,
    consent: Consent,
    durability: str,
) -> Application:
    """Return the application, at the last committed epoch, in a new term.

    Raises:
        ProtocolError: APPLICATION_CHANGED, it does not fit what is stored.
        StateCorruptedError: the store does not hold what was committed.
    """
    meta = store.meta()
    if meta is None:
        meta = Meta(
            cluster_id=secrets.token_bytes(16),
            history=secrets.token_bytes(16),
            application=body,
            durability=durability,
            coordination="single",
        )
        store.create(meta)
    else:
        stored = application_pb2.Application.FromString(meta.application)
        known = translate.topology_of(stored)
        consent = consent.needed(known, topology)
        check_change(known, topology, consent)
    term = Term(store.campaign(b"worker-1"))
    if read_record(store) is None:
        _write_first_record(store, topology, term)
    record = read_record(store)
    assert record is not None
    store.truncate_after(record.commit.epoch)
    partitions = _load(store, topology, record)
    _apply_consent(store, partitions, consent)
    if body != meta.application:
        store.update_application(body)
    return Application(topology, meta.history, term, record, partitions)


def _write_first_record(store: EngineStore, topology: Topology, term: Term) -> None:
    manifest = Manifest(Epoch(0), Generation(0), term, 0, (b"",) * topology.partitions)
    generation = GenerationRecord(Generation(0), term)
    result = store.transact(
        {COMMIT_KEY: 0, GENERATION_KEY: 0},
        {
            COMMIT_KEY: encode_manifest(manifest),
            GENERATION_KEY: encode_generation(generation),
        },
    )
    assert isinstance(result, Applied), "the data directory is locked"


def _load(
    store: EngineStore, topology: Topology, record: Record
) -> tuple[Partition, ...]:
    partitions = tuple(Partition(PartitionId(n)) for n in range(topology.partitions))
    for loaded in store.load():
        partition = partitions[loaded.partition]
        snapshot = None
        digest = b""
        if loaded.snapshot is not None:
            snapshot = decode_delta(loaded.snapshot.body)
            digest = loaded.snapshot.digest
        partition.load(
            snapshot,
            digest,
            [(decode_delta(stored.body), stored) for stored in loaded.deltas],
        )
    for partition, digest in zip(partitions, record.commit.digests, strict=True):
        if partition.digest != digest:
            raise StateCorruptedError(
                f"partition {partition.number} on disk is not the one that epoch"
                f" {record.commit.epoch} committed; restore the data directory from a"
                " backup"
            )
    return partitions


def _apply_consent(
    store: EngineStore, partitions: tuple[Partition, ...], consent: Consent
) -> None:
    """Drop and rename what the operator agreed to, and make that durable."""
    renames = consent.rename or {}
    if not consent.drop and not renames:
        return
    copy_renamed(partitions, renames)
    _write_snapshots(store, partitions)
    drop_names(partitions, consent.drop | frozenset(renames))
    _write_snapshots(store, partitions)


def _write_snapshots(store: EngineStore, partitions: tuple[Partition, ...]) -> None:
    for partition in partitions:
        store.put_snapshot(
            StoredSnapshot(
                partition=partition.number,
                epoch=partition.epoch,
                digest=partition.digest,
                body=encode_delta(partition.snapshot()),
            )
        )
