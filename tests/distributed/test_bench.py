"""`hybridiff bench` with ranks."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from hybridiff import Engine, load_pipeline
from hybridiff.cli.main import main

pytestmark = pytest.mark.distributed


def test_strategies_are_timed_and_compared_side_by_side(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["bench", "--model", "tiny-sd3", "--device", "cpu", "--num-inference-steps", "3", "--repeats", "1"]
    sizes = ["--limit", "1", "--strategies", "cfg", "--arg", "max_sequence_length=16", "--resolutions", "64,128"]
    assert main([*arguments, *sizes, "--output", str(tmp_path)]) == 0, capsys.readouterr().err
    rows = json.loads((tmp_path / "bench.json").read_text())["rows"]
    assert [(row["strategy"], row["devices"], row["resolution"]) for row in rows] == [
        (strategy, devices, side) for side in (64, 128) for strategy, devices in (("serial", 1), ("cfg", 2))
    ]
    for serial, cfg in (rows[:2], rows[2:]):
        assert serial["speedup"] == 1.0
        assert cfg["psnr"] == 100.0  # exact
        assert cfg["steps"] == serial["steps"] == {"full": 3}
        assert cfg["messages"]["gather the predictions"] >= 3
        assert len(cfg["waiting_seconds"]) == 2
        assert cfg["efficiency"] == pytest.approx(cfg["speedup"] / cfg["rho"])
        assert 0.0 < cfg["denoising_seconds"] < cfg["seconds"]
    assert "cfg on 2" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["bench-sdxl", "bench-sd3"])
def test_ranks_make_the_same_bench_model(name: str) -> None:
    call = {"num_inference_steps": 3, "guidance_scale": 5.0, "height": 64, "width": 64, "output_type": "np"}
    with Engine(name, 2, device="cpu") as engine:
        ours = engine.generate("a red ring", seed=0, **call).images
    theirs = load_pipeline(name)("a red ring", generator=torch.Generator().manual_seed(0), **call).images
    assert np.allclose(ours, theirs, atol=1e-4)
