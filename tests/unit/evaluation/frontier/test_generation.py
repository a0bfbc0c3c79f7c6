"""Fidelity and ideal speed-up of settings, against the one-device image of the same prompt and seed."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest

from hybridiff import ParallelConfig, PublishedSettings
from hybridiff.evaluation.frontier.generation import add_converged, generate_references, guided_schedules, simulate
from hybridiff.evaluation.frontier.grid import typical
from hybridiff.evaluation.frontier.kept import KeptImages
from hybridiff.evaluation.frontier.rows import upper_envelope
from hybridiff.evaluation.frontier.schedules import steps_as_text, typical_schedule
from hybridiff.evaluation.frontier.settings import Setting, guided
from hybridiff.evaluation.frontier.solvers import promised
from hybridiff.utils.prompts import Prompt
from support.pipelines import build

CALL = {"num_inference_steps": 6, "guidance_scale": 5.0, "height": 32, "width": 32}
EXACT = Setting("exact", "cfg", ParallelConfig("cfg"))
REUSE = Setting("reuse", "2 full", ParallelConfig("hybrid", step_kind="reuse", full_steps="0-1"))
PUBLISHED = Setting(
    "published",
    "k 3, tau1 1",
    ParallelConfig(
        "published", published=PublishedSettings(slope_window=6, slope_threshold=1e-9, parallel_steps=3, tau_cap=1)
    ),
)
SPLITS = {
    "pipelined": {"index": 1, "outer": 0.5, "inner": 0.5},
    "reuse": {"index": 0, "outer": 0.25, "inner": 0.75},
}


def test_settings_are_compared_with_the_stock_pipeline() -> None:
    pipe = build("sd3")
    prompts = [Prompt("a red ring on a white background"), Prompt("two blue cubes", seed=7)]
    references = list(generate_references(pipe, prompts, CALL))
    assert [reference.prompt.seed for reference in references] == [0, 7]
    fewer = Setting("fewer-steps", "3 steps", EXACT.config, steps=3)
    told: list[str] = []
    rows = simulate(
        pipe, references, [EXACT, REUSE, fewer, PUBLISHED], CALL, SPLITS, lambda one: told.append(one.method), batch=2
    )
    exact, reuse, half, published = (row.to_dict() for row in rows)
    assert told == [name for name in ("exact", "reuse", "fewer-steps", "published") for _ in prompts]
    assert exact["psnr_worst_tenth"] > 80.0
    assert exact["ideal_speedup"] == 2.0
    assert exact["schedules"] == {"ffffff": 2}
    assert reuse["psnr_worst_tenth"] <= reuse["psnr"] < exact["psnr"]
    assert reuse["ssim"] < exact["ssim"] <= 1.0
    assert reuse["ideal_speedup"] == 12 / (2 + 4 * 0.25), "by the split's costs as given"
    assert reuse["schedules"] == {"ffrrrr": 2}
    assert exact["evaluations"] == 6
    assert not {"evaluations"} & (reuse.keys() | published.keys()), "their other steps evaluate parts of the network"
    assert reuse["right"] == 0.0, "random weights generate no ring; the other prompt is no caption and does not count"
    assert half["ideal_speedup"] == 4.0, "against the reference's six steps"
    assert half["psnr"] < exact["psnr"]
    assert half["schedules"] == {"fff": 2}
    assert published["schedules"] == {"ffpppf": 2}
    assert published["ideal_speedup"] == pytest.approx(12 / (3 + 3 * 0.5), abs=1e-4)
    assert "full_steps" not in published, "the cap decides, so that nothing differs over the prompts"


def test_other_schedulers_take_the_place_of_the_models_own_for_their_rows() -> None:
    pipe = build("sdxl", "ddim")
    own = pipe.scheduler
    references = list(generate_references(pipe, [Prompt("a ring")], CALL))
    settings = [
        Setting("solvers", "unipc", EXACT.config, scheduler="unipc"),
        Setting("solvers", "unipc, 3 steps", EXACT.config, 3, "unipc"),
        Setting("solvers", "heun, 3 steps", EXACT.config, 3, "heun"),
        EXACT,
    ]
    other, fewer, second_order, exact = (row.to_dict() for row in simulate(pipe, references, settings, CALL))
    assert pipe.scheduler is own
    assert exact["psnr"] > 80 > other["psnr"]
    assert (other["ideal_speedup"], fewer["ideal_speedup"], fewer["evaluations"]) == (2.0, 4.0, 3)
    assert second_order["ideal_speedup"] == 2.4, "its three steps are five evaluations, and the reference has six"
    pipe = build("sdxl", "heun")
    references = list(generate_references(pipe, [Prompt("a ring")], CALL))
    fewer_steps = Setting("fewer-steps", "3 steps", EXACT.config, 3)
    settings = [EXACT, fewer_steps, Setting("solvers", "euler", EXACT.config, scheduler="euler")]
    found = [row.to_dict() for row in simulate(pipe, references, settings, CALL)]
    assert [row["evaluations"] for row in found] == [11, 5, 6]
    assert [row["ideal_speedup"] for row in found] == [2.0, 4.4, 3.6667], "against eleven evaluations"


def test_images_are_compared_with_the_converged_ones_too(tmp_path: Path) -> None:
    pipe, kept = build("sdxl", "ddim"), KeptImages(tmp_path, CALL)
    references = list(generate_references(pipe, [Prompt("a ring"), Prompt("a cross"), Prompt("a square")], CALL))
    kept.keep(references[1].prompt, references[1].pixels)
    asked: list[int] = []

    def counted(**arguments: Any) -> Any:
        asked.append(len(arguments["prompt"]))
        return pipe(**arguments)

    converged = list(add_converged(counted, references, CALL, 30, kept, batch=3))
    assert asked == [2], "the kept image is not made again"
    assert converged[1].converged is not None
    assert np.array_equal(converged[1].converged, references[1].pixels)
    again = list(add_converged(counted, references, CALL, 30, kept))
    assert asked == [2], "all are kept now"
    for one, other in zip(converged, again, strict=True):
        assert one.converged is not None
        assert np.array_equal(one.converged, other.converged)
    (row,) = simulate(pipe, converged, [EXACT], CALL)
    found = row.to_dict()
    assert found["psnr_converged_worst_tenth"] <= found["psnr_converged"] < found["psnr"]
    (row,) = simulate(pipe, references, [EXACT], CALL)
    assert "psnr_converged" not in row.to_dict()


def test_promised_rows_say_what_they_estimated() -> None:
    pipe = build("sdxl", "ddim")
    references = list(generate_references(pipe, [Prompt("a ring"), Prompt("a cross")], CALL))
    settings = [promised(20.0), promised(20.0, scheduler="unipc"), EXACT]
    own, other, exact = (row.to_dict() for row in simulate(pipe, references, settings, CALL))
    assert own["estimated"] > 20.0
    assert own["estimate_error"] >= abs(own["estimated"] - own["psnr"]) - 1e-3
    assert "estimate_error" not in other, "PSNR is against another solver's image, which nobody promised"
    assert "estimated" in other
    assert "estimated" not in exact


@pytest.mark.parametrize(
    ("call", "expected"),
    [
        ({"negative_prompt": "blue"}, "blue"),
        ({}, None),
        ({"negative_prompt": None}, None),
    ],
)
def test_prompts_without_a_negative_prompt_of_their_own_keep_that_of_the_call(
    call: dict[str, Any], expected: str | None
) -> None:
    """In whatever batches: SDXL makes the embedding zero where there is none, but not that of an empty one."""
    prompts = [Prompt("a ring"), Prompt("a cross", negative_prompt="red"), Prompt("a square", negative_prompt="")]
    asked: list[Any] = []

    def answer(**arguments: Any) -> Any:
        asked.append(arguments.get("negative_prompt"))
        return SimpleNamespace(images=np.zeros((len(arguments["prompt"]), 8, 8, 3), dtype=np.float32))

    pipe = Mock(side_effect=answer, num_timesteps=6)
    list(generate_references(pipe, prompts, call, batch=3))
    list(generate_references(pipe, prompts[:1], call))
    assert asked == [expected, ["red", ""], expected]


def test_a_row_says_what_its_runs_did_and_where_no_ideal_is_known() -> None:
    pipe = build("sdxl", "ddim")
    references = list(generate_references(pipe, [Prompt("a ring"), Prompt("a cross")], CALL))
    cache = ParallelConfig("cached_cfg", settings={"cache": "taylorseer"})
    (cached, exact) = (row.to_dict() for row in simulate(pipe, references, [Setting("cache", "a", cache), EXACT], CALL))
    assert cached["ideal_speedup"] is None, "its letters do not say what was left out"
    assert [note.partition(":")[0] for note in cached["notes"]] == [
        "the ideal of the schedule counts every step as full"
    ]
    assert exact["notes"] == []


def test_adaptive_settings_show_how_their_schedules_differ() -> None:
    pipe = build("sdxl", "ddim")
    references = list(generate_references(pipe, [Prompt("a ring"), Prompt("a cross")], CALL))
    any_drift = guided("cached", 9.0)
    (row,) = simulate(pipe, references, [any_drift], CALL)
    found = row.to_dict()
    assert found["full_steps"]["min"] <= found["full_steps"]["median"] <= found["full_steps"]["max"] < 6
    assert found["tau1"] is not None
    assert "c" in next(iter(found["schedules"]))
    schedules = guided_schedules(pipe, [Prompt("a ring")], any_drift, CALL)
    assert schedules[0] in found["schedules"]
    fixed = typical(any_drift, steps_as_text(typical_schedule(schedules)))
    (row,) = simulate(pipe, references[:1], [fixed], CALL)
    assert list(row.to_dict()["schedules"]) == schedules


def test_the_envelope_holds_what_nothing_beats() -> None:
    points = [(2.0, 50.0), (3.0, 40.0), (2.5, 39.0), (4.0, 41.0), (2.0, 45.0)]
    assert upper_envelope(points) == [(2.0, 50.0), (4.0, 41.0)]
    assert upper_envelope([]) == []
