"""Solvers beside each other: what is tried, which rows belong together, the chart."""

from __future__ import annotations

from typing import Any

import pytest
from diffusers import DPMSolverMultistepScheduler, EulerDiscreteScheduler, FlowMatchEulerDiscreteScheduler

from hybridiff.errors import UsageError
from hybridiff.evaluation.frontier.solver_chart import solver_figure
from hybridiff.evaluation.frontier.solvers import (
    check_converged,
    least_evaluations,
    other_solvers,
    solver_lines,
    solver_settings,
)
from hybridiff.models.schedulers import build_scheduler
from support.pipelines import SCHEDULERS

RUN = {
    "model": "random",
    "scheduler": "DDIMScheduler",
    "num_inference_steps": 50,
    "dtype": "float32",
    "prompts": [],
    "converged_steps": 500,
}


@pytest.mark.parametrize(
    ("own", "others"),
    [
        (SCHEDULERS["ddim"](), ["euler", "dpmsolver++", "unipc"]),
        (EulerDiscreteScheduler(), ["dpmsolver++", "unipc"]),
        (DPMSolverMultistepScheduler(), ["euler", "unipc"]),
        (FlowMatchEulerDiscreteScheduler(), ["flow-dpmsolver++", "flow-unipc"]),
        (build_scheduler("flow-unipc", FlowMatchEulerDiscreteScheduler()), ["flow-euler", "flow-dpmsolver++"]),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_model_is_compared_with_solvers_of_its_kind(own: Any, others: list[str]) -> None:
    assert other_solvers(own) == others


def test_every_solver_is_tried_alone_and_with_promises() -> None:
    settings = {setting.name: setting for setting in solver_settings(50, SCHEDULERS["ddim"]())}
    assert settings["solvers", "unipc, 20 steps"].scheduler == "unipc"
    assert settings["solvers", "unipc, 50 steps"].config == settings["exact", "cfg"].config
    assert settings["fewer-steps", "20 steps"].scheduler is None
    assert settings["fidelity", "45 dB promised"].steps is None
    assert settings["solvers-hybrid", "dpmsolver++, 28 steps, 45 dB promised"].steps == 28
    assert settings["solvers-hybrid", "dpmsolver++, 50 steps, 45 dB promised"].config.fidelity == 45.0
    own = {setting.name for setting in solver_settings(50, DPMSolverMultistepScheduler())}
    assert ("solvers-hybrid", "28 steps, 45 dB promised") in own, "the model's own is of higher order"
    assert ("solvers-hybrid", "euler, 28 steps, 45 dB promised") not in own


def row(method: str, full: tuple[int, ...], psnr: float, converged: float | None = None, **more: Any) -> dict[str, Any]:
    known = {} if converged is None else {"psnr_converged": converged}
    schedules = {"f" * steps: 1 for steps in full}
    return {"method": method, "schedules": schedules, "psnr": psnr, "config": {}} | known | more


PROMISED = {"strategy": "hybrid", "fidelity": 45.0}
CONTENT = {
    "run": RUN,
    "rows": [
        row("exact", (50,), 100.0, 49.0),
        row("fewer-steps", (20,), 45.0, 41.0),
        row("solvers", (20,), 46.0, 45.0, scheduler="dpmsolver++"),
        row("solvers", (28,), 47.0, 47.0, scheduler="dpmsolver++"),
        row("fidelity", (18, 19), 50.0, 48.0, config=PROMISED),
        row("solvers-hybrid", (15,), 44.0, 43.0, scheduler="dpmsolver++", config=PROMISED),
        row("quality", (15,), 44.0, 43.0, config={"strategy": "hybrid", "quality": 0.5}),
    ],
}


def test_rows_belong_to_a_solver_alone_or_with_hybrid_on_it() -> None:
    lines = solver_lines(CONTENT)
    assert {name: len(rows) for name, rows in lines.items()} == {
        "DDIM": 2,
        "DPMSolverMultistep": 2,
        "hybrid on DDIM": 1,
        "hybrid on DPMSolverMultistep": 1,
    }
    assert least_evaluations(lines["DDIM"], "psnr_converged") == [(20, 41.0), (50, 49.0)]
    only_own = [row for row in CONTENT["rows"] if "scheduler" not in row]
    assert solver_lines({"run": RUN, "rows": only_own}) == {}, "nothing is compared"


def test_more_evaluations_that_bring_no_more_do_not_count() -> None:
    rows = [row("a", (10,), 40.0), row("a", (20,), 39.0), row("a", (30,), 45.0), row("a", (30,), 44.0)]
    assert least_evaluations(rows, "psnr") == [(10, 40.0), (30, 45.0)]
    assert least_evaluations(rows, "psnr_converged") == []


def test_the_chart_shows_both_references_or_the_one_there_is() -> None:
    figure = solver_figure(CONTENT)
    converged, full = figure.axes
    assert converged.get_ylabel() == "PSNR against the converged image (500 steps), dB"
    assert [line.get_label() for line in full.lines] == [
        "DDIM",
        "hybrid on DDIM",
        "DPMSolverMultistep",
        "hybrid on DPMSolverMultistep",
    ]
    assert [text.get_text() for text in converged.texts] == ["DDIM, 50 steps: 49.0 dB"]
    without = [{name: value for name, value in row.items() if name != "psnr_converged"} for row in CONTENT["rows"]]
    (axes,) = solver_figure({"run": RUN, "rows": without}).axes
    assert axes.get_ylabel().startswith("PSNR against the full-step image, dB")


@pytest.mark.parametrize("name", ["euler-ancestral", "ddpm", "dpmsolver++-sde"])
def test_images_that_do_not_converge_are_refused(name: str) -> None:
    with pytest.raises(UsageError, match=r"Scheduler adds noise, .*: give --converged-steps 0, or a --scheduler$"):
        check_converged(500, 50, build_scheduler(name, SCHEDULERS["ddim"]()))
    with pytest.raises(UsageError, match="--converged-steps must be 0 or above the 50 steps of images, got 50"):
        check_converged(50, 50, SCHEDULERS["ddim"]())
    check_converged(500, 50, SCHEDULERS["ddim"]())
