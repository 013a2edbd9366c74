"""What workers and the coordinator say to each other.

Every message carries its generation; the receiver drops those of an older one.
"""

from dataclasses import dataclass

from bettong_engine.core.ids import Epoch, Generation, Incarnation, Term, WorkerId


@dataclass(frozen=True, slots=True)
class Cause:
    """Why something stopped or started over, in words for people.

    code: a name of the protocol's ErrorCode. detail: may hold data of a record.
    """

    code: str
    message: str
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Assignment:
    """Who is primary of each partition, in order."""

    primaries: tuple[WorkerId, ...]


# Coordinator to worker.


@dataclass(frozen=True, slots=True)
class StartGeneration:
    """Raise the fence and go back to `epoch`, whose digests are those of its commit."""

    term: Term
    generation: Generation
    epoch: Epoch
    digests: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class Install:
    """Reset the plugins and begin to fill epoch + 1."""

    generation: Generation
    epoch: Epoch
    assignment: Assignment
    processing_time_us: int


@dataclass(frozen=True, slots=True)
class Cut:
    """End epoch `epoch` at the source boundary as soon as no read is under way."""

    generation: Generation
    epoch: Epoch
    processing_time_us: int


@dataclass(frozen=True, slots=True)
class Committed:
    """The epoch, and all before it, are committed for good."""

    generation: Generation
    epoch: Epoch


@dataclass(frozen=True, slots=True)
class HoldSources:
    """Let no new read in: the application pauses or stops."""

    generation: Generation
    reason: str


ToWorker = StartGeneration | Install | Cut | Committed | HoldSources


# Worker to coordinator.


@dataclass(frozen=True, slots=True)
class Probed:
    """The fence is raised. in_sync: each partition holds the committed epoch.

    missing: stages that no plugin of this worker offers.
    """

    worker: WorkerId
    incarnation: Incarnation
    generation: Generation
    in_sync: tuple[bool, ...]
    missing: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Installed:
    """Every computation of the worker has reset."""

    worker: WorkerId
    generation: Generation


@dataclass(frozen=True, slots=True)
class WorkAvailable:
    """The open epoch holds something to commit. is_urgent: half a limit is used."""

    worker: WorkerId
    generation: Generation
    epoch: Epoch
    is_urgent: bool = False


@dataclass(frozen=True, slots=True)
class Prepared:
    """The epoch's delta is kept by everybody who must keep it.

    digests: of the partitions that it changed. cpu_us: what the epoch cost, the
    plugins' flush included.
    """

    worker: WorkerId
    generation: Generation
    epoch: Epoch
    digests: dict[int, bytes]
    cpu_us: int


@dataclass(frozen=True, slots=True)
class NeedGeneration:
    """Something was lost or arrived that only a new generation can take in."""

    worker: WorkerId
    cause: Cause


@dataclass(frozen=True, slots=True)
class NeedPause:
    """Only a person can help: stop here, lose nothing."""

    worker: WorkerId
    generation: Generation
    cause: Cause


@dataclass(frozen=True, slots=True)
class Finished:
    """All input has ended, is committed, and its outputs are durable."""

    worker: WorkerId
    generation: Generation


FromWorker = (
    Probed
    | Installed
    | WorkAvailable
    | Prepared
    | NeedGeneration
    | NeedPause
    | Finished
)
