"""Rooms of what must not be lost: deltas, snapshots, commit records."""
