"""Every specimen is a fair one: its result is finite, the same every time, and its branches matter."""

from __future__ import annotations

from typing import Any

import torch

from support.every_pipeline import every
from zoo import ZOO, Specimen, run

SCALES = ("guidance_scale", "true_cfg_scale", "max_guidance_scale")
"""Arguments for the scale of guidance, 1 for none."""

FURTHER_SCALES = {
    "edit_guidance_scale": 0.0,
    "image_guidance_scale": 1.0,
    "pag_scale": 0.0,
    "sag_scale": 0.0,
    "skip_guidance_layers": None,
}
"""Arguments that call for a third branch, with the values that do without it."""

LAYOUTS = {"batched", "positive-first", "sequential", "branches", "guider", "single"}


def run_unguided(specimen: Specimen) -> torch.Tensor:
    """What comes of a scale of 1, which is one of the call or one of the guider."""
    pipe = specimen.build()
    if specimen.layout != "guider":
        scale: dict[str, Any] = {next(name for name in SCALES if name in specimen.call()): 1.0}
        return run(specimen, pipe, **scale)
    for name in ("guider", "ocr_guider"):
        if hasattr(pipe, name):
            getattr(pipe, name).guidance_scale = 1.0
    return run(specimen, pipe)


def differ(result: torch.Tensor, other: torch.Tensor) -> bool:
    return float((result - other).norm() / other.norm()) > 1e-3


@every(ZOO)
def test_specimens_are_finite_deterministic_and_guided(name: str) -> None:
    specimen = ZOO[name]
    pipe = specimen.build()
    assert type(pipe).__name__ == specimen.name.partition(":")[0]
    result = run(specimen, pipe)
    assert torch.isfinite(result).all()
    assert torch.equal(run(specimen, pipe), result)
    assert torch.equal(run(specimen, specimen.build()), result)
    if specimen.layout != "single":
        assert differ(result, run_unguided(specimen))
    for scale in FURTHER_SCALES.keys() & specimen.call().keys():
        without: dict[str, Any] = {scale: FURTHER_SCALES[scale]}
        assert differ(result, run(specimen, specimen.build(), **without))


def test_layouts_are_known() -> None:
    assert {specimen.layout for specimen in ZOO.values()} <= LAYOUTS
    further = {name for name, specimen in ZOO.items() if FURTHER_SCALES.keys() & specimen.call().keys()}
    assert {name for name in further if ZOO[name].layout != "branches"} == set()
