"""Guards of the protocol, each taken away in turn: the simulator must notice.

A mutant is a sentence and a patch of the real classes. `plugins`: with which drivers
it shows; the SDK's caches hide what a plugin without one sees.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from tests.sim import patches

from bettong.runtime.cache import StageCache
from bettong.runtime.credit import CreditLedger
from bettong.runtime.sink import SinkMachine
from bettong.runtime.source_stream import SourceStream
from bettong.runtime.stage_runner import StageRunner
from bettong_engine.core.alignment import StageAligner
from bettong_engine.core.boundary import SourceBoundary
from bettong_engine.core.coordinator import Coordinator
from bettong_engine.core.dataflow import Dataflow
from bettong_engine.core.delivery import Delivery
from bettong_engine.core.output_log import OutputLog
from bettong_engine.core.partition import Partition
from bettong_engine.core.sink_desk import SinkDesk
from bettong_engine.core.source_desk import SourceDesk
from bettong_engine.core.timers import TimerTable
from bettong_engine.core.worker import Worker
from bettong_engine.net.outbox import Outbox
from bettong_engine.sim import engine as sim_engine
from bettong_engine.sim.disk import OpenStore

# Makes the replacement of a method from the method.
Patch = Callable[[Any], Any]


@dataclass(frozen=True, slots=True)
class Mutant:
    """One guard less. seeds_max: it must be noticed within so many schedules."""

    name: str
    sentence: str
    owner: Any
    attribute: str
    patch: Patch
    plugins: str = "sdk"
    seeds_max: int = 60
    # Of every schedule, where the guard is needed in rare ones only.
    options: dict[str, Any] = field(default_factory=dict)


@contextmanager
def applied(mutant: Mutant) -> Iterator[None]:
    """Patch, and put back."""
    original = vars(mutant.owner)[mutant.attribute]
    function = original.fget if isinstance(original, property) else original
    patched = mutant.patch(function)
    if isinstance(original, property):
        patched = property(patched)
    setattr(mutant.owner, mutant.attribute, patched)
    try:
        yield
    finally:
        setattr(mutant.owner, mutant.attribute, original)


MUTANTS = [
    Mutant(
        "announce_before_durable",
        "An epoch is announced before its transaction is durable.",
        Coordinator,
        "_commit_next",
        patches.announce_first,
    ),
    Mutant(
        "release_before_commit",
        "Outputs leave as soon as the deltas are stored.",
        Worker,
        "on_stored",
        patches.release_when_stored,
    ),
    Mutant(
        "notify_before_commit",
        "Sources are told of positions that are not committed.",
        Worker,
        "on_stored",
        patches.notify_when_stored,
        options={
            "faults": (("instance_churn", 0.02), ("stall", 0.02)),
            "is_local": True,
            "is_one_process": False,
        },
    ),
    Mutant(
        "outputs_not_in_delta",
        "Outputs do not travel inside the delta.",
        sim_engine,
        "encode_delta",
        patches.without_outputs,
    ),
    Mutant(
        "no_sink_position",
        "A sink writes what its target already has.",
        SinkMachine,
        "_write",
        patches.writes_overlap,
    ),
    Mutant(
        "old_frames_count",
        "A frame of an older generation is taken into the open epoch.",
        Worker,
        "on_frame",
        patches.with_own_generation,
    ),
    Mutant(
        "old_deltas_count",
        "A delta of an older generation is taken.",
        Worker,
        "on_delta",
        patches.with_own_generation,
    ),
    Mutant(
        "old_outputs_count",
        "An output of an older generation is routed.",
        Worker,
        "on_stage_output",
        patches.with_own_generation,
    ),
    Mutant(
        "old_acks_count",
        "A barrier ack of an older generation is taken.",
        Worker,
        "on_barrier_ack",
        patches.with_own_generation,
    ),
    Mutant(
        "old_consumption_counts",
        "What an instance consumed before its reset returns credit after it.",
        Worker,
        "on_consumed",
        patches.consumed_before_reset,
    ),
    Mutant(
        "truncates_twice",
        "A late StartGeneration takes a generation back that has begun.",
        Worker,
        "_start_generation",
        patches.without_fence,
    ),
    Mutant(
        "obeys_older_generations",
        "The worker obeys messages of older generations.",
        Worker,
        "on_coordinator",
        patches.obeys_all,
    ),
    Mutant(
        "no_commit_guard",
        "A transaction does not compare revisions: a zombie engine may commit.",
        OpenStore,
        "transact",
        patches.without_guards,
    ),
    Mutant(
        "no_alignment",
        "A batch of a later epoch passes the barrier before it.",
        StageAligner,
        "on_batch",
        patches.passes_early,
    ),
    Mutant(
        "cut_inside_a_read",
        "An epoch ends while a read is under way.",
        SourceBoundary,
        "_cut_if_possible",
        patches.cuts_inside_reads,
    ),
    Mutant(
        "later_cut_is_lost",
        "A cut that is asked for while another waits is forgotten.",
        SourceBoundary,
        "ask_cut",
        patches.cuts_the_open_one_only,
        options={
            "faults": (("drain", 0.02), ("stall", 0.02)),
            "credit_records": 1,
            "batch_records": 1,
            "records_a_read": 8,
            "epochs_in_flight_max": 4,
        },
    ),
    Mutant(
        "engine_grants_double",
        "The engine grants more credit than was consumed.",
        Dataflow,
        "_grant",
        patches.grants_double,
    ),
    Mutant(
        "sender_ignores_credit",
        "A sender sends without credit.",
        CreditLedger,
        "may_send",
        patches.always(True),
    ),
    Mutant(
        "credit_survives_reset",
        "Credit of an older generation goes out with the reset.",
        Outbox,
        "take",
        patches.takes_with_old_credit,
    ),
    Mutant(
        "cache_keeps_dirty_keys",
        "A reset keeps keys that were touched after the committed epoch.",
        StageCache,
        "reset",
        patches.keeps_touched,
    ),
    Mutant(
        "dropped_keys_are_new",
        "A key that a reset dropped from a complete partition is not asked for.",
        StageCache,
        "_drop",
        patches.drops_unasked,
    ),
    Mutant(
        "barrier_overtakes_kept_outputs",
        "A barrier does not wait for outputs that found no credit.",
        StageRunner,
        "is_runnable",
        patches.goes_on_with_kept,
    ),
    Mutant(
        "replay_is_not_regrouped",
        "A replay keeps the targets of the generation before.",
        SourceStream,
        "replay",
        patches.replays_as_grouped,
    ),
    Mutant(
        "source_forgets_uncommitted",
        "A commit makes a source forget reads that came after it.",
        SourceStream,
        "forget_up_to",
        patches.forgets_all,
    ),
    Mutant(
        "source_is_used_at_once",
        "A source that attaches in mid-generation takes the place of another.",
        Worker,
        "on_source_attached",
        patches.uses_at_once,
        options={"faults": (("session_break", 0.02),), "is_local": False},
    ),
    Mutant(
        "local_streams_never_end",
        "A connection that its source does not name any more stays open.",
        SourceDesk,
        "unnamed",
        patches.always([]),
    ),
    Mutant(
        "dead_connections_are_reset",
        "A reset names connections that their source did not name.",
        SourceDesk,
        "reset",
        patches.names_dead_connections,
        options={"faults": (("plugin_crash", 0.02),), "is_local": True},
    ),
    Mutant(
        "letter_without_mark",
        "A dead letter is committed an epoch after its skip mark.",
        SinkDesk,
        "_quarantine",
        patches.letter_an_epoch_later,
    ),
    Mutant(
        "letter_again",
        "A refused output that is marked becomes a dead letter once more.",
        Delivery,
        "on_refused",
        patches.letters_again,
        options={
            "faults": (("plugin_crash", 0.02), ("sink_trouble", 0.02)),
            "refuses_every": 5,
            "sink_is_exact": False,
        },
    ),
    Mutant(
        "no_skip",
        "The sink is not told that a refusal is committed.",
        Delivery,
        "on_committed",
        patches.never_skips,
    ),
    Mutant(
        "unknown_is_failed",
        "A transaction of unknown outcome is tried again without a look.",
        Coordinator,
        "on_unknown",
        patches.tries_blindly,
    ),
    Mutant(
        "unknown_is_applied",
        "A transaction of unknown outcome is taken for applied.",
        Coordinator,
        "on_unknown",
        patches.believes_applied,
    ),
    Mutant(
        "log_is_trimmed_early",
        "Outputs are dropped that their target does not have.",
        OutputLog,
        "prepare",
        patches.trims_committed,
    ),
    Mutant(
        "open_epochs_do_not_chain",
        "Each open epoch numbers its outputs from the committed ones.",
        OutputLog,
        "prepare",
        patches.numbers_from_committed,
    ),
    Mutant(
        "numbers_survive_a_reset",
        "Numbers of outputs that were taken back are not given again.",
        OutputLog,
        "reset",
        patches.keeps_numbers,
    ),
    Mutant(
        "timers_survive_a_reset",
        "Timers that open epochs set or fired are not taken back.",
        TimerTable,
        "reset",
        patches.always(None),
        options={
            "faults": (("plugin_crash", 0.02),),
            "timers_every": 2,
            "has_event_time": True,
        },
    ),
    Mutant(
        "manifest_forgets_partitions",
        "The commit record names only partitions that the epoch changed.",
        Coordinator,
        "_transact",
        patches.forgets_digests,
    ),
    Mutant(
        "open_rows_are_not_seen",
        "A StateGet is answered from committed rows only.",
        Partition,
        "_newest_first",
        patches.committed_rows_only,
        plugins="reference",
    ),
    Mutant(
        "store_is_not_truncated",
        "Deltas of epochs that were taken back stay in the store.",
        OpenStore,
        "truncate_after",
        patches.always(None),
        options={
            "faults": (("plugin_crash", 0.02), ("engine_crash", 0.006)),
            "epochs_in_flight_max": 4,
            "speeds": (("store", 0.08),),
        },
    ),
]
