"""Executors: how the ranks answer a step, one file per kind of step."""
