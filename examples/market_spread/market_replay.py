"""Checks orders against quotes on one tape, sorted by time: one exact result.

bettong run market_replay.py TAPE [REJECTED ACCEPTED]
"""

import sys

import market

import bettong as bt

TAPE = sys.argv[1]
REJECTED, ACCEPTED = sys.argv[2:] or ("rejected.txt", "accepted.txt")

app = bt.App("market-replay")
events = app.source("tape", bt.FileSource(TAPE)).map(market.parse)
market.decide(events, REJECTED, ACCEPTED)

if __name__ == "__main__":
    app.run()
