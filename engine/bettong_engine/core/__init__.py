"""Decides: pure, synchronous, deterministic machines. No I/O, clock, chance, thread."""
