"""Ways for ranks to share a generation: one technique per file."""

from __future__ import annotations

from .base import Answer, RunContext, Strategy
from .cfg import CfgStrategy
from .hybrid import HybridStrategy
from .published.strategy import PublishedStrategy
from .serial import SerialStrategy

STRATEGIES: dict[str, type[Strategy]] = {
    strategy.name: strategy for strategy in (SerialStrategy, CfgStrategy, HybridStrategy, PublishedStrategy)
}


__all__ = [
    "STRATEGIES",
    "Answer",
    "CfgStrategy",
    "HybridStrategy",
    "PublishedStrategy",
    "RunContext",
    "SerialStrategy",
    "Strategy",
]
