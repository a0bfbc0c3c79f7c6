"""How `hybrid` behaves where it skips steps, or takes other kinds of them; all ranks played in this process."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from hybridiff import ParallelConfig, parallelize
from support.calibrations import calibration_file, entry_between
from support.jobs import Drawn, draw_parallel
from support.oracles import differences, drawn_one_part_after_another, relative_difference, state_of
from support.pipelines import build, draw
from support.schedules import callback_at, capped, guidance_except

STEPS = {"num_inference_steps": 10}
HYBRID = {"strategy": "hybrid", "tolerance": 1e9, "settled": 1e9, "longest_interval": 3}
"""Guided, and as far as the discrepancy goes everything is tolerable: gaps of 1, 2, 3, 3, ..."""
SCHEDULE = "ffsfssfssf"
TWO = {"num_images_per_prompt": 2}


def simulated(name: str, config: dict[str, Any], changes: dict[str, Any] | None = None, **rest: Any) -> Drawn:
    return draw_parallel(name, STEPS | (changes or {}), simulate=True, **config, **rest)[0]


def kinds(drawn: Drawn) -> str:
    """One letter a step: full, skipped, reuse or pipelined."""
    return "".join(step["kind"][0] for step in drawn.report["steps"])


@pytest.mark.parametrize("name", ["sd15", "sd3"])
def test_the_report_of_a_run(name: str) -> None:
    drawn = simulated(name, HYBRID)
    report = drawn.report
    assert kinds(drawn) == SCHEDULE
    assert (report["tau1"], report["tau2"]) == (1, 9)
    assert report["phases"] == {"warm-up": 2, "parallel": 8, "connect": 0}
    for step in report["steps"]:
        is_full = step["kind"] == "full"
        assert (step["discrepancy"] is not None) == is_full
        assert (step["drift"] is not None) == (is_full and step["index"] > 0)
        assert step["bytes_by_purpose"] == ({"prediction": 2 * 4096, "control": 8} if is_full else {})
    assert report["ideal_speedup"] == pytest.approx(20 / 5)
    assert report["stages"] == {}


def test_notes() -> None:
    assert simulated("sd3", HYBRID).report["notes"] == []
    (note,) = simulated("sd3", {"strategy": "hybrid"}).report["notes"]
    assert note.startswith("this model is not calibrated: general thresholds hold")
    fixed = {"strategy": "hybrid", "switching": "fixed"}
    pipe = build("sd15", "ddim")
    pipe.scheduler.register_to_config(thresholding=True, sample_max_value=50.0)
    with parallelize(pipe, ParallelConfig(simulate=True, **fixed)) as parallel:
        draw(parallel, "sd15", num_inference_steps=6)
        assert parallel.report is not None
        (note,) = parallel.report.notes
    assert note.startswith("DDIMScheduler is not linear as it is configured: nothing makes up for")


@pytest.mark.parametrize(
    ("name", "changes", "between"),
    [
        ("sdxl two levels", TWO, "skipped"),
        ("sd3", {}, "skipped"),
        ("sd3", TWO, "reuse"),
        ("sd3", {}, "pipelined"),
        ("sd15 img2img", {}, "mixed"),
    ],
)
def test_exact_is_cfg_bit_for_bit(name: str, changes: dict[str, Any], between: str) -> None:
    exact = simulated(name, {"strategy": "hybrid", "quality": "exact", "between": between}, changes)
    assert torch.equal(exact.latents, drawn_one_part_after_another(name, **STEPS, **changes))
    assert set(kinds(exact)) == {"f"}
    assert exact.report["notes"] == ["quality exact: every step is a full one"]
    assert (exact.report["tau1"], exact.report["tau2"]) == (None, None)


@pytest.mark.parametrize("between", ["skipped", "reuse"])
@pytest.mark.parametrize(("name", "changes"), [("sdxl two levels", TWO), ("sd3", TWO)])
def test_other_numbers_of_ranks_draw_the_same_to_rounding(name: str, changes: dict[str, Any], between: str) -> None:
    """One device evaluates both branches as a batch; four ranks a picture of a branch each."""
    config = HYBRID | {"between": between, "cut": 0}
    drawn = {ranks: simulated(name, config, changes, devices=ranks) for ranks in (1, 2, 4)}
    for ranks in (1, 4):
        assert kinds(drawn[ranks]) == kinds(drawn[2]) == SCHEDULE.replace("s", between[0])
        assert relative_difference(drawn[ranks].latents, drawn[2].latents) < 1e-4
    speedups = [drawn[ranks].report["ideal_speedup"] for ranks in (1, 2)]
    assert 1.0 < speedups[0] <= 2.0 < speedups[1]
    if between == "skipped":
        assert speedups == [2.0, 4.0]


@pytest.mark.parametrize("kind", ["pipelined", "mixed"])
def test_calibrated_pipelined_steps_on_four_ranks_are_refused(kind: str, tmp_path: Path) -> None:
    """The config does not say it, so that it shows with the first step."""
    config = {"strategy": "hybrid", "devices": 4, "cut": 1}
    with pytest.raises(ValueError, match="pipelined steps need 2 ranks, got 4; use --devices 2, or --between skipped"):
        simulated("sd3", config | calibration_file(tmp_path, entry_between(kind)))
    simulated("sd3", config | calibration_file(tmp_path))


@pytest.mark.parametrize(("name", "between"), [("sdxl", "skipped"), ("sd15", "reuse"), ("sd3.5", "mixed")])
def test_detach_restores_the_stock_pipeline(name: str, between: str) -> None:
    pipe = build(name)
    stock = draw(pipe, name)
    before = state_of(pipe)
    parallel = parallelize(pipe, ParallelConfig(simulate=True, between=between, **HYBRID))
    draw(parallel, name)
    parallel.detach()
    changed = [entry for entry in differences(before, state_of(pipe)) if not entry.startswith(("pipe._", "scheduler."))]
    assert changed == []  # but for what any call of the stock pipeline changes
    assert torch.equal(draw(pipe, name), stock)


def test_a_network_that_is_not_cut_is_not_looked_at() -> None:
    """Neither a cut that it does not have is refused, nor is any block measured."""
    cut_off = simulated("sd3", HYBRID | {"cut": 999})
    assert torch.equal(cut_off.latents, simulated("sd3", HYBRID).latents)


@pytest.mark.parametrize("between", ["skipped", "mixed"])
def test_one_run_leaves_nothing_for_the_next(between: str) -> None:
    changes: list[dict[str, Any]] = [STEPS, {**STEPS, **TWO, "height": 24, "width": 48}, {"num_inference_steps": 7}]
    config = HYBRID | {"between": between, "simulate": True, "cut": 1}
    with parallelize(build("sd3"), ParallelConfig(**config)) as parallel:
        together = [draw(parallel, "sd3", **change) for change in [*changes, changes[0]]]
    assert torch.equal(together[0], together[-1])
    for latents, change in zip(together, changes, strict=False):
        assert torch.equal(latents, draw_parallel("sd3", change, **config)[0].latents)


def test_a_second_order_scheduler_runs_partitioned_and_says_so() -> None:
    drawn = simulated("sd15", HYBRID, {"num_inference_steps": 5}, scheduler="heun")
    expected = drawn_one_part_after_another("sd15", scheduler="heun", num_inference_steps=5)
    assert torch.equal(drawn.latents, expected)
    assert kinds(drawn) == "f" * 9
    (note,) = drawn.report["notes"]
    assert note.startswith("HeunDiscreteScheduler is of order 2: ")


@pytest.mark.parametrize("pictures", [1, 2])
def test_without_guidance(pictures: int) -> None:
    changes = {"guidance_scale": 1.0, "num_images_per_prompt": pictures}
    drawn = simulated("sd3", HYBRID, changes)
    assert torch.equal(drawn.latents, simulated("sd3", {"strategy": "cfg"}, changes).latents)
    assert kinds(drawn) == "f" * 10
    (note,) = drawn.report["notes"]
    assert note.startswith("guidance is off")


RULES: dict[str, tuple[dict[str, Any], str]] = {
    "guided": (HYBRID, "fffffssfsf"),  # what step 4 shows took four steps to come about: the gap may be 3 at once
    "fixed": ({"strategy": "hybrid", "switching": "fixed", "full_steps": "0-4,7-9"}, "fffffssfff"),
    "mixed": (HYBRID | {"between": "mixed", "cut": 1}, "fffffprfpf"),
    "published": (capped(10, 5, 3, cut=1), "ffffffpppf"),
    "published, the cap while guidance is off": (capped(10, 2, 3, cut=1), "fffffpppff"),
}


@pytest.mark.parametrize(
    ("name", "pictures", "rule"),
    [*(("sd3", 2, rule) for rule in RULES), ("sd15", 1, "guided"), ("sd15", 1, "published")],
)
def test_guidance_that_is_off_for_some_steps_of_the_warm_up(name: str, pictures: int, rule: str) -> None:
    """Until the first step of another kind nothing but full steps has taken place: as in `cfg`."""
    config, expected = RULES[rule]
    off = guidance_except(name, {1, 2, 3})

    def latents_by_step(config: dict[str, Any]) -> tuple[list[torch.Tensor], Drawn]:
        kept: list[torch.Tensor] = []

        def keep(pipe: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
            kept.append(tensors["latents"].clone())
            return off["callback_on_step_end"](pipe, step, timestep, tensors)  # type: ignore[no-any-return]

        changes = off | {"callback_on_step_end": keep, "num_images_per_prompt": pictures}
        return kept, simulated(name, config, changes)

    ours, drawn = latents_by_step(config)
    theirs, _ = latents_by_step({"strategy": "cfg"})
    assert kinds(drawn) == expected
    first = len(expected) - len(expected.lstrip("f"))
    assert all(torch.equal(one, other) for one, other in zip(ours[:first], theirs[:first], strict=True))
    assert not torch.equal(ours[first], theirs[first])
    assert torch.isfinite(drawn.latents).all()
    known = [step["index"] for step in drawn.report["steps"] if step["discrepancy"] is not None]
    assert not {1, 2, 3} & set(known)
    assert {0, 4} <= set(known)


@pytest.mark.parametrize("config", [{"strategy": "cfg"}, HYBRID], ids=["cfg", "hybrid"])
def test_guidance_that_begins_in_the_middle_is_refused(config: dict[str, Any]) -> None:
    def begin(pipe: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        pipe._guidance_scale = 5.0
        return tensors | {text: torch.cat([tensors[text]] * 2) for text in ("prompt_embeds", "pooled_prompt_embeds")}

    wanted = ["latents", "prompt_embeds", "pooled_prompt_embeds"]
    changes = {"guidance_scale": 1.0, "callback_on_step_end": begin, "callback_on_step_end_tensor_inputs": wanted}
    with pytest.raises(ValueError, match=r"step 1 evaluates 2 rows, more than .*: guidance may end"):
        simulated("sd3", config, changes)


@pytest.mark.parametrize(("last", "steps"), [(1, 4), (2, 4), (3, 7), (5, 7), (6, 10), (8, 10)])
def test_an_interrupt_takes_effect_with_the_next_full_step(last: int, steps: int) -> None:
    """Only then do ranks hear of it; a single device stops at once."""
    kept: list[torch.Tensor] = []

    def keep(pipe: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        kept.append(tensors["latents"].clone())
        return tensors

    simulated("sd3", HYBRID, {"callback_on_step_end": keep})
    stop = {"callback_on_step_end": callback_at(last, lambda pipe: setattr(pipe, "_interrupt", True))}
    drawn = simulated("sd3", HYBRID, stop)
    assert kinds(drawn) == SCHEDULE[:steps]
    assert torch.equal(drawn.latents, kept[steps - 1])
    assert kinds(simulated("sd3", HYBRID, stop, devices=1)) == SCHEDULE[: last + 1]


def test_skip_layer_guidance_has_its_extra_evaluation_in_skipped_steps_too() -> None:
    changes = {"skip_guidance_layers": [1], "skip_layer_guidance_start": 0.0, "skip_layer_guidance_stop": 0.9}
    drawn = simulated("sd3", HYBRID, changes)
    assert kinds(drawn) == SCHEDULE
    exact = drawn_one_part_after_another("sd3", **STEPS, **changes)
    without = simulated("sd3", HYBRID)
    assert relative_difference(drawn.latents, exact) < relative_difference(without.latents, exact)


def test_half_precision() -> None:
    drawn = simulated("sd3", HYBRID, dtype=torch.bfloat16)
    assert drawn.latents.dtype == torch.bfloat16
    assert relative_difference(drawn.latents.float(), simulated("sd3", HYBRID).latents) < 0.1


def test_a_trace_shows_what_each_step_did() -> None:
    def spans(between: str) -> dict[tuple[int, str], int]:
        config = HYBRID | {"between": between, "cut": 1, "trace": True, "simulate": True}
        with parallelize(build("sd3"), ParallelConfig(**config)) as parallel:
            draw(parallel, "sd3", **STEPS)
            assert parallel.report is not None
            stages = [(span.rank, span.name) for span in parallel.report.spans if span.category == "stage"]
        return {span: stages.count(span) for span in stages}

    whole = {(rank, "whole network, own branch"): 5 for rank in (0, 1)}
    assert spans("skipped") == whole | {(0, "forecast of both branches"): 5}
    assert spans("reuse") == whole | {(rank, "outer stage, own branch"): 5 for rank in (0, 1)}
