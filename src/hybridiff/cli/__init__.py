"""The command `hybridiff`; the only place that prints."""
