"""Makes orders and quotes: the same ones each time.

python make_input.py DIRECTORY
"""

import random
import sys
from pathlib import Path

# Price at the start in cents; one cheap enough for 5 % to be less than 5 cents.
PRICES = {
    "AAPL": 18_950, "AMZN": 17_820, "BAC": 3_410, "F": 1_240, "GE": 16_030,
    "IBM": 19_120, "INTC": 4_380, "KO": 6_215, "MSFT": 41_480, "NOK": 62,
    "T": 1_705, "XOM": 11_840,
}  # fmt: skip
QUOTES, ORDERS = 2_400, 1_600

chance = random.Random(1792)


def pick(choices: list[str]) -> str:
    """Choose one; `random()` alone gives the same on every version of Python."""
    return choices[int(chance.random() * len(choices))]


def spread_of(price: int) -> int:
    """Return a spread: mostly narrow, at times wide."""
    draw = chance.random()
    if draw < 0.75 or price < 100:
        return 1 + int(chance.random() * 4)
    return 4 + int(chance.random() * 16)


def main() -> None:
    """Write both files; no two lines have one time."""
    prices, symbols = dict(PRICES), list(PRICES)
    orders: list[str] = []
    quotes: list[str] = []
    for time in range(1, QUOTES + ORDERS + 1):
        symbol = pick(symbols)
        if chance.random() * (QUOTES + ORDERS) < QUOTES:
            step = int((chance.random() - 0.5) * max(4, prices[symbol] / 500))
            price = prices[symbol] = max(20, prices[symbol] + step)
            quotes.append(f"{time},Q,{symbol},{price},{price + spread_of(price)}")
        else:
            side, quantity = pick(["BUY", "SELL"]), 100 * (1 + int(chance.random() * 9))
            limit = prices[symbol] + int((chance.random() - 0.5) * 10)
            number = len(orders) + 1
            orders.append(f"{time},O,{number},{symbol},{side},{quantity},{limit}")
    directory = Path(sys.argv[1])
    (directory / "orders.csv").write_text("\n".join(orders) + "\n")
    (directory / "quotes.csv").write_text("\n".join(quotes) + "\n")


if __name__ == "__main__":
    main()
