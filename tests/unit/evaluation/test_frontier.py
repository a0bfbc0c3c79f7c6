"""Fidelity and ideal speed-up of settings, against the one-device picture of the same prompt and seed."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from hybridiff import ParallelConfig
from hybridiff.config import parse_steps
from hybridiff.evaluation.frontier import (
    Cuts,
    Setting,
    draw_references,
    guided_schedules,
    simulate,
    steps_as_text,
    typical_schedule,
    upper_envelope,
)
from hybridiff.evaluation.grid import FAMILIES, NAMES, guided_models, list_settings, typical
from hybridiff.schedule.plan import Schedule
from hybridiff.utils.prompts import Prompt
from support.pipelines import build

CALL = {"num_inference_steps": 6, "guidance_scale": 5.0, "height": 32, "width": 32}
EXACT = Setting("exact", "cfg", ParallelConfig(strategy="cfg", simulate=True))
REUSE = Setting(
    "reuse", "no full steps", ParallelConfig(strategy="reuse", tau1=1, tau2=5, full_interval=0, forecast="hold")
)


def test_settings_are_compared_with_the_stock_pipeline() -> None:
    pipe = build("sd3")
    prompts = [Prompt("a red ring on a white background"), Prompt("two blue cubes", seed=7)]
    references = list(draw_references(pipe, prompts, CALL))
    assert [reference.prompt.seed for reference in references] == [0, 7]
    fewer = Setting("fewer-steps", "3 steps", EXACT.config, steps=3)
    cuts = Cuts(pipeline={"cut": 1, "outer": 0.5, "inner": 0.5}, reuse={"cut": 0, "outer": 0.25, "inner": 0.75})
    told: list[str] = []
    rows = simulate(pipe, references, [EXACT, REUSE, fewer], CALL, cuts, lambda setting: told.append(setting.family))
    exact, reuse, half = (row.to_dict() for row in rows)
    assert told == ["exact", "exact", "reuse", "reuse", "fewer-steps", "fewer-steps"]
    assert exact["psnr_worst_tenth"] > 80.0
    assert exact["ideal_speedup"] == 2.0
    assert exact["schedules"] == {"ffffff": 2}
    assert reuse["psnr_worst_tenth"] <= reuse["psnr"] < exact["psnr"]
    assert reuse["ssim"] < exact["ssim"] <= 1.0
    assert reuse["ideal_speedup"] == 12 / (2 + 4 * 0.25), "by the cut's costs as given"
    assert reuse["schedules"] == {"ffrrrr": 2}
    assert reuse["right"] == 0.0, "random weights draw no ring; the other prompt is no caption and does not count"
    assert half["ideal_speedup"] == 4.0, "against the reference's six steps"
    assert half["psnr"] < exact["psnr"]
    assert half["schedules"] == {"fff": 2}


@pytest.mark.parametrize(
    ("call", "expected"),
    [
        ({"negative_prompt": "blue"}, ["blue", "red", ""]),
        ({}, ["", "red", ""]),
        ({"negative_prompt": None}, ["", "red", ""]),
    ],
)
def test_prompts_without_a_negative_prompt_of_their_own_keep_that_of_the_call(
    call: dict[str, Any], expected: list[str]
) -> None:
    prompts = [Prompt("a ring"), Prompt("a cross", negative_prompt="red"), Prompt("a square", negative_prompt="")]
    asked: list[Any] = []

    def pipe(**arguments: Any) -> Any:
        asked.append(arguments.get("negative_prompt"))
        return SimpleNamespace(images=np.zeros((len(arguments["prompt"]), 8, 8, 3), dtype=np.float32))

    list(draw_references(pipe, prompts, call, batch=3))
    list(draw_references(pipe, prompts[:1], call))
    assert asked == [expected, call.get("negative_prompt")]


def test_adaptive_settings_show_how_their_schedules_differ() -> None:
    pipe = build("sdxl", "ddim")
    references = list(draw_references(pipe, [Prompt("a ring"), Prompt("a cross")], CALL))
    guided = Setting("skipped", "any", ParallelConfig(strategy="hybrid", between="skipped", tolerance=9.0, settled=9.0))
    (row,) = simulate(pipe, references, [guided], CALL)
    found = row.to_dict()
    assert found["full_steps"]["min"] <= found["full_steps"]["median"] <= found["full_steps"]["max"] < 6
    assert found["tau1"] is not None
    assert "s" in next(iter(found["schedules"]))
    schedules = guided_schedules(pipe, [Prompt("a ring")], guided, CALL)
    assert schedules[0] in found["schedules"]
    fixed = typical(guided, steps_as_text(typical_schedule(schedules)))
    (row,) = simulate(pipe, references[:1], [fixed], CALL)
    assert list(row.to_dict()["schedules"]) == schedules


def test_a_description_tells_settings_apart_by_the_thresholds_that_hold() -> None:
    pipe = build("sdxl")
    quality = Setting("quality", "0.5", ParallelConfig(strategy="hybrid", quality=0.5, simulate=True))
    described = quality.describe(pipe, 50)
    assert described["config"] == {"strategy": "hybrid", "quality": 0.5}
    assert described["thresholds"]["between"] == "skipped"
    assert described["thresholds"]["tolerance"] > 0
    assert EXACT.describe(pipe, 50)["thresholds"] == {}


@pytest.mark.parametrize("steps", [6, 20, 28, 50])
def test_every_setting_of_every_family_is_legal(steps: int) -> None:
    pipe = build("sd3")
    settings = list_settings(NAMES, steps) + guided_models()
    assert {setting.family for setting in settings} == set(FAMILIES)
    assert len({(setting.family, setting.label) for setting in list_settings(NAMES, steps)}) == len(settings) - 4
    for setting in settings:
        if setting.is_scheduled:
            Schedule(pipe, setting.config, setting.steps or steps).check()


def test_the_published_exchange_is_tried_at_every_start() -> None:
    labels = [setting.label for setting in list_settings(["published"], 50)]
    assert labels[:2] == ["k 5, tau1 5", "k 5, tau1 10"]
    assert "k 10, tau1 35" in labels
    assert "k 10, tau1 40" not in labels, "it would end with the last step"
    with pytest.raises(ValueError, match="unknown family 'magic'"):
        list_settings(["magic"], 50)


def test_the_typical_schedule_has_the_median_number_of_full_steps_and_is_nearest_to_the_others() -> None:
    assert typical_schedule(["ffssf", "fsfsf", "ffssf", "fffff", "fsssf"]) == [0, 1, 4]
    assert typical_schedule(["fsf", "fff"]) == [0, 2], "of an even number the lower middle one"


def test_steps_are_written_as_they_are_read() -> None:
    for steps in ([0], [0, 1, 2, 5, 7, 8], [0, 2, 4]):
        assert parse_steps(steps_as_text(steps)) == steps
    assert steps_as_text([0, 1, 2, 5, 7, 8]) == "0-2,5,7-8"


def test_the_envelope_holds_what_nothing_beats() -> None:
    points = [(2.0, 50.0), (3.0, 40.0), (2.5, 39.0), (4.0, 41.0), (2.0, 45.0)]
    assert upper_envelope(points) == [(2.0, 50.0), (4.0, 41.0)]
    assert upper_envelope([]) == []
