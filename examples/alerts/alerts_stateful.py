"""Tells of users whose running total passes a limit.

bettong run alerts_stateful.py [INPUT [OUTPUT]]
"""

import sys
from dataclasses import dataclass
from pathlib import Path

from transaction import Transaction

import bettong as bt

HERE = Path(__file__).parent
INPUT = sys.argv[1] if len(sys.argv) > 1 else str(HERE / "transactions.jsonl")
OUTPUT = sys.argv[2] if len(sys.argv) > 2 else "alerts_stateful.txt"
LIMIT = 2000


@dataclass
class Account:
    """One a user, made at the first transaction."""

    total: int = 0
    is_beyond: bool = False


def watch(user: str, transaction: Transaction, account: Account) -> str | None:
    """Add a transaction; return an alert if the total has passed the limit."""
    was_beyond = account.is_beyond
    account.total += transaction.amount
    account.is_beyond = abs(account.total) > LIMIT
    if was_beyond or not account.is_beyond:
        return None
    verb = "holds" if account.total > 0 else "owes"
    return f"{user} {verb} {abs(account.total)}"


app = bt.App("alerts-stateful")
(
    app.source("transactions", bt.FileSource(INPUT, codec=bt.json(Transaction)))
    .key_by(lambda transaction: transaction.user)
    .stateful(watch, state=Account)
    .sink("alerts", bt.FileSink(OUTPUT))
)

if __name__ == "__main__":
    app.run()
