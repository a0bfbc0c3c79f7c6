"""Settings by model: the published ones, and those calibrated for the embedded models."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from .switching import PublishedSettings

PUBLISHED: dict[str, PublishedSettings] = {
    # Jung et al. 2026, Sec. 5.1 (SDXL, DDIM, w = 5) and the README of their code (SD3-medium, w = 7), 50 steps.
    "sdxl": PublishedSettings(slope_window=12, slope_threshold=4e-4, parallel_steps=5, tau_cap=15),
    "sd3": PublishedSettings(slope_window=15, slope_threshold=5e-4, parallel_steps=5, tau_cap=40),
}


def published_settings(pipe: Any) -> PublishedSettings:
    """The preset for a pipeline, by its model's name or else by its family; for 50 steps."""
    name = Path(str(getattr(pipe.config, "_name_or_path", None) or pipe.config.get("_name_or_path", ""))).name
    if name in PUBLISHED:
        return PUBLISHED[name]
    return PUBLISHED["sdxl" if getattr(pipe, "unet", None) is not None else "sd3"]
