"""An image depends on prompt, seed, model and settings alone: never on how fast the machine happens to be."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch

from hybridiff import ParallelConfig, parallelize
from hybridiff.denoiser import layers
from hybridiff.denoiser.adapters import find_denoiser
from hybridiff.models.loading import load_pipeline
from support.pipelines import build, generate

EVERY_WAY: dict[str, tuple[dict[str, Any], str]] = {
    "serial": ({"strategy": "serial", "devices": 1}, "f"),
    "cfg": ({"strategy": "cfg"}, "f"),
    "cached": ({"strategy": "hybrid", "step_kind": "cached", "tolerance": 0.5}, "cf"),
    "reuse": ({"strategy": "hybrid", "step_kind": "reuse", "tolerance": 0.5}, "fr"),
    "published": ({"strategy": "published"}, "fp"),
}
"""Configs, and the kinds of steps that they have, one letter each."""
COUNTED = ("point", "entry", "exit", "outer_work", "inner_work", "down_bytes", "up_bytes")
"""What the report says of a split that is no time."""


@pytest.fixture
def _false_times(monkeypatch: pytest.MonkeyPatch) -> None:
    """Layers and whole networks take any time at all."""
    clock = random.Random(0)
    monkeypatch.setattr(layers, "elapsed", lambda start, end: clock.uniform(0.0, 1.0))
    monkeypatch.setattr(layers, "timed", lambda work, device: (work(), clock.uniform(0.0, 9.0))[1])


@pytest.mark.usefixtures("_false_times")
@pytest.mark.parametrize("name", ["sdxl two levels", "sd15", "sd3"])
@pytest.mark.parametrize("way", EVERY_WAY)
def test_false_times_change_nothing(name: str, way: str) -> None:
    config, kinds = EVERY_WAY[way]
    generated, schedules, splits = [], [], []
    for _ in range(5):
        with parallelize(build(name), ParallelConfig(simulate=True, **config)) as parallel:
            generated.append(generate(parallel, name, num_inference_steps=10))
            assert parallel.report is not None
            schedules.append("".join(step.kind.value[0] for step in parallel.report.steps))
            splits.append(parallel.report.stages)
    assert all(torch.equal(latents, generated[0]) for latents in generated)
    assert schedules == [schedules[0]] * 5
    assert "".join(sorted(set(schedules[0]))) == kinds
    if splits[0]:
        assert len({split["outer"] for split in splits}) == 5, "the times are false indeed"
        assert all(split[name] == splits[0][name] for split in splits for name in COUNTED)


@pytest.mark.parametrize(("model", "kind", "index"), [("tiny-sdxl", "reuse", 8), ("tiny-sdxl", "pipelined", 29)])
def test_a_calibration_says_where_to_split(model: str, kind: str, index: int) -> None:
    ways = {
        "reuse": {"strategy": "hybrid", "step_kind": "reuse", "tolerance": 0.5},
        "pipelined": {"strategy": "published"},
    }
    pipe = load_pipeline(model)
    pipe.set_progress_bar_config(disable=True)
    adapter, network = find_denoiser(pipe)
    point = adapter.split_points(network)[index]
    with parallelize(pipe, ParallelConfig(simulate=True, **ways[kind])) as parallel:
        parallel("a red ring", num_inference_steps=6, output_type="latent")
        assert parallel.report is not None
        assert parallel.report.stages["point"] == {"entry": point.entry, "exit": point.exit}
