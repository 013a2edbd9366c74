"""The limit: one process, one dictionary, every update written, no guarantee."""

import sys


class WordCount:
    __slots__ = ("count", "word")

    def __init__(self):
        self.word = ""
        self.count = 0


counts = {}
with open(sys.argv[1]) as lines, open(sys.argv[2], "w") as output:
    for line in lines:
        for word in line.split():
            state = counts.get(word)
            if state is None:
                state = counts[word] = WordCount()
            state.word, state.count = word, state.count + 1
            output.write(f"{word} => {state.count}\n")
