"""Runs the roles of a plan against an engine.

`cache`, `compute`, `source` and `sink` are machines without I/O, threads or clock:
messages in, messages out. `plugin` drives them over gRPC.
"""
