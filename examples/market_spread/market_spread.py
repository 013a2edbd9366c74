"""Checks orders against quotes: two sources, one state object per symbol.

bettong run market_spread.py [ORDERS QUOTES REJECTED ACCEPTED]
"""

import sys
from pathlib import Path

import market

import bettong as bt

HERE = Path(__file__).parent
DEFAULTS = [
    str(HERE / "orders.csv"),
    str(HERE / "quotes.csv"),
    "rejected.txt",
    "accepted.txt",
]
ORDERS, QUOTES, REJECTED, ACCEPTED = sys.argv[1:] or DEFAULTS

app = bt.App("market-spread")
orders = app.source("orders", bt.FileSource(ORDERS)).map(market.parse, name="order")
quotes = app.source("quotes", bt.FileSource(QUOTES)).map(market.parse, name="quote")
market.decide(orders.merge(quotes), REJECTED, ACCEPTED)

if __name__ == "__main__":
    app.run()
