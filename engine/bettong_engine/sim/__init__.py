"""The deterministic simulator: one worker, its plugins and its store, by seed."""
