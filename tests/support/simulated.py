"""Pipelines whose ranks are all played in this process."""

from __future__ import annotations

from typing import Any

from hybridiff import ParallelConfig, ParallelPipeline, RunReport, parallelize


def simulate(pipe: Any, strategy: str = "cfg", devices: int = 2, **config: Any) -> ParallelPipeline:
    """A pipeline on so many ranks."""
    return parallelize(pipe, ParallelConfig(strategy, devices, simulate=True, **config))


def report_of(parallel: ParallelPipeline) -> RunReport:
    """Of its last call, which there was."""
    assert parallel.report is not None
    return parallel.report
