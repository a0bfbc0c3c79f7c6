"""The paper's tables, redrawn with the embedded models: `python -m benchmarks.paper --table 1`."""
