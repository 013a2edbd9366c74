"""Runs an application on lists."""

from bettong.app import App
from bettong.testing.engine import MemoryEngine
from bettong.testing.memory import in_memory
from bettong.testing.result import Result
from bettong.testing.script import Inputs, build_script


def run_in_memory(
    app: App,
    inputs: Inputs,
    *,
    computes: int = 1,
    records_a_read: int = 1,
    start_us: int = 0,
    ends: bool = True,
) -> Result:
    """Run an application on lists, in this thread, and return what came out.

    The connectors of the application are not touched: sources give what `inputs`
    says, sinks keep what they get. Everything between is what runs in production.

    With `records_a_read=1` each record goes through the whole pipeline before the
    next one is read, so that the order of outputs is the same in each run, whatever
    crashes there are. With more, only the order of each key is.

    Args:
        app: whose pipeline is complete. It may be run any number of times.
        inputs: by source, a list of records and of `Crash()`, `EndOfEpoch()` and
            `Advance(seconds)`; of several sources one item each is taken in turn.
            Or, to say the order yourself, one list of pairs (source, record) and of
            these items.
        computes: computations that share the keys.
        records_a_read: how many records a source reads at once, if there are.
        start_us: processing time at the start, microseconds since the Unix epoch.
        ends: the streams end behind the last item, as a file does, and so all timers
            of event time fire. False: they stay open, as a connection does. The last
            epoch is committed either way.

    Raises:
        UserCodeError: a function raised, and the policy is "fail". The message names
            the record; what was raised is chained.
        GraphError: the pipeline is not complete.
        ValueError: `inputs` cannot be.
    """
    if computes < 1 or records_a_read < 1:
        raise ValueError("computes and records_a_read are 1 or more")
    plan, sources, sinks = in_memory(app.plan(), records_a_read=records_a_read)
    script = build_script(inputs, list(sources))
    engine = MemoryEngine(plan, sources, computes=computes, processing_time_us=start_us)
    for item in script:
        engine.perform(item)
    engine.finish(ends=ends)
    return Result(plan, engine.ledger, sinks)
