"""Makes the votes: the same ones each time.

python make_input.py > votes.txt
"""

import random

# About as often as in English text.
LETTERS = "eeeeeeeeeeeetttttttttaaaaaaaaooooooooiiiiiiinnnnnnnsssssshhhhhhrrrrrrdddd"
LETTERS += "llllcccuuummmwwffggyyppbbvkjxqz"
COUNT = 1000

chance = random.Random(26)
for _ in range(COUNT):
    letter = LETTERS[int(chance.random() * len(LETTERS))]
    print(letter, 1 + int(chance.random() * 100))
