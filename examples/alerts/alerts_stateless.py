"""Tells of large transactions, each looked at for itself.

bettong run alerts_stateless.py [INPUT [OUTPUT]]
"""

import sys
from pathlib import Path

from transaction import Transaction

import bettong as bt

HERE = Path(__file__).parent
INPUT = sys.argv[1] if len(sys.argv) > 1 else str(HERE / "transactions.jsonl")
OUTPUT = sys.argv[2] if len(sys.argv) > 2 else "alerts_stateless.txt"
AMOUNT_MIN = 1000


def is_large(transaction: Transaction) -> bool:
    """Tell whether a transaction is worth an alert."""
    return abs(transaction.amount) >= AMOUNT_MIN


def alert(transaction: Transaction) -> str:
    """Write the alert."""
    verb = "deposits" if transaction.amount > 0 else "withdraws"
    return f"{transaction.user} {verb} {abs(transaction.amount)}"


app = bt.App("alerts-stateless")
(
    app.source("transactions", bt.FileSource(INPUT, codec=bt.json(Transaction)))
    .filter(is_large)
    .map(alert)
    .sink("alerts", bt.FileSink(OUTPUT))
)

if __name__ == "__main__":
    app.run()
