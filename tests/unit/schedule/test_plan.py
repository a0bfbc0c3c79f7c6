"""Plans of single calls: which steps are full, what the others are, and what the user is told of it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import diffusers
import pytest

from hybridiff import ParallelConfig, UsageError
from hybridiff.denoiser.adapters.unet import UNetAdapter
from hybridiff.numerics.sensitivity import Sensitivity, measure_sensitivity
from hybridiff.schedule.calibration import Calibration
from hybridiff.schedule.fixed import FixedPolicy
from hybridiff.schedule.guided import GuidedPolicy
from hybridiff.schedule.kinds import StepKind
from hybridiff.schedule.plan import RunPlan
from hybridiff.schedule.presets import ModelSettings
from hybridiff.schedule.promised import PromisedPolicy
from support.calibrations import ENTRY, REUSE_ABOVE, calibration_file, entry_with

BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "clip_sample": False}


def pipeline(scheduler: Any = None, name: str = "someone/a-model", grid: int = 20) -> Any:
    """As much of a pipeline as plans look at, its timesteps set."""
    scheduler = scheduler or diffusers.DDIMScheduler(**BETAS)
    scheduler.set_timesteps(grid)
    return SimpleNamespace(scheduler=scheduler, config={"_name_or_path": name})


def make(
    steps: int = 20,
    pipe: Any = None,
    first: int = 0,
    sensitivity: Sensitivity | None = None,
    guidance_scale: float | None = None,
    **config: Any,
) -> RunPlan:
    """The plan of a call that begins with one of the scheduler's timesteps."""
    pipe = pipe or pipeline(grid=steps)
    wishes = ParallelConfig(**{"strategy": "hybrid", **config})
    settings = ModelSettings.find(pipe, UNetAdapter(), wishes.calibration)
    measured = measure_sensitivity(pipe.scheduler, steps, float(pipe.scheduler.timesteps[first]))
    return RunPlan.make(wishes, settings, pipe, sensitivity or measured, guidance_scale)


def guided(plan: RunPlan) -> GuidedPolicy:
    assert isinstance(plan.policy, GuidedPolicy)
    return plan.policy


def full_steps(plan: RunPlan, steps: int) -> list[int]:
    assert isinstance(plan.policy, FixedPolicy)
    return [step for step in range(steps) if plan.policy.kind(step) is StepKind.FULL]


def test_without_a_calibration() -> None:
    """Qualities are promises."""
    for quality, fidelity in ((None, 45), ("draft", 35), ("balanced", 45), ("high", 55), (0.9, 61)):
        plan, explicit = make(50, quality=quality), make(50, fidelity=fidelity)
        assert (plan.step_kind, plan.fidelity) == (StepKind.CACHED, fidelity)
        assert promised(plan).bound == promised(explicit).bound
        assert promised(plan).longest == promised(explicit).longest
    by_hand = make(50, tolerance=0.1)
    assert (guided(by_hand).tolerance, guided(by_hand).longest, by_hand.fidelity) == (0.1, 6, None)
    reuse = make(50, step_kind="reuse")
    assert (guided(reuse).step_kind, guided(reuse).tolerance) == (StepKind.REUSE, 0.085)


def test_with_one(tmp_path: Path) -> None:
    plan = make(**calibration_file(tmp_path, entry_with("reuse")))
    assert (plan.step_kind, guided(plan).tolerance) == (StepKind.REUSE, pytest.approx(0.3))
    assert guided(plan).step_kind is StepKind.REUSE
    in_memory = make(calibration=Calibration("someone/a-model", (ENTRY,)))
    assert (in_memory.step_kind, guided(in_memory).tolerance) == (StepKind.CACHED, pytest.approx(0.3))


def test_the_sensitivity_is_that_of_the_scheduler() -> None:
    pipe = pipeline()
    plan = make(pipe=pipe)
    assert plan.sensitivity == measure_sensitivity(pipe.scheduler, 20)
    assert guided(make(pipe=pipe, tolerance=0.1))._weights == plan.sensitivity.weights


def test_what_ranks_agree_on_is_what_the_plan_rests_on() -> None:
    """Where their devices are heterogeneous they may measure another last bit."""
    leaders = Sensitivity([2.0, *[1.0] * 18, 0.0], [[1.0] * 20] * 20)
    plan = make(sensitivity=leaders, tolerance=0.1)
    assert plan.sensitivity is leaders
    assert guided(plan)._weights == leaders.weights


@pytest.mark.parametrize(
    ("config", "full"),
    [
        ({"full_steps": "0-2,5,9"}, [0, 1, 2, 5, 9]),
        ({"full_steps": "0"}, [0]),
        ({"full_steps": "0-2,5,9", "quality": "exact"}, [0, 1, 2, 5, 9]),
        ({"full_steps": "0-2,5,9", "step_kind": "reuse", "tolerance": 0.3}, [0, 1, 2, 5, 9]),
    ],
)
def test_fixed_schedules(config: dict[str, Any], full: list[int]) -> None:
    plan = make(10, **config)
    assert full_steps(plan, 10) == full
    kind = StepKind(config.get("step_kind", "cached"))
    assert plan.step_kind is kind
    assert {plan.policy.kind(step) for step in range(10) if step not in full} == {kind}


@pytest.mark.parametrize("steps", [1, 2, 3, 12])
@pytest.mark.parametrize("step_kind", ["cached", "reuse"])
@pytest.mark.parametrize("quality", ["exact", 1.0, "1"])
def test_exact_has_full_steps_only(steps: int, step_kind: str, quality: Any) -> None:
    plan = make(steps, quality=quality, step_kind=step_kind)
    assert full_steps(plan, steps) == list(range(steps))
    assert plan.step_kind is StepKind.FULL, "nothing has to be prepared for others"


@pytest.mark.parametrize("step_kind", ["cached", "reuse"])
def test_a_schedule_by_hand_may_have_full_steps_only(step_kind: str) -> None:
    plan = make(6, full_steps="0-5", step_kind=step_kind)
    assert (full_steps(plan, 6), plan.step_kind) == (list(range(6)), StepKind.FULL)


@pytest.mark.parametrize("config", [{}, {"step_kind": "reuse"}, {"tolerance": 9.0}])
@pytest.mark.parametrize("steps", [1, 2])
def test_one_or_two_steps_are_full(config: dict[str, Any], steps: int) -> None:
    assert full_steps(make(steps, **config), steps) == list(range(steps))


def test_one_or_two_steps_by_a_schedule_of_the_users_own() -> None:
    assert full_steps(make(2, full_steps="0"), 2) == [0]


@pytest.mark.parametrize(
    ("full", "message"),
    [
        ("0-3,10", "full step 10 lies beyond the last of 10 steps"),
        ("1-3", "full_steps must have step 0: nothing is known before it"),
    ],
)
def test_schedules_that_cannot_be(full: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        make(10, full_steps=full)


def test_second_order_schedulers_take_part() -> None:
    """Their steps are evaluations: two at most times, which lie hardly apart."""
    pipe = pipeline(diffusers.HeunDiscreteScheduler(beta_schedule="scaled_linear"), grid=25)
    steps = len(pipe.scheduler.timesteps)
    plan = make(steps, pipe)
    assert (steps, plan.step_kind, plan.notes) == (49, StepKind.CACHED, ())
    assert plan.sensitivity.places is not None
    assert plan.sensitivity.places[:5] == (0.0, 1.0, 1.25, 2.0, 2.25)
    assert promised(plan).longest == promised(make(50)).longest, "as many evaluations, as far apart"
    assert full_steps(make(steps, pipe, full_steps="0-3,5,48"), steps) == [0, 1, 2, 3, 5, 48]


def test_image_to_image_takes_the_thresholds_of_the_whole_way() -> None:
    """Twelve steps of twenty are as far apart as the twenty."""
    calibration = Calibration("someone/a-model", (replace(ENTRY, num_inference_steps=12, bands=(REUSE_ABOVE,)), ENTRY))
    part = make(12, pipeline(grid=20), first=8, calibration=calibration)
    whole = make(20, calibration=calibration)
    assert (part.step_kind, part.notes) == (StepKind.CACHED, ())
    assert guided(part).longest == guided(whole).longest
    assert part.sensitivity == measure_sensitivity(pipeline(grid=20).scheduler, 12)


def test_the_first_steps_of_a_way_alone() -> None:
    pipe = pipeline(grid=20)
    first = float(pipe.scheduler.timesteps[0])
    assert make(12, pipe).sensitivity == measure_sensitivity(pipe.scheduler, 12, first)
    assert make(12, pipe).sensitivity != measure_sensitivity(pipe.scheduler, 12)


GENERAL = "reuse steps of this model are not calibrated: general thresholds hold; use hybridiff calibrate"


@pytest.mark.parametrize(
    ("config", "notes"),
    [
        ({}, ()),
        ({"step_kind": "reuse"}, (GENERAL,)),
        ({"quality": "exact"}, ("quality exact: every step is a full one",)),
        ({"tolerance": 0.1}, ()),
        ({"full_steps": "0-4"}, ()),
        ({"full_steps": "0-4", "quality": "exact"}, ()),
    ],
)
def test_notes_on_what_a_plan_rests_on(config: dict[str, Any], notes: tuple[str, ...]) -> None:
    assert make(**config).notes == notes


def test_a_scheduler_or_number_of_steps_that_was_not_calibrated_is_noted(tmp_path: Path) -> None:
    file = calibration_file(tmp_path)
    assert make(**file).notes == ()
    assert make(24, **file).notes == (
        "calibrated for DDIMScheduler with 20 steps, the nearest to DDIMScheduler with 24",
    )
    (note,) = make(20, pipeline(diffusers.EulerDiscreteScheduler()), **file).notes
    assert note == "calibrated for DDIMScheduler with 20 steps, the nearest to EulerDiscreteScheduler with 20"


def test_a_calibration_of_something_else_is_noted(tmp_path: Path) -> None:
    file = calibration_file(tmp_path)
    assert make(20, pipeline(name="/data/another"), **file).notes == ("calibrated for a-model, this is another",)
    assert make(20, pipeline(name=""), **file).notes == ()
    assert make(20, pipeline(name=f"/cache/snapshots/{'0123456789' * 4}"), **file).notes == ()
    assert make(20, guidance_scale=7.5, **file).notes == ("calibrated at guidance scale 5, this is 7.5",)
    assert make(20, guidance_scale=5.0, **file).notes == ()
    sde = diffusers.DPMSolverMultistepScheduler(algorithm_type="sde-dpmsolver++")
    origin, noise = make(20, pipeline(sde), **file).notes
    assert origin.endswith("nearest to DPMSolverMultistepScheduler (algorithm_type=sde-dpmsolver++) with 20")
    assert noise.endswith("adds noise: with cached steps a few become others altogether")
    assert make(20, step_kind="reuse", **file).notes == (
        "reuse steps were not calibrated: the tolerances of cached steps hold",
    )
    two = calibration_file(tmp_path, replace(ENTRY, bands=(*ENTRY.bands, REUSE_ABOVE)))
    assert make(20, step_kind="reuse", **two).notes == ()


def promised(plan: RunPlan) -> PromisedPolicy:
    assert isinstance(plan.policy, PromisedPolicy)
    return plan.policy


@pytest.mark.parametrize("fidelity", [10, 47.5, 100])
def test_a_promise(fidelity: float) -> None:
    """It needs no calibration, and nothing is to be said about that."""
    plan = make(50, fidelity=fidelity)
    assert (plan.step_kind, plan.notes) == (StepKind.CACHED, ())
    assert promised(plan).step_kind is StepKind.CACHED
    assert promised(plan).bound == pytest.approx(10 ** (-fidelity / 20)), "a decoder of which nothing is known: 1"
    assert promised(plan).longest == guided(make(50, tolerance=0.1)).longest
    assert promised(plan)._final == [abs(value) for value in plan.sensitivity.on_sample[-1]]


@pytest.mark.parametrize("gain", [0.2, 0.37, 4.0])
def test_the_decoder_counts(gain: float) -> None:
    """One that makes much of errors leaves little room for them."""
    pipe = pipeline(grid=20)
    settings = replace(ModelSettings.find(pipe, UNetAdapter(), None), decoder_gain=gain)
    plan = RunPlan.make(ParallelConfig("hybrid", fidelity=40), settings, pipe, measure_sensitivity(pipe.scheduler, 20))
    assert promised(plan).bound == pytest.approx(0.01 / gain)


def test_a_promise_holds_whatever_was_calibrated(tmp_path: Path) -> None:
    """Promises are of cached steps."""
    plan = make(fidelity=50, **calibration_file(tmp_path, entry_with("reuse")))
    assert (plan.step_kind, plan.notes) == (StepKind.CACHED, ())
    assert isinstance(plan.policy, PromisedPolicy)


@pytest.mark.parametrize("steps", [1, 2])
def test_one_or_two_steps_keep_every_promise(steps: int) -> None:
    assert full_steps(make(steps, fidelity=10), steps) == list(range(steps))


@pytest.mark.parametrize("option", ["clip_sample", "thresholding"])
def test_a_promise_on_a_scheduler_that_is_not_linear(option: str) -> None:
    pipe = pipeline(diffusers.DDIMScheduler(**BETAS | {option: True}))
    plan = make(pipe=pipe, fidelity=30)
    assert (full_steps(plan, 20), plan.step_kind) == (list(range(20)), StepKind.FULL)
    (note,) = plan.notes
    assert note.startswith(f"DDIMScheduler is not linear as it is configured ({option}): errors cannot be told")


def test_a_promise_on_a_scheduler_of_second_order() -> None:
    pipe = pipeline(diffusers.HeunDiscreteScheduler(beta_schedule="scaled_linear"), grid=5)
    plan = make(len(pipe.scheduler.timesteps), pipe, fidelity=30)
    assert promised(plan)._final == plan.sensitivity.furthest
    assert promised(plan)._places == plan.sensitivity.places


def test_a_promise_on_a_scheduler_that_adds_noise() -> None:
    pipe = pipeline(diffusers.DDPMScheduler(**BETAS))
    (note,) = make(pipe=pipe, fidelity=30).notes
    assert note == ("DDPMScheduler adds noise: a promise holds for most images, but a few become others altogether")
    (note,) = make(pipe=pipe, tolerance=0.1).notes
    assert note == "DDPMScheduler adds noise: with cached steps a few become others altogether"
    assert make(pipe=pipe, quality="exact").notes == ("quality exact: every step is a full one",)


def test_a_promise_on_a_scheduler_that_is_barely_stable() -> None:
    pipe = pipeline(diffusers.LMSDiscreteScheduler(beta_schedule="scaled_linear"))
    plan = make(pipe=pipe, fidelity=30)
    assert full_steps(plan, 20) == list(range(20))
    (note,) = plan.notes
    assert note.startswith("LMSDiscreteScheduler amplifies what earlier predictions got wrong: errors cannot be told")
    (note,) = make(pipe=pipe, tolerance=0.1).notes
    assert note.endswith("got wrong: cached steps may leave more than they are known to")


def test_what_ranks_agree_on_is_what_a_promise_rests_on() -> None:
    leaders = Sensitivity([1.0] * 20, [[0.5] * 20] * 20)
    assert promised(make(fidelity=50, sensitivity=leaders))._final == [0.5] * 20


def test_a_scheduler_that_is_not_linear_cannot_make_up_for_errors() -> None:
    """Only cached steps have errors to make up for."""
    pipe = pipeline(diffusers.DDIMScheduler(**BETAS | {"clip_sample": True}))
    (note,) = make(pipe=pipe, tolerance=0.1).notes
    assert note == (
        "DDIMScheduler is not linear as it is configured (clip_sample): nothing makes up for the errors of cached steps"
    )
    assert make(pipe=pipe, tolerance=0.1, step_kind="reuse").notes == ()
    assert make(pipe=pipe, quality="exact").notes == ("quality exact: every step is a full one",)
    assert make(pipe=pipe, tolerance=0.1).sensitivity == Sensitivity.unknown(20)
