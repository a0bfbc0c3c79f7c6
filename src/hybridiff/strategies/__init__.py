"""Ways for ranks to share a generation: one technique a file."""

from __future__ import annotations

from .base import Answer, Strategy
from .cfg import CfgStrategy
from .serial import SerialStrategy

STRATEGIES: dict[str, type[Strategy]] = {strategy.name: strategy for strategy in (SerialStrategy, CfgStrategy)}

__all__ = ["STRATEGIES", "Answer", "CfgStrategy", "SerialStrategy", "Strategy"]
