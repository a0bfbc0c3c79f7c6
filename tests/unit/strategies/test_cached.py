"""How `hybrid` behaves where it has cached steps, or reuse steps; all ranks played in this process."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers import PNDMScheduler

from hybridiff import ParallelConfig, UsageError, parallelize
from hybridiff.denoiser.stages import StagedDenoiser
from hybridiff.distributed.status import SLOT
from hybridiff.numerics.estimate import OSCILLATES, REACTION, ErrorEstimate, fading
from hybridiff.numerics.guidance import classifier_free
from hybridiff.numerics.hindsight import Hindsight
from hybridiff.numerics.reaction import Reaction
from hybridiff.numerics.sensitivity import Sensitivity
from hybridiff.schedule.kinds import StepKind
from hybridiff.schedule.promised import PromisedPolicy
from hybridiff.strategies.steps.cached import CachedStep
from support.jobs import Generated, generate_parallel
from support.oracles import differences, generated_one_part_after_another, relative_difference, state_of
from support.pipelines import build, denoiser_of, generate
from support.schedules import callback_at, capped, guidance_except, split_at

STEPS = {"num_inference_steps": 10}
HYBRID = {"strategy": "hybrid", "step_kind": "cached", "full_steps": "0-1,3,6,9"}
REUSE = HYBRID | {"step_kind": "reuse", "calibration": split_at("reuse", 1)}
OF_KIND: dict[str, dict[str, Any]] = {"cached": HYBRID, "reuse": REUSE}
SCHEDULE = "ffcfccfccf"
GUIDED = {"strategy": "hybrid", "tolerance": 1e9}
"""As far as the drift goes everything is tolerable."""
TWO = {"num_images_per_prompt": 2}


def simulated(name: str, config: dict[str, Any], changes: dict[str, Any] | None = None, **rest: Any) -> Generated:
    return generate_parallel(name, STEPS | (changes or {}), simulate=True, **config, **rest)[0]


@pytest.mark.parametrize("name", ["sd15", "sd3"])
def test_the_report_of_a_run(name: str) -> None:
    generated = simulated(name, HYBRID)
    report = generated.report
    assert generated.kinds == SCHEDULE
    assert (report["tau1"], report["tau2"]) == (1, 8)
    assert report["phases"] == {"warm-up": 2, "parallel": 7, "connect": 1}
    for step in report["steps"]:
        is_full = step["kind"] == "full"
        assert (step["discrepancy"] is not None) == is_full
        assert (step["drift"] is not None) == (is_full and step["index"] > 0)
        assert step["bytes_by_purpose"] == ({"prediction": 2 * 4096, "control": 2 * 4 * SLOT} if is_full else {})
    assert report["ideal_speedup"] == pytest.approx(20 / 5)
    assert report["stages"] == {}


@pytest.mark.parametrize("name", ["sd15", "sd3"])
def test_a_guided_run(name: str) -> None:
    generated = simulated(name, GUIDED, {"num_inference_steps": 25})
    schedule = generated.kinds
    assert set(schedule) == {"f", "c"}
    assert schedule[:2] == "ff"
    assert schedule[-1] == "f"
    assert "ccc" not in schedule, "of 25 steps at most every third is full"
    assert generated.report["notes"] == []


def test_notes() -> None:
    assert simulated("sd3", HYBRID).report["notes"] == []
    assert simulated("sd3", {"strategy": "hybrid"}).report["notes"] == [], "a promise needs no calibration"
    pipe = build("sd15", "ddim")
    pipe.scheduler.register_to_config(thresholding=True, sample_max_value=50.0)
    with parallelize(pipe, ParallelConfig(simulate=True, **HYBRID)) as parallel:
        generate(parallel, "sd15", **STEPS)
        assert parallel.report is not None
        (note,) = parallel.report.notes
    assert note.startswith("DDIMScheduler is not linear as it is configured (thresholding): nothing makes up for")


@pytest.mark.parametrize(
    ("name", "changes", "step_kind"),
    [
        ("sdxl two levels", TWO, "cached"),
        ("sd3", {}, "cached"),
        ("sd3", TWO, "reuse"),
        ("sd3", {}, None),
        ("sd15 img2img", {}, "reuse"),
    ],
)
def test_exact_is_cfg_bit_for_bit(name: str, changes: dict[str, Any], step_kind: str | None) -> None:
    exact = simulated(name, {"strategy": "hybrid", "quality": "exact", "step_kind": step_kind}, changes)
    assert torch.equal(exact.latents, generated_one_part_after_another(name, **STEPS, **changes))
    assert set(exact.kinds) == {"f"}
    assert exact.report["stages"] == {}
    assert exact.report["notes"] == ["quality exact: every step is a full one"]
    assert (exact.report["tau1"], exact.report["tau2"]) == (None, None)


@pytest.mark.parametrize("step_kind", OF_KIND)
@pytest.mark.parametrize(("name", "changes"), [("sdxl two levels", TWO), ("sd3", TWO)])
def test_other_numbers_of_ranks_generate_the_same_to_rounding(
    name: str, changes: dict[str, Any], step_kind: str
) -> None:
    """One device evaluates both branches as a batch; four ranks an image of a branch each."""
    generated = {ranks: simulated(name, OF_KIND[step_kind], changes, devices=ranks) for ranks in (1, 2, 4)}
    for ranks in (1, 4):
        assert generated[ranks].kinds == generated[2].kinds == SCHEDULE.replace("c", step_kind[0])
        assert relative_difference(generated[ranks].latents, generated[2].latents) < 1e-4
    speedups = [generated[ranks].report["ideal_speedup"] for ranks in (1, 2)]
    assert 1.0 < speedups[0] <= 2.0 < speedups[1]
    if step_kind == "cached":
        assert speedups == [2.0, 4.0]


@pytest.mark.parametrize("full", ["0-3,10", "1-3"])
def test_a_schedule_that_cannot_be_is_refused_before_any_network_runs(full: str) -> None:
    pipe = build("sd3")
    for module in (denoiser_of(pipe), pipe.text_encoder):
        module.register_forward_pre_hook(lambda *_: pytest.fail("a network ran"))
    config = ParallelConfig("hybrid", full_steps=full, simulate=True)
    with parallelize(pipe, config) as parallel, pytest.raises(UsageError, match=r"full.step"):
        generate(parallel, "sd3", **STEPS)


def test_a_run_that_turns_out_too_short_is_refused_at_its_first_step() -> None:
    """Image to image takes eight of ten steps, which shows late."""
    with parallelize(build("sd15 img2img"), ParallelConfig("hybrid", full_steps="0-3,9", simulate=True)) as parallel:
        with pytest.raises(UsageError, match=r"full step 9 lies beyond the last of 8 steps \(7\)"):
            generate(parallel, "sd15 img2img", **STEPS)
        assert generate(parallel, "sd15 img2img", num_inference_steps=13).isfinite().all()


@pytest.mark.parametrize(("full", "last"), [("0-10", 10), ("0-3,6,10", 10), ("0-11", None)])
def test_full_steps_of_pndm_are_counted_as_it_evaluates(full: str, last: int | None) -> None:
    """It evaluates the network once more than it is given steps."""
    pipe = build("sd15")
    pipe.scheduler = PNDMScheduler.from_config(pipe.scheduler.config, skip_prk_steps=True)
    with parallelize(pipe, ParallelConfig("hybrid", full_steps=full, simulate=True)) as parallel:
        if last is None:
            with pytest.raises(UsageError, match=r"full step 11 lies beyond the last of 11 steps \(10\)"):
                generate(parallel, "sd15", **STEPS)
        else:
            generate(parallel, "sd15", **STEPS)
            assert parallel.report is not None
            assert parallel.report.schedule[last:] == "f"


def test_what_a_pipeline_does_to_an_answer_changes_no_other_one() -> None:
    """Some add to predictions in place."""
    step = cached_step(None)
    prediction = torch.randn(2, 4, 8, 8)
    step.observe(0, prediction.clone())
    for number in (1, 2, 3):
        answer = step.run(None, number).prediction  # type: ignore[arg-type]
        assert torch.equal(answer, prediction)
        answer.mul_(2.0)


@pytest.mark.parametrize(("name", "step_kind"), [("sdxl", "cached"), ("sd15", "reuse"), ("sd3.5", "reuse")])
def test_detach_restores_the_stock_pipeline(name: str, step_kind: str) -> None:
    pipe = build(name)
    stock = generate(pipe, name)
    before = state_of(pipe)
    parallel = parallelize(pipe, ParallelConfig(simulate=True, **OF_KIND[step_kind]))
    generate(parallel, name, **STEPS)
    parallel.detach()
    changed = [entry for entry in differences(before, state_of(pipe)) if not entry.startswith(("pipe._", "scheduler."))]
    assert changed == []  # but for what any call of the stock pipeline changes
    assert torch.equal(generate(pipe, name), stock)


def test_a_network_that_is_not_split_is_not_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither is a split point that it does not have refused, nor is any layer measured."""
    monkeypatch.setattr(StagedDenoiser, "__init__", lambda *_: pytest.fail("looked at"))
    generated = simulated("sd3", HYBRID | {"calibration": split_at("reuse", 999)})
    assert torch.equal(generated.latents, simulated("sd3", HYBRID).latents)


def test_a_split_point_of_another_network_is_none() -> None:
    """A calibration of a larger one, say: counted work decides then."""
    generated = simulated("sd3", REUSE | {"calibration": split_at("reuse", 999)})
    chosen = simulated("sd3", HYBRID | {"step_kind": "reuse"})
    assert generated.report["stages"]["point"] == chosen.report["stages"]["point"]
    assert torch.equal(generated.latents, chosen.latents)


@pytest.mark.parametrize("step_kind", OF_KIND)
def test_one_run_leaves_nothing_for_the_next(step_kind: str) -> None:
    changes: list[dict[str, Any]] = [STEPS, {**STEPS, **TWO, "height": 24, "width": 48}, {"num_inference_steps": 11}]
    config = OF_KIND[step_kind] | {"simulate": True}
    with parallelize(build("sd3"), ParallelConfig(**config)) as parallel:
        together = [generate(parallel, "sd3", **change) for change in [*changes, changes[0]]]
    assert torch.equal(together[0], together[-1])
    for latents, change in zip(together, changes, strict=False):
        assert torch.equal(latents, generate_parallel("sd3", change, **config)[0].latents)


@pytest.mark.parametrize("full", ["0-1,3,5,7,9,11,13,15,17-18", "0-2,4,6,8,10,12,14,16,18"])
def test_a_second_order_scheduler_takes_part(full: str) -> None:
    """Held are the first evaluations of its steps, or the second ones, which try out where a step ends."""
    few = {"num_inference_steps": 10, "guidance_scale": 2.0}  # a random network pulls back less than more would say
    generated = simulated("sd15", {"strategy": "hybrid", "full_steps": full}, few, scheduler="heun")
    expected = generated_one_part_after_another("sd15", scheduler="heun", **few)
    assert generated.kinds.count("c") in (8, 9)
    assert generated.report["notes"] == []
    assert relative_difference(generated.latents, expected) < 0.005


def test_a_second_order_scheduler_whose_steps_are_all_full() -> None:
    few = {"num_inference_steps": 5}
    generated = simulated("sd15", {"strategy": "hybrid", "quality": "exact"}, few, scheduler="heun")
    assert torch.equal(generated.latents, generated_one_part_after_another("sd15", scheduler="heun", **few))
    assert generated.kinds == "f" * 9


@pytest.mark.parametrize("images", [1, 2])
def test_without_guidance(images: int) -> None:
    changes = {"guidance_scale": 1.0, "num_images_per_prompt": images}
    generated = simulated("sd3", HYBRID, changes)
    exact = simulated("sd3", {"strategy": "cfg"}, changes).latents
    assert 1e-4 < relative_difference(generated.latents, exact) < 0.2
    assert generated.kinds == "ffcfccfccf", "steps of the one branch are cached all the same"
    assert generated.report["ideal_speedup"] == pytest.approx(images * 10 / 5)
    (note,) = generated.report["notes"]
    assert note.startswith("guidance is off")


RULES: dict[str, tuple[dict[str, Any], str]] = {
    "guided": (GUIDED, "fffffcfcff"),
    "fixed": ({"strategy": "hybrid", "full_steps": "0-4,7-9"}, "fffffccfff"),
    "reuse": (REUSE | {"full_steps": "0-4,7-9"}, "fffffrrfff"),
    "published": (capped(10, 5, 3, split_point=1), "ffffffpppf"),
    "published, the cap while guidance is off": (capped(10, 2, 3, split_point=1), "fffffpppff"),
}


@pytest.mark.parametrize(
    ("name", "images", "rule"),
    [*(("sd3", 2, rule) for rule in RULES), ("sd15", 1, "guided"), ("sd15", 1, "published")],
)
def test_guidance_that_is_off_for_some_steps_of_the_warm_up(name: str, images: int, rule: str) -> None:
    """Until the first step of another kind nothing but full steps has taken place: as in `cfg`."""
    config, expected = RULES[rule]
    off = guidance_except(name, {1, 2, 3})

    def latents_by_step(config: dict[str, Any]) -> tuple[list[torch.Tensor], Generated]:
        kept: list[torch.Tensor] = []

        def keep(pipe: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
            kept.append(tensors["latents"].clone())
            return off["callback_on_step_end"](pipe, step, timestep, tensors)  # type: ignore[no-any-return]

        changes = off | {"callback_on_step_end": keep, "num_images_per_prompt": images}
        return kept, simulated(name, config, changes)

    ours, generated = latents_by_step(config)
    theirs, _ = latents_by_step({"strategy": "cfg"})
    assert generated.kinds == expected
    first = len(expected) - len(expected.lstrip("f"))
    assert all(torch.equal(one, other) for one, other in zip(ours[:first], theirs[:first], strict=True))
    assert not torch.equal(ours[first], theirs[first])
    assert torch.isfinite(generated.latents).all()
    known = [step["index"] for step in generated.report["steps"] if step["discrepancy"] is not None]
    assert not {1, 2, 3} & set(known)
    assert {0, 4} <= set(known)


@pytest.mark.parametrize(("last", "steps"), [(1, 4), (2, 4), (3, 7), (5, 7), (6, 10), (8, 10)])
def test_an_interrupt_takes_effect_with_the_next_full_step(last: int, steps: int) -> None:
    """Only then do ranks hear of it; a single device stops at once."""
    kept: list[torch.Tensor] = []

    def keep(pipe: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        kept.append(tensors["latents"].clone())
        return tensors

    simulated("sd3", HYBRID, {"callback_on_step_end": keep})
    stop = {"callback_on_step_end": callback_at(last, lambda pipe: setattr(pipe, "_interrupt", True))}
    generated = simulated("sd3", HYBRID, stop)
    assert generated.kinds == SCHEDULE[:steps]
    assert torch.equal(generated.latents, kept[steps - 1])
    assert simulated("sd3", HYBRID, stop, devices=1).kinds == SCHEDULE[: last + 1]


@pytest.mark.parametrize("step_kind", OF_KIND)
def test_half_precision(step_kind: str) -> None:
    generated = simulated("sd3", OF_KIND[step_kind], dtype=torch.bfloat16)
    assert generated.latents.dtype == torch.bfloat16
    assert relative_difference(generated.latents.float(), simulated("sd3", OF_KIND[step_kind]).latents) < 0.1


def test_a_trace_shows_what_each_step_did() -> None:
    def spans(step_kind: str) -> dict[tuple[int, str], int]:
        config = OF_KIND[step_kind] | {"trace": True, "simulate": True}
        with parallelize(build("sd3"), ParallelConfig(**config)) as parallel:
            generate(parallel, "sd3", **STEPS)
            assert parallel.report is not None
            stages = [(span.rank, span.name) for span in parallel.report.spans if span.category == "stage"]
        return {span: stages.count(span) for span in stages}

    whole = {(rank, "whole network, own branch"): 5 for rank in (0, 1)}
    assert spans("cached") == whole
    assert spans("reuse") == whole | {(rank, "outer stage, own branch"): 5 for rank in (0, 1)}


ON_SAMPLE = Sensitivity([1.0] * 12, [[0.5 + 0.1 * step for step in range(12)]] * 12)


def line(step: int, images: int) -> torch.Tensor:
    """Predictions that change evenly: those of the unconditional branch by 1 per step, of the conditional one by 3."""
    slopes = torch.tensor([1.0] * images + [3.0] * images).reshape(-1, 1, 1, 1)
    return slopes * step + torch.arange(4.0).reshape(1, 1, 2, 2)


def observed(full: list[int], images: int = 1, measures: bool = True) -> CachedStep:
    """An executor that has seen even changes, with cached steps between full ones."""
    executor = cached_step(ErrorEstimate(ON_SAMPLE, classifier_free(2.0)) if measures else None)
    for step in range(full[-1] + 1):
        if step in full:
            executor.observe(step, line(step, images))
        else:
            executor.run(None, step)  # type: ignore[arg-type]
    return executor


def cached_step(estimate: ErrorEstimate | None) -> CachedStep:
    hindsight = Hindsight(
        ON_SAMPLE, Reaction(classifier_free(1.0), 0, 12)
    )  # without guidance nothing pulls a sample back
    return CachedStep(None, hindsight, estimate=estimate)  # type: ignore[arg-type]


@pytest.mark.parametrize("images", [1, 3])
def test_what_a_full_step_measures_by_hand(images: int) -> None:
    """Guided by 2 predictions change by 5 per step; held for r steps they are 5 r off, and no degree errs on a line."""
    assert observed([0], images).measure() == (), "one full step shows no speed"
    speeds, errors, rounding = observed([0, 1, 2], images).measure()
    assert rounding.tolist() == [0.0] * images
    assert speeds.tolist() == pytest.approx([5.0] * images)
    assert errors.tolist() == [0.0] * images
    final = ON_SAMPLE.on_sample[-1]
    first = 5 * (final[3] + 2 * final[4]) * fading(5, 12)
    second = 5 * final[6] * fading(7, 12)
    speeds, errors, _ = observed([0, 1, 2, 5, 7], images).measure()
    assert speeds.tolist() == pytest.approx([5.0] * images)
    assert errors.tolist() == pytest.approx([REACTION * (first**2 + second**2) ** 0.5] * images, rel=1e-5)


def test_even_changes_cost_what_the_policy_expects_of_them() -> None:
    """Estimate and expectation are of one mind: nothing is to be learned."""
    executor, policy = cached_step(ErrorEstimate(ON_SAMPLE, classifier_free(2.0))), PromisedPolicy(20.0, ON_SAMPLE, 4)
    full = []
    for step in range(12):
        if policy.kind(step) is not StepKind.FULL:
            executor.run(None, step)  # type: ignore[arg-type]
            continue
        executor.observe(step, line(step, 1))
        policy.observe(step, 0.5, 0.1, [number for numbers in executor.measure() for number in numbers.tolist()])
        full.append(step)
    assert policy._factor == pytest.approx([1.0], rel=1e-4)
    assert 3 < len(full) < 12
    assert 0 < policy.estimated < 20


def test_where_nobody_asks_nothing_is_measured() -> None:
    executor = observed([0, 1, 2, 5], measures=False)
    assert (executor.measure(), executor.notes()) == ((), [])


@pytest.mark.parametrize(("turned", "notes"), [(-1.0, [OSCILLATES]), (1.0, [])])
def test_what_is_said_of_a_solver_that_is_not_stable(turned: float, notes: list[str]) -> None:
    executor, prediction = cached_step(ErrorEstimate(ON_SAMPLE, classifier_free(2.0))), torch.zeros(2, 1, 2, 2)
    for step in range(5):
        prediction = prediction + turned**step
        executor.observe(step, prediction)
    assert executor.notes() == notes


def test_measuring_changes_no_correction() -> None:
    asked, unasked = (observed([0, 1, 2, 5], measures=measures) for measures in (True, False))
    prediction = line(5, 1)
    corrected = asked.correct(prediction)
    assert torch.equal(corrected, unasked.correct(prediction))
    assert not torch.equal(corrected, prediction)
    assert torch.equal(asked.correct(prediction), prediction), "once only"


@pytest.mark.parametrize("images", [1, 2, 4])
def test_one_branch_alone_is_not_measured(images: int) -> None:
    """Where guidance ends while cached steps are pending; an even number of images is no pair of branches either."""
    executor = observed([0, 1, 2, 5], images)
    before = executor.measure()
    executor.run(None, 6)  # type: ignore[arg-type]
    for step in (7, 8, 9):
        executor.observe(step, line(step, images)[images:])
        assert executor.measure() is before
        executor.correct(line(step, images)[images:])


def test_guidance_that_comes_back_is_measured_from_where_it_left_off() -> None:
    executor = observed([0, 1])
    for step in (2, 3):
        executor.observe(step, line(step, 1)[1:])
    executor.observe(4, line(4, 1))
    speeds, errors, _ = executor.measure()
    assert (speeds.item(), errors.item()) == (pytest.approx(5.0), 0.0)
