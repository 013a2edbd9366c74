"""Adds up the votes without Bettong.

python expected.py < votes.txt > expected_totals.txt
"""

import sys
from collections import Counter

totals: Counter[str] = Counter()
for line in sys.stdin:
    letter, votes = line.split()
    totals[letter] += int(votes)
for letter, votes_of_letter in sorted(totals.items()):
    print(letter, votes_of_letter)
