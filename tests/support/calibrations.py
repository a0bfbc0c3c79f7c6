"""Thresholds that nobody measured, unlike those of any preset."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from hybridiff import PublishedSettings
from hybridiff.schedule.calibration import Band, Calibration, Entry

ENTRY = Entry(
    scheduler="DDIMScheduler",
    num_inference_steps=20,
    guidance_scale=5.0,
    prompts=64,
    bands=(Band(0.0, "cached", ((0.25, 0.4), (0.75, 0.2), (1.0, 0.0))),),
    published=PublishedSettings(slope_window=4, slope_threshold=0.02, parallel_steps=6, tau_cap=9),
)

REUSE_ABOVE = Band(0.8, "reuse", ((0.25, 0.6), (0.75, 0.3), (1.0, 0.0)))
"""A second band, for high qualities."""


def entry_with(step_kind: str, **changes: Any) -> Entry:
    """`ENTRY` with steps of another kind between full ones."""
    return replace(ENTRY, bands=(replace(ENTRY.bands[0], step_kind=step_kind),), **changes)


def calibration_file(folder: Path, *entries: Entry) -> dict[str, Any]:
    """A config with a calibration of these entries, of `ENTRY` alone unless given."""
    path = folder / "calibration.json"
    Calibration("someone/a-model", entries or (ENTRY,)).write(path)
    return {"calibration": str(path)}
