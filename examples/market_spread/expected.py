"""Decides on the orders of a tape without Bettong.

python expected.py rejected < tape.csv > expected_rejected.txt
"""

import sys
from fractions import Fraction

quotes: dict[str, tuple[int, int]] = {}
for line in sys.stdin:
    time, kind, *fields = line.rstrip("\n").split(",")
    if kind == "Q":
        quotes[fields[0]] = int(fields[1]), int(fields[2])
        continue
    number, symbol, side, quantity, limit = fields
    quote, decision = "-", "rejected"
    if symbol in quotes:
        bid, offer = quotes[symbol]
        quote = f"{bid}/{offer}"
        share = Fraction(offer - bid) / Fraction(offer + bid, 2)
        if offer - bid < 5 and share < Fraction(5, 100):
            decision = "accepted"
    if decision == sys.argv[1]:
        print(number, symbol, side, quantity, limit, quote, sep=",")
