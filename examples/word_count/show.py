"""Shows the final counts of a word count: the last update of each word.

python show.py WORD_COUNTS
"""

import sys
from pathlib import Path

from rich.console import Console
from rich.table import Table

TOP = 20


def final_counts(path: Path) -> tuple[dict[str, int], int]:
    """Return the last count of each word, and the number of updates."""
    updates = path.read_text().splitlines()
    counts: dict[str, int] = {}
    for update in updates:
        word, _, count = update.partition(" => ")
        counts[word] = int(count)
    return counts, len(updates)


def main() -> None:
    """Print the most frequent words."""
    counts, updates = final_counts(Path(sys.argv[1]))
    ranked = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    table = Table("word", "count", title="The Bill of Rights, counted")
    for word, count in ranked[:TOP]:
        table.add_row(word, str(count))
    console = Console()
    console.print(table)
    console.print(f"{updates} updates, {len(counts)} distinct words; the top {TOP}.")


if __name__ == "__main__":
    main()
