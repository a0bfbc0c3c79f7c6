"""What a denoiser looks like: its first call, its split points, and the text of both."""

from __future__ import annotations

from dataclasses import replace

import pytest

from hybridiff.errors import UsageError
from hybridiff.evaluation.inspection.denoiser import format_inspection, inspect_denoiser, measure_splits
from hybridiff.models.loading import load_pipeline
from hybridiff.schedule.calibration import Calibration
from support.pipelines import build, denoiser_of

CALL = {"num_inference_steps": 4, "height": 32, "width": 32}


@pytest.mark.parametrize("name", ["sdxl", "sd3"])
def test_the_split_points_of_published_and_reuse_are_shown(name: str) -> None:
    pipe = build(name)
    found = inspect_denoiser(pipe, **CALL)
    assert found.chosen.keys() == {"pipelined", "reuse"}
    pipelined, reuse = (found.splits[index] for index in found.chosen.values())
    assert max(pipelined.outer_work, pipelined.inner_work) <= max(reuse.outer_work, reuse.inner_work)
    lines = format_inspection(found).splitlines()
    assert lines[0].startswith(f"{found.network}, one branch 1 x 4 x 16 x 16 float32: ")
    assert f"split point for published: {found.chosen['pipelined']}" in lines
    assert f"split point for hybrid with reuse steps: {found.chosen['reuse']}" in lines
    table = format_inspection(found, every_split=True).splitlines()[len(lines) + 1 :]
    assert len(table) == 1 + len(found.splits)
    assert [line.split()[2] for line in table[1:]] == [str(index) for index in range(len(found.splits))]
    assert not hasattr(denoiser_of(pipe), "_diffusers_hook") or not denoiser_of(pipe)._diffusers_hook.hooks


def test_stored_split_points_come_first(monkeypatch: pytest.MonkeyPatch) -> None:
    pipe = load_pipeline("tiny-sdxl")
    stored = Calibration("tiny-sdxl", (), {"reuse": 2})
    read = Calibration.read
    monkeypatch.setattr(Calibration, "read", lambda path: replace(read(path), split_points=stored.split_points))
    found = inspect_denoiser(pipe)
    assert found.chosen["reuse"] == 2
    splits = measure_splits(pipe, {})
    assert splits["reuse"]["index"] == 2
    assert splits["pipelined"]["index"] == found.chosen["pipelined"] > 2


def test_a_network_that_is_too_small_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    pipe = build("sd3")
    monkeypatch.setattr("hybridiff.denoiser.stages.StagedDenoiser.measure", lambda *_: [])
    with pytest.raises(UsageError, match="too small to be split"):
        inspect_denoiser(pipe, **CALL)
