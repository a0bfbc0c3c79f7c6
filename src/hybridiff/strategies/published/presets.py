"""Which settings of the published rule hold for a call."""

from __future__ import annotations

from typing import Any

from ...config import LEAST_STEPS, ParallelConfig, PublishedSettings
from ...schedule.fixed import FixedPolicy
from ...schedule.kinds import Policy
from ...schedule.presets import ModelSettings
from .rule import PublishedPolicy


def choose_settings(config: ParallelConfig, settings: ModelSettings, scheduler: Any, steps: int) -> PublishedSettings:
    """The user's own, or else the calibration's or the family's, scaled to a number of steps."""
    entry = settings.entry(scheduler, getattr(scheduler, "num_inference_steps", None) or steps)
    if entry is not None:
        preset = entry.published.scaled(steps, entry.num_inference_steps)
    else:
        preset = settings.published.scaled(steps)
    return config.published.or_else(preset)


def choose_policy(config: ParallelConfig, settings: ModelSettings, scheduler: Any, steps: int) -> Policy:
    """The rule for a call; too few steps are all full, unless settings were given by hand.

    Raises:
        UsageError: settings contradict the number of steps.
    """
    if steps < LEAST_STEPS and set(config.published.rule) == {None}:
        return FixedPolicy.all_full(steps)
    return PublishedPolicy(choose_settings(config, settings, scheduler, steps), steps)
