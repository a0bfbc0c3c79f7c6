"""Every specimen is a fair one: its result is finite, the same every time, and guidance matters to it."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from zoo import ZOO, Specimen, run

SCALES = ("guidance_scale", "true_cfg_scale", "decoder_guidance_scale", "max_guidance_scale")

LAYOUTS = {"batched", "positive-first", "sequential", "branches", "guider", "single"}


def scale_of(call: dict[str, Any]) -> str:
    return next(name for name in SCALES if name in call)


def run_unguided(specimen: Specimen) -> torch.Tensor:
    """What comes of a scale of 1, which is one of the call or one of the guider."""
    pipe = specimen.build()
    if specimen.layout != "guider":
        scale: dict[str, Any] = {scale_of(specimen.call()): 1.0}
        return run(specimen, pipe, **scale)
    for name in ("guider", "ocr_guider"):
        if hasattr(pipe, name):
            getattr(pipe, name).guidance_scale = 1.0
    return run(specimen, pipe)


@pytest.mark.parametrize("specimen", [pytest.param(specimen, id=name) for name, specimen in ZOO.items()])
def test_specimens_are_finite_deterministic_and_guided(specimen: Specimen) -> None:
    pipe = specimen.build()
    assert type(pipe).__name__ == specimen.name.partition(":")[0]
    result = run(specimen, pipe)
    assert torch.isfinite(result).all()
    assert torch.equal(run(specimen, pipe), result)
    assert torch.equal(run(specimen, specimen.build()), result)
    if specimen.layout != "single":
        unguided = run_unguided(specimen)
        assert (result - unguided).norm() / unguided.norm() > 1e-3


def test_layouts_are_known() -> None:
    assert {specimen.layout for specimen in ZOO.values()} <= LAYOUTS
