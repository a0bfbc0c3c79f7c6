"""Executors: one a kind of step."""
