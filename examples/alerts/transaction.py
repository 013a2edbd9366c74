"""What both programs read."""

from dataclasses import dataclass


@dataclass
class Transaction:
    """A deposit, or with a negative amount a withdrawal."""

    user: str
    amount: int
