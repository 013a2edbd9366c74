"""The command line: `bettong`."""
