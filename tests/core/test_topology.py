"""Graphs that are refused, each with a sentence that names the fault."""

import pytest

from bettong_engine.core.topology import (
    OutputSpec,
    SinkSpec,
    SourceSpec,
    StageSpec,
    StateSpec,
    Topology,
)
from bettong_engine.errors import ProtocolError

TO_SINK = OutputSpec(None, 0)
IN = SourceSpec("in", False, (OutputSpec(0, None),))
OUT = SinkSpec("out")
COUNT = StageSpec("count", True, (TO_SINK,))


def test_feeders_are_known() -> None:
    graph = Topology(
        "test",
        (IN,),
        (StageSpec("first", True, (OutputSpec(1, None),)), COUNT),
        (OUT,),
    )

    assert graph.fed_by_source == (True, False)
    assert graph.fed_by_stages == ((), (0,))


@pytest.mark.parametrize(
    ("sources", "stages", "sinks", "fault"),
    [
        ((), (COUNT,), (OUT,), "no source"),
        ((IN, IN), (COUNT,), (OUT,), "used more than once"),
        ((IN,), (StageSpec("in", True, ()),), (OUT,), "used more than once"),
        ((IN,), (COUNT,), (SinkSpec("out", 65),), "has 65 partitions"),
        ((IN,), (), (OUT,), "a cycle"),
        ((IN,), (StageSpec("a", True, (OutputSpec(0, None),)),), (OUT,), "a cycle"),
        ((IN,), (COUNT,), (), "unknown sink"),
        ((IN,), (StageSpec("a", True, (OutputSpec(None, None),)),), (), "needs one"),
        (
            (IN,),
            (COUNT, StageSpec("lonely", True, ())),
            (OUT,),
            "'lonely' has no input",
        ),
        (
            (IN,),
            (StageSpec("a", False, (), (StateSpec("s", "json"),)),),
            (),
            "not keyed",
        ),
        (
            (IN,),
            (StageSpec("a", True, (OutputSpec(1, None),)), StageSpec("b", False, ())),
            (),
            "only sources feed",
        ),
    ],
)
def test_broken_graph_is_refused(
    sources: tuple[SourceSpec, ...],
    stages: tuple[StageSpec, ...],
    sinks: tuple[SinkSpec, ...],
    fault: str,
) -> None:
    with pytest.raises(ProtocolError, match=fault):
        Topology("test", sources, stages, sinks)
