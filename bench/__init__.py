"""Measurements: `python -m bench`, figures always as ratios within one run."""
