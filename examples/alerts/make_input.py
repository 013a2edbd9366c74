"""Makes the transactions: the same ones each time.

python make_input.py > transactions.jsonl
"""

import json
import random

USERS = ("Ada", "Fritz", "Mia", "Otto", "Zoë")
COUNT = 400

chance = random.Random(2718)
for _ in range(COUNT):
    user = USERS[int(chance.random() * len(USERS))]
    # Mostly small; the sum of three draws, so that large ones are rare.
    amount = int((chance.random() + chance.random() + chance.random() - 1.5) * 1200)
    print(json.dumps({"user": user, "amount": amount}, ensure_ascii=False))
