"""The commands that scenarios may give to each machine."""

from collections.abc import Iterable, Sequence
from dataclasses import replace

from tests.datadriven import Handle, show

from bettong_engine.core.alignment import InputBatch, Mark, StageAligner
from bettong_engine.core.boundary import Frame, SourceBatch, SourceBoundary
from bettong_engine.core.coordinator import (
    Coordinator,
    CoordinatorLimits,
    GenerationRecord,
    Manifest,
    Record,
    Transact,
)
from bettong_engine.core.delivery import Delivery
from bettong_engine.core.delta import OutputBatch, StreamState
from bettong_engine.core.ids import (
    Epoch,
    Generation,
    Incarnation,
    InstanceId,
    Term,
    WorkerId,
)
from bettong_engine.core.messages import (
    Cause,
    Finished,
    FromWorker,
    Installed,
    NeedGeneration,
    NeedPause,
    Prepared,
    Probed,
    WorkAvailable,
)
from bettong_engine.core.output_log import OutputLog
from bettong_engine.errors import ProtocolError

Options = dict[str, str]


def lines(effects: Iterable[object]) -> str:
    """Return one effect a line."""
    return "\n".join(map(show, effects)) or "nothing"


def refusing(handle: Handle) -> Handle:
    """Return a player that shows what the machine refuses."""

    def play(command: str, arguments: list[str], options: Options) -> str:
        try:
            return handle(command, arguments, options)
        except ProtocolError as error:
            return f"error: {error}"

    return play


def mark_of(options: Options) -> Mark:
    time_us = options.get("watermark")
    return Mark(int(time_us) if time_us else None, "idle" in options)


def alignment() -> Handle:
    """Commands: new, batch, barrier, ack."""
    stage = StageAligner([], last_epoch=Epoch(0), watermark_us=None)

    def play(command: str, arguments: list[str], options: Options) -> str:
        nonlocal stage
        if command == "new":
            channels = range(int(options["channels"]))
            last = Epoch(int(options["last_epoch"]))
            stage = StageAligner(channels, last_epoch=last, watermark_us=None)
            return "ok"
        epoch = Epoch(int(options["epoch"]))
        if command == "ack":
            return lines(stage.on_ack(epoch))
        channel = int(arguments[0])
        if command == "barrier":
            return lines(stage.on_barrier(channel, epoch, mark_of(options)))
        records = arguments[1].encode()
        return lines(stage.on_batch(InputBatch(channel, channel, 0, 1, records), epoch))

    return refusing(play)


def boundary() -> Handle:
    """Commands: new, read, part, mark, cut, hold, release."""
    source = SourceBoundary(Epoch(1), {})

    def play(command: str, arguments: list[str], options: Options) -> str:
        nonlocal source
        if command == "new":
            source = SourceBoundary(Epoch(int(options["open_epoch"])), {0: ["s"]})
            source.add_source("s")
            for stream in arguments:
                state = StreamState("s", stream)
                source.add_stream(state, is_local="local" in options)
            return "ok"
        if command == "cut":
            return lines(source.ask_cut(Epoch(int(options["epoch"]))))
        if command in ("hold", "release"):
            return lines(source.hold(command == "hold"))
        time_us = options.get("watermark")
        frame = Frame(
            arguments[0],
            int(options["number"]),
            (SourceBatch(0, 0, 1, b"records"),),
            position=options.get("position", "").encode(),
            watermark_us=int(time_us) if time_us else None,
            is_idle="idle" in options,
            is_end="end" in options,
        )
        if command == "mark":
            frame = replace(frame, batches=())
        found = source.on_frame("s", replace(frame, more=command == "part"))
        return lines(found)

    return refusing(play)


def delivery() -> Handle:
    """Commands: commit, attach, opened, progress, refused, trouble, generation."""
    target = Delivery(OutputLog("out", 0), b"ours")
    generation = Generation(7)

    def commit(arguments: Sequence[str], options: Options) -> str:
        batches = [OutputBatch(int(count), b"x" * int(count)) for count in arguments]
        marks = tuple(map(int, options["skip"].split(","))) if "skip" in options else ()
        delta = target.log.prepare(batches, marks)
        if delta is None:
            return "nothing to commit"
        target.log.commit(delta)
        return lines(target.on_committed())

    def play(command: str, arguments: list[str], options: Options) -> str:
        nonlocal generation
        cause = Cause(options.get("code", "RECORD"), options.get("why", "too long"))
        match command:
            case "commit":
                return commit(arguments, options)
            case "attach":
                return lines(target.on_attached(InstanceId(1), generation))
            case "generation":
                generation = Generation(generation + 1)
                return lines(target.on_generation(generation))
            case "opened":
                position = None
                if "at" in options:
                    history = options.get("history", "ours").encode()
                    position = (history, int(options["at"]))
                return lines(target.on_opened(generation, position))
            case "progress":
                return lines(target.on_progress(generation, int(arguments[0])))
            case "refused":
                return lines(target.on_refused(generation, int(arguments[0]), cause))
            case "trouble":
                retryable = "fatal" not in options
                found = target.on_error(generation, cause, is_retryable=retryable)
                return f"{lines(found)}\n{target.state.value}"
        raise AssertionError(f"no command {command}")

    return refusing(play)


def coordinator() -> Handle:
    """Commands: new, start, worker messages, applied, unknown, record, pause …"""
    worker = WorkerId("w")
    first = Record(
        GenerationRecord(Generation(4), Term(1)),
        Manifest(Epoch(6), Generation(4), Term(1), 0, (b"",)),
        leader_revision=1,
    )
    it = Coordinator(Term(2), first, (worker,), limits=CoordinatorLimits())
    now_ms = 0
    tried: list[Transact] = []
    record = first

    def perform(effects: Iterable[object]) -> str:
        tried.extend(e for e in effects if isinstance(e, Transact))
        return "\n".join(_brief(e) for e in effects) or "nothing"

    def message(command: str, options: Options) -> FromWorker | None:
        generation = Generation(int(options.get("generation", it.generation)))
        epoch = Epoch(int(options.get("epoch", 0)))
        cause = Cause("UNSPECIFIED", options.get("why", "a plugin is gone"))
        match command:
            case "probed":
                missing = (
                    tuple(options["missing"].split()) if "missing" in options else ()
                )
                in_sync = ("out_of_sync" not in options,)
                return Probed(worker, Incarnation(b"i"), generation, in_sync, missing)
            case "installed":
                return Installed(worker, generation)
            case "work":
                return WorkAvailable(worker, generation, epoch, "urgent" in options)
            case "prepared":
                return Prepared(worker, generation, epoch, {0: b"d%d" % epoch}, 0)
            case "need_generation":
                return NeedGeneration(worker, cause)
            case "need_pause":
                return NeedPause(worker, generation, cause)
            case "finished":
                return Finished(worker, generation)
        return None

    def applied() -> Record:
        effect, held = tried[-1], record
        return Record(
            effect.generation or held.generation,
            effect.commit or held.commit,
            1,
            held.generation_revision + (effect.generation is not None),
            held.commit_revision + (effect.commit is not None),
        )

    def play(command: str, arguments: list[str], options: Options) -> str:
        nonlocal now_ms, record
        now_ms = int(options.get("at", now_ms))
        if (said := message(command, options)) is not None:
            return perform(it.on_message(said, now_ms))
        token = tried[-1].token if tried else 0
        match command:
            case "start":
                return perform(it.on_start())
            case "tick":
                return perform(it.on_tick(now_ms))
            case "applied":
                record = applied()
                revisions = (record.generation_revision, record.commit_revision)
                return perform(it.on_applied(token, revisions, now_ms))
            case "silently_applied":
                record = applied()
                return "ok"
            case "unknown":
                return perform(it.on_unknown(token))
            case "conflict":
                return perform(it.on_conflict(token))
            case "record":
                found = replace(record, leader_revision=int(options.get("leader", 1)))
                return perform(it.on_record(token, found, now_ms))
            case "resume":
                return perform(it.on_resume())
            case "drain":
                return perform(it.on_drain(now_ms))
        raise AssertionError(f"no command {command}")

    return refusing(play)


def _brief(effect: object) -> str:
    """Show a transaction by what it writes."""
    if isinstance(effect, Transact):
        written = effect.commit or effect.generation
        return f"Transact(token={effect.token}, writes={show(written)})"
    return show(effect)
