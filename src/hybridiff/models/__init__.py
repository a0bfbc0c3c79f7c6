"""Pipelines: loading, schedulers, the embedded models."""
