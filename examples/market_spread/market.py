"""Orders and quotes, and what becomes of an order. Prices are in cents."""

from collections.abc import Iterator
from dataclasses import dataclass

import bettong as bt

SPREAD_MAX = 5
SPREAD_PERCENT_MAX = 5


@dataclass
class Event:
    """A line of either file: `kind` is O or Q, `rest` what follows."""

    kind: str
    symbol: str
    rest: list[str]


@dataclass
class Market:
    """The last quote of a symbol; zeros: there was none."""

    bid: int = 0
    offer: int = 0

    def is_too_wide(self) -> bool:
        """Tell whether orders are to be rejected."""
        spread, mid_twice = self.offer - self.bid, self.offer + self.bid
        # spread >= 5 % of the mid price, without a fraction.
        is_relative = 200 * spread >= SPREAD_PERCENT_MAX * mid_twice
        return spread >= SPREAD_MAX or is_relative


def parse(line: str) -> Event:
    """Read a line of either file."""
    _, kind, *fields = line.split(",")
    if kind == "Q":
        return Event(kind, fields[0], fields[1:])
    return Event(kind, fields[1], [fields[0], *fields[2:]])


def on_event(symbol: str, event: Event, market: Market) -> Iterator[tuple[str, str]]:
    """Take a quote into the state, or decide on an order: (sink, line)."""
    if event.kind == "Q":
        market.bid, market.offer = int(event.rest[0]), int(event.rest[1])
        return
    order, *details = event.rest
    quote = f"{market.bid}/{market.offer}" if market.offer else "-"
    chosen = "rejected" if market.is_too_wide() else "accepted"
    yield chosen, ",".join([order, symbol, *details, quote])


def decide(events: bt.Stream[Event], rejected: str, accepted: str) -> None:
    """Put the steps behind a stream of events."""
    decisions = events.key_by(lambda event: event.symbol).stateful(
        on_event, state=Market
    )
    arms = decisions.branch(lambda decision: decision[0], ["rejected", "accepted"])
    for name, path in (("rejected", rejected), ("accepted", accepted)):
        arms[name].map(lambda decision: decision[1], name=f"{name}_line").sink(
            name, bt.FileSink(path)
        )
