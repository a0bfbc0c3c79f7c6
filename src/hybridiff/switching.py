"""In which phase a step runs: pure Python, the same on every rank."""

from __future__ import annotations

from enum import Enum


class Phase(str, Enum):
    """The three stages of a hybrid generation (Jung et al. 2026, Sec. 3)."""

    WARM_UP = "warm-up"
    PARALLEL = "parallel"
    CONNECT = "connect"
