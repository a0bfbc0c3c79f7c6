"""Thresholds that nobody measured, unlike those of any preset."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hybridiff.calibration import Calibration, Entry

ENTRY = Entry(
    scheduler="DDIMScheduler",
    num_inference_steps=20,
    guidance_scale=5.0,
    prompts=64,
    between="skipped",
    catch_up=0.75,
    tolerances=((0.25, 0.4), (0.75, 0.2), (1.0, 0.0)),
    slope_window=4,
    slope_threshold=0.02,
    parallel_steps=6,
    tau_cap=9,
)


def calibration_file(folder: Path, *entries: Entry) -> dict[str, Any]:
    """A config with a calibration of these entries, of `ENTRY` alone unless given."""
    path = folder / "calibration.json"
    Calibration("a model", entries or (ENTRY,)).write(path)
    return {"calibration": str(path)}
