"""The application: sources, policies, and how a program becomes processes."""

import os
import sys
from collections.abc import Callable
from typing import Any, Literal, NoReturn

from bettong.connector import Sink, Source
from bettong.errors import GraphError
from bettong.functions import check_value_function
from bettong.graph import build_plan
from bettong.nodes import Graph, SourceNode, Values, check_name
from bettong.plan import FailurePolicy, Plan
from bettong.stream import Stream, check_connector

DEAD_LETTERS = "dead-letters"
PARTITIONS_MAX = 65_536

_SOURCE_MEMBERS = ("kind", "codec", "start", "streams", "open", "wait", "stop")
_SINK_MEMBERS = ("open", "partitions", "guarantee", "codec", "takes_bytes")


class App:
    """A named pipeline.

    The name also names its data; two applications of one name are one application.
    """

    def __init__(
        self,
        name: str,
        *,
        partitions: int = 64,
        on_error: Literal["fail", "skip", "dead_letter"] = "fail",
        dead_letter: Sink | None = None,
    ) -> None:
        """Describe an application without any step.

        Args:
            name: letters, digits, '_', '-' and '.'.
            partitions: of the key space, 1 to 65,536. More of them spread over more
                workers. Fixed when the application first starts.
            on_error: what becomes of a record on which a function raises. "fail"
                pauses the application with the cause, "skip" drops and counts the
                record, "dead_letter" sends it to the dead-letter sink.
            dead_letter: the sink of failed records, and of those that other sinks
                refuse. It gets one JSON object each; its name is "dead-letters".

        Raises:
            GraphError: an argument that cannot be.
        """
        check_name(name, "application")
        if type(partitions) is not int or not 1 <= partitions <= PARTITIONS_MAX:
            raise GraphError(
                f"partitions={partitions!r} must be an int, 1 to {PARTITIONS_MAX:,}"
            )
        policies = [policy.value for policy in FailurePolicy]
        if on_error not in policies:
            raise GraphError(f"on_error={on_error!r} is none of {', '.join(policies)}")
        if on_error == "dead_letter" and dead_letter is None:
            raise GraphError(
                'on_error="dead_letter" needs the sink: dead_letter=bt.FileSink(...)'
            )
        self.name = name
        self._partitions = partitions
        self._on_error = FailurePolicy(on_error)
        self._dead_letter = dead_letter
        self._graph = Graph(name)
        if dead_letter is not None:
            self._graph.claim(DEAD_LETTERS, "dead-letter sink")
            check_connector(dead_letter, "sink", _SINK_MEMBERS, DEAD_LETTERS)

    def source(
        self,
        name: str,
        connector: Source,
        *,
        event_time: Callable[[Any], int] | None = None,
        out_of_order_us: int = 0,
        idle_after_ms: int = 1000,
    ) -> Stream[Any]:
        """Begin a stream with the records of a source.

        Args:
            name: of the source; its positions are stored under it.
            connector: reads the records.
            event_time: gives the time of a record, in microseconds since the Unix
                epoch; None: the records have no time.
            out_of_order_us: how much older than the newest one a record may be
                before it counts as late.
            idle_after_ms: a stream that is silent so long holds no time back.
        """
        claimed = self._graph.claim(name, "source")
        check_connector(connector, "source", _SOURCE_MEMBERS, claimed)
        if event_time is not None:
            check_value_function(event_time, claimed)
        if out_of_order_us < 0 or idle_after_ms < 0:
            raise GraphError(
                "out_of_order_us and idle_after_ms cannot be negative", step=claimed
            )
        for other in self._graph.nodes:
            if isinstance(other, SourceNode) and other.connector is connector:
                raise GraphError(
                    f"its connector belongs to the source {other.name!r} already:"
                    " make another, or use that stream twice",
                    step=claimed,
                )
        hint = getattr(connector.codec, "value_type", Any)
        node = SourceNode(
            name=claimed,
            connector=connector,
            values=Values(hint, connector.codec),
            event_time=event_time,
            out_of_order_us=out_of_order_us,
            idle_after_ms=idle_after_ms,
        )
        self._graph.nodes.append(node)
        return Stream(self._graph, node)

    def plan(self) -> Plan:
        """Return the graph that the runtime executes.

        Raises:
            GraphError: the pipeline has no source, a step leads nowhere, or values
                have no codec. Names the step.
        """
        return build_plan(
            self._graph,
            partitions=self._partitions,
            on_error=self._on_error,
            dead_letter=self._dead_letter,
            dead_letter_name=DEAD_LETTERS,
        )

    def run(self) -> NoReturn:
        """Run the application, and exit the process with its exit code.

        Started by hand, the program starts a private engine, which starts it again
        as its plugins. Started by an engine (`BETTONG_ADDRESS` is set), it is one of
        these plugins. So call this under `if __name__ == "__main__":`, with the same
        pipeline in each process.
        """
        plan = self.plan()
        if os.environ.get("BETTONG_ADDRESS"):
            from bettong.runtime.plugin import serve

            sys.exit(serve(plan))
        from bettong.embedded import run_embedded

        sys.exit(run_embedded())
