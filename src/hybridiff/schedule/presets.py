"""Settings by family of model, for models that are not calibrated."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from .calibration import interpolate
from .kinds import PUBLISHED_STEPS, PublishedSettings

PUBLISHED: dict[str, PublishedSettings] = {
    # Jung et al. 2026, Sec. 5.1 (SDXL, DDIM, w = 5) and the README of their code (SD3-medium, w = 7), 50 steps.
    "sdxl": PublishedSettings(slope_window=12, slope_threshold=4e-4, parallel_steps=5, tau_cap=15),
    "sd3": PublishedSettings(slope_window=15, slope_threshold=5e-4, parallel_steps=5, tau_cap=40),
}

REUSE_SHARES = {"sdxl": 0.3, "sd3": 1 / 6}
"""Cost of the outer stage that reuse aims at: small, as the outer stage is what a reuse step costs."""

FIRST, LAST, INTERVAL = 5, 45, 3
"""The fixed schedule unless told otherwise, for 50 steps: tau1, tau2, and the distance of full steps between."""

_TOLERANCES = ((0.0, 0.25), (0.25, 0.14), (0.5, 0.085), (0.75, 0.045), (0.95, 0.02), (1.0, 0.0))


def general_tolerance(quality: float) -> float:
    """The tolerance of a quality for models that are not calibrated: what suits both embedded models roughly."""
    return interpolate(_TOLERANCES, quality)


def model_name(pipe: Any) -> str:
    """The last part of the path or hub id that a pipeline was loaded from; empty where it does not know."""
    return Path(str(pipe.config.get("_name_or_path") or "")).name


def published_settings(pipe: Any) -> PublishedSettings:
    """The preset for a pipeline, by its model's name or else by its family; for 50 steps."""
    name = model_name(pipe)
    return PUBLISHED[name] if name in PUBLISHED else PUBLISHED[_family(pipe)]


def _family(pipe: Any) -> str:
    return "sdxl" if getattr(pipe, "unet", None) is not None else "sd3"


def reuse_share(pipe: Any) -> float:
    """The outer stage's share of a whole evaluation at which reuse cuts a pipeline's denoiser."""
    return REUSE_SHARES[_family(pipe)]


def scaled_steps(steps_of_fifty: int, steps: int, least: int = 1) -> int:
    """A number of steps given for 50, for another number of steps."""
    return max(least, round(steps_of_fifty * steps / PUBLISHED_STEPS))


def fixed_schedule(steps: int, tau1: int | None, tau2: int | None, interval: int | None) -> tuple[int, int, int]:
    """(tau1, tau2, interval) for a number of steps: the user's own where given, else scaled from 50 steps."""
    if tau1 is None:
        tau1 = min(round(FIRST * steps / PUBLISHED_STEPS), steps - 1)
    if tau2 is None:
        tau2 = max(tau1, round(LAST * steps / PUBLISHED_STEPS) - 1)
    return tau1, tau2, INTERVAL if interval is None else interval
