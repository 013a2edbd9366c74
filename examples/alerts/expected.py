"""Finds the alerts without Bettong.

python expected.py stateless < transactions.jsonl > expected_stateless.txt
python expected.py stateful < transactions.jsonl > expected_stateful.txt
"""

import json
import sys
from collections import Counter


def stateless() -> None:
    """Print the transactions of 1,000 or more."""
    for line in sys.stdin:
        row = json.loads(line)
        if row["amount"] >= 1000:
            print(row["user"], "deposits", row["amount"])
        elif row["amount"] <= -1000:
            print(row["user"], "withdraws", -row["amount"])


def stateful() -> None:
    """Print each total at the moment when it has passed 2,000 or -2,000."""
    totals: Counter[str] = Counter()
    for line in sys.stdin:
        row = json.loads(line)
        before = totals[row["user"]]
        now = totals[row["user"]] = before + row["amount"]
        if -2000 <= before <= 2000 and not -2000 <= now <= 2000:
            print(row["user"], "holds" if now > 0 else "owes", abs(now))


if __name__ == "__main__":
    {"stateless": stateless, "stateful": stateful}[sys.argv[1]]()
