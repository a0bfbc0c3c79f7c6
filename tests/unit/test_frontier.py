"""Fidelity and ideal speed-up of settings, against the one-device picture of the same prompt and seed."""

from __future__ import annotations

from hybridiff import ParallelConfig
from hybridiff.frontier import Setting, draw_references, simulate
from hybridiff.prompts import Prompt
from support.pipelines import build

CALL = {"num_inference_steps": 6, "guidance_scale": 5.0, "height": 32, "width": 32}


def test_settings_are_compared_with_the_stock_pipeline() -> None:
    pipe = build("sd3")
    prompts = [Prompt("a red ring on a white background"), Prompt("two blue cubes", seed=7)]
    references = list(draw_references(pipe, prompts, CALL))
    assert [reference.prompt.seed for reference in references] == [0, 7]
    settings = [
        Setting("exact", ParallelConfig(strategy="cfg", simulate=True)),
        Setting(
            "reuse",
            ParallelConfig(strategy="reuse", simulate=True, cut=0, tau1=1, tau2=5, full_interval=0, forecast="hold"),
        ),
    ]
    told: list[str] = []
    exact, reuse = (row.to_dict() for row in simulate(pipe, references, settings, CALL, told.append))
    assert told == ["exact: 1 of 2", "reuse: 2 of 2"]
    assert exact["psnr_worst_tenth"] > 80.0
    assert exact["ideal_speedup"] == 2.0
    assert exact["schedules"] == {"ffffff": 2}
    assert reuse["psnr_worst_tenth"] <= reuse["psnr"] < exact["psnr"]
    assert reuse["ssim"] < exact["ssim"] <= 1.0
    assert reuse["ideal_speedup"] > 2.0
    assert reuse["schedules"] == {"ffrrrr": 2}
    assert reuse["right"] == 0.0, "random weights draw no ring; the other prompt is no caption and does not count"
