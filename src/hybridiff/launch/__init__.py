"""Processes: the Engine and its ranks."""
