"""One engine of Bettong: a worker, its coordinator, and the doors to both."""

__version__ = "0.1.0"
