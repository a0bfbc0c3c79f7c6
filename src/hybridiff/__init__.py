"""Hybridiff: one guided diffusion generation on two or more devices.

An independent implementation of hybrid data-pipeline parallelism for classifier-free guidance
(Jung et al., CVPR 2026, arXiv 2602.21760), attached to stock diffusers pipelines.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .config import ParallelConfig, PublishedSettings
    from .distributed.comm import Comm
    from .errors import CommError, EngineError, RankError, UsageError
    from .launch.engine import Engine
    from .models.loading import load_pipeline
    from .pipeline import ParallelPipeline, parallelize
    from .report.report import RunReport, StepRecord
    from .schedule.kinds import Phase, StepKind

__version__ = "0.1.0"

__all__ = [
    "Comm",
    "CommError",
    "Engine",
    "EngineError",
    "ParallelConfig",
    "ParallelPipeline",
    "Phase",
    "PublishedSettings",
    "RankError",
    "RunReport",
    "StepKind",
    "StepRecord",
    "UsageError",
    "load_pipeline",
    "parallelize",
]

_MODULES = {
    "Comm": "distributed.comm",
    "CommError": "errors",
    "Engine": "launch.engine",
    "EngineError": "errors",
    "ParallelConfig": "config",
    "ParallelPipeline": "pipeline",
    "Phase": "schedule.kinds",
    "PublishedSettings": "config",
    "RankError": "errors",
    "RunReport": "report.report",
    "StepKind": "schedule.kinds",
    "StepRecord": "report.report",
    "UsageError": "errors",
    "load_pipeline": "models.loading",
    "parallelize": "pipeline",
}


def __getattr__(name: str) -> Any:
    # Public names load on first use, so that `import hybridiff` and `hybridiff --help` do not import torch.
    if name in _MODULES:
        return getattr(importlib.import_module(f".{_MODULES[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
