"""The only loops: events in, the core decides, effects out in order."""
