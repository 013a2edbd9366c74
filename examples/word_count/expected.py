"""Counts the words of a text without Bettong: what the pipeline must end with.

python expected.py < bill_of_rights.txt > expected_counts.txt
"""

import sys
from collections import Counter

for word, count in sorted(Counter(sys.stdin.read().split()).items()):
    print(word, count)
