"""An image depends on prompt, seed, model and settings alone: never on how fast the machine happens to be."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch

from hybridiff import ParallelConfig, parallelize
from hybridiff.denoiser import stages
from hybridiff.models.loading import load_pipeline
from support.pipelines import build, draw

EVERY_WAY: list[dict[str, Any]] = [
    {"strategy": "serial", "devices": 1},
    {"strategy": "cfg"},
    {"strategy": "hybrid"},
    {"strategy": "hybrid", "between": "reuse", "tolerance": 0.5},
    {"strategy": "hybrid", "switching": "published"},
]


@pytest.mark.parametrize("name", ["sdxl two levels", "sd3"])
@pytest.mark.parametrize("config", EVERY_WAY, ids=str)
def test_false_times_change_nothing(name: str, config: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    clock = random.Random(0)
    monkeypatch.setattr(stages, "_elapsed", lambda start, end: clock.uniform(0.0, 1.0))
    drawn, splits = [], []
    for _ in range(5):
        with parallelize(build(name), ParallelConfig(simulate=True, **config)) as parallel:
            drawn.append(draw(parallel, name, num_inference_steps=8))
            assert parallel.report is not None
            splits.append(parallel.report.stages.get("cut"))
    assert all(torch.equal(latents, drawn[0]) for latents in drawn)
    assert splits == [splits[0]] * 5


@pytest.mark.parametrize(("model", "purpose", "index"), [("tiny-sdxl", "reuse", 8), ("tiny-sdxl", "published", 29)])
def test_a_calibration_says_where_to_cut(model: str, purpose: str, index: int) -> None:
    way = {"between": "reuse", "tolerance": 0.5} if purpose == "reuse" else {"switching": "published"}
    pipe = load_pipeline(model)
    with parallelize(pipe, ParallelConfig(strategy="hybrid", simulate=True, **way)) as parallel:
        parallel("a red ring", num_inference_steps=6, output_type="latent")
        cuts = parallel._staged.cuts  # type: ignore[union-attr]
        assert parallel.report is not None
        assert parallel.report.stages["cut"] == {"entry": cuts[index].entry, "exit": cuts[index].exit}
