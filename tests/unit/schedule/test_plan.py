"""Whose word counts: the user's before the calibration's before the presets'."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import diffusers
import pytest

from hybridiff import ParallelConfig
from hybridiff.schedule.kinds import (
    FixedPolicy,
    GuidedPolicy,
    GuidedSettings,
    PublishedPolicy,
    PublishedSettings,
    StepKind,
)
from hybridiff.schedule.plan import Schedule, describe_settings, find_calibration, may_need_stages
from hybridiff.schedule.presets import general_tolerance
from support.calibrations import ENTRY, REUSE_ABOVE, calibration_file, entry_between


def pipeline(scheduler: type = diffusers.DDIMScheduler, name: str = "someone/a-model") -> Any:
    """As much of a pipeline as schedules look at."""
    return SimpleNamespace(unet=object(), scheduler=scheduler(), config={"_name_or_path": name})


def schedule(steps: int = 20, pipe: Any = None, **config: Any) -> Schedule:
    return Schedule(pipe or pipeline(), ParallelConfig(**{"strategy": "hybrid", **config}), steps)


def guided(of: Schedule) -> GuidedSettings:
    policy = of.policy([1.0] * of.steps)
    assert isinstance(policy, GuidedPolicy)
    return policy.settings


def published(of: Schedule) -> PublishedSettings:
    policy = of.policy([1.0] * of.steps)
    assert isinstance(policy, PublishedPolicy)
    return policy.settings


def full_steps(of: Schedule) -> list[int]:
    policy = of.policy([1.0] * of.steps)
    assert isinstance(policy, FixedPolicy)
    return [step for step in range(of.steps) if policy.kind(step) is StepKind.FULL]


def test_general_settings_without_a_calibration() -> None:
    plain = schedule(50)
    assert guided(plain) == GuidedSettings(tolerance=general_tolerance(0.5))
    assert (plain.between, plain.guidance, plain.forecast, plain.catch_up) == ("skipped", "carry", "hold", 1.0)


def test_the_calibration_beats_the_presets(tmp_path: Path) -> None:
    file = calibration_file(tmp_path, entry_between("reuse"))
    calibrated = schedule(**file)
    assert guided(calibrated).tolerance == pytest.approx(0.3)
    assert (calibrated.between, calibrated.forecast, calibrated.catch_up) == ("reuse", "linear", 0.75)
    assert guided(schedule(**file, quality="draft")).tolerance == 0.4
    assert guided(schedule(**file, quality=0.875)).tolerance == pytest.approx(0.1)
    assert published(schedule(**file, switching="published")) == PublishedSettings(4, 0.02, 6, 9)


def test_high_qualities_may_have_steps_of_another_kind(tmp_path: Path) -> None:
    file = calibration_file(tmp_path, replace(ENTRY, bands=(*ENTRY.bands, REUSE_ABOVE)))
    assert [schedule(**file, quality=quality).between for quality in (0.5, 0.79, 0.8, 0.95)] == [
        *["skipped"] * 2,
        *["reuse"] * 2,
    ]
    assert guided(schedule(**file, quality=0.875)).tolerance == pytest.approx(0.15)
    asked = schedule(**file, quality=0.875, between="skipped")
    assert (asked.between, guided(asked).tolerance) == ("skipped", pytest.approx(0.1)), "its own tolerances"
    asked = schedule(**file, quality=0.5, between="reuse")
    assert guided(asked).tolerance == pytest.approx(0.45)
    assert guided(schedule(**file, quality=0.5, between="mixed")).tolerance == pytest.approx(0.3), (
        "the nearest there is"
    )
    assert schedule(**file, quality="exact").between == "skipped", "nothing has to be prepared"
    needs = [
        may_need_stages(pipeline(), ParallelConfig(strategy="hybrid", quality=quality, **file))
        for quality in (0.5, 0.95, "exact")
    ]
    assert needs == [False, True, False]


def test_the_user_beats_the_calibration(tmp_path: Path) -> None:
    wishes = {"between": "skipped", "catch_up": 0.5, "tolerance": 0.7, "forecast": "quadratic", "settled": 0.1}
    asked = schedule(**calibration_file(tmp_path, entry_between("reuse")), **wishes)
    assert (asked.between, asked.forecast, asked.catch_up) == ("skipped", "quadratic", 0.5)
    assert guided(asked) == GuidedSettings(tolerance=0.7, settled=0.1, longest=2)
    asked = schedule(longest_interval=9, patience=1, tolerance=0.0)
    assert guided(asked) == GuidedSettings(tolerance=0.0, longest=9, patience=1)
    rule = {"switching": "published", "tau_cap": 7, "slope_threshold": 0.5}
    assert published(schedule(**calibration_file(tmp_path), **rule)) == PublishedSettings(4, 0.5, 6, 7)


def test_published_settings_of_a_calibration_are_scaled_from_its_own_number_of_steps(tmp_path: Path) -> None:
    settings = published(schedule(40, **calibration_file(tmp_path), switching="published"))
    assert settings == PublishedSettings(slope_window=8, slope_threshold=0.01, parallel_steps=12, tau_cap=18)


@pytest.mark.parametrize(("steps", "longest"), [(3, 2), (10, 2), (20, 2), (28, 3), (50, 6), (100, 12)])
def test_the_longest_gap_is_given_for_fifty_steps(steps: int, longest: int) -> None:
    assert guided(schedule(steps)).longest == longest


@pytest.mark.parametrize(
    ("config", "between", "guidance", "forecast"),
    [
        ({}, "skipped", "carry", "hold"),
        ({"between": "pipelined"}, "pipelined", "carry", "linear"),
        ({"between": "mixed", "parallel_guidance": "published"}, "mixed", "published", "linear"),
        ({"switching": "published"}, "pipelined", "published", "linear"),
        ({"switching": "published", "between": "skipped"}, "skipped", "published", "hold"),
        ({"switching": "fixed"}, "skipped", "carry", "hold"),
        ({"strategy": "reuse"}, "reuse", "carry", "linear"),
        ({"strategy": "reuse", "switching": "published"}, "reuse", "published", "linear"),
        ({"strategy": "reuse", "forecast": "hold"}, "reuse", "carry", "hold"),
    ],
    ids=lambda value: " ".join(value.values()) if isinstance(value, dict) else "",
)
def test_what_follows_from_what(config: dict[str, Any], between: str, guidance: str, forecast: str) -> None:
    given = schedule(**config)
    assert (given.between, given.guidance, given.forecast) == (between, guidance, forecast)


@pytest.mark.parametrize(
    ("config", "full"),
    [
        ({"full_steps": "0-2,5,9", "tau1": 4}, [0, 1, 2, 5, 9]),
        ({"tau1": 1, "tau2": 7, "full_interval": 3}, [0, 1, 4, 7, 8, 9]),
        ({}, [0, 1, 4, 7, 9]),  # of fifty steps the first five, the last five, and every third between
        ({"strategy": "reuse", "switching": None}, [0, 1, 4, 7, 9]),
    ],
)
def test_fixed_schedules(config: dict[str, Any], full: list[int]) -> None:
    assert full_steps(schedule(10, **{"switching": "fixed", **config})) == full


@pytest.mark.parametrize("steps", [1, 2, 3, 12])
@pytest.mark.parametrize("between", ["skipped", "mixed"])
def test_exact_has_full_steps_only(steps: int, between: str) -> None:
    for quality in ("exact", 1.0, "1"):
        assert full_steps(schedule(steps, quality=quality, between=between)) == list(range(steps))


@pytest.mark.parametrize("config", [{}, {"switching": "published"}, {"switching": "fixed"}, {"strategy": "reuse"}])
@pytest.mark.parametrize("steps", [1, 2])
def test_one_or_two_steps_are_full(config: dict[str, Any], steps: int) -> None:
    given = schedule(steps, **config)
    given.check()
    assert full_steps(given) == list(range(steps))


def test_one_or_two_steps_by_a_schedule_of_the_users_own() -> None:
    assert full_steps(schedule(2, switching="fixed", full_steps="0")) == [0]
    with pytest.raises(ValueError, match="lies beyond the last of 2 steps"):
        schedule(2, switching="published", tau_cap=1).check()


def test_a_scheduler_or_number_of_steps_that_was_not_calibrated_is_noted(tmp_path: Path) -> None:
    file = calibration_file(tmp_path)
    assert schedule(**file).notes() == []
    assert schedule(24, **file).notes() == [
        "calibrated for DDIMScheduler with 20 steps, the nearest to DDIMScheduler with 24"
    ]
    (note,) = schedule(20, pipeline(diffusers.EulerDiscreteScheduler), **file).notes()
    assert note == "calibrated for DDIMScheduler with 20 steps, the nearest to EulerDiscreteScheduler with 20"


def test_a_calibration_of_something_else_is_noted(tmp_path: Path) -> None:
    file = calibration_file(tmp_path)
    assert schedule(20, pipeline(name="/data/another"), **file).notes() == ["calibrated for a-model, this is another"]
    assert schedule(20, pipeline(name=f"/cache/snapshots/{'0123456789' * 4}"), **file).notes() == []
    pipe = pipeline()
    pipe._guidance_scale = 7.5
    assert schedule(20, pipe, **file).notes() == ["calibrated at guidance scale 5, this is 7.5"]
    assert schedule(20, between="mixed", **file).notes() == [
        "mixed steps were not calibrated: the tolerances of skipped steps hold"
    ]


def test_image_to_image_takes_the_thresholds_of_the_whole_way(tmp_path: Path) -> None:
    """Twelve steps of twenty are as far apart as the twenty."""
    file = calibration_file(tmp_path, replace(ENTRY, num_inference_steps=12, catch_up=0.1), ENTRY)
    part = Schedule(pipeline(), ParallelConfig(strategy="hybrid", **file), 12, grid=20)
    assert (part.catch_up, part.notes()) == (ENTRY.catch_up, [])
    assert guided(part).longest == guided(schedule(20, **file)).longest


@pytest.mark.parametrize(
    ("config", "notes"),
    [
        ({}, ["this model is not calibrated: general thresholds hold; hybridiff calibrate measures its own"]),
        ({"quality": "exact"}, ["quality exact: every step is a full one"]),
        ({"tolerance": 0.1}, []),
        ({"switching": "fixed"}, []),
        ({"switching": "published"}, []),
    ],
)
def test_notes_on_what_a_schedule_rests_on(config: dict[str, Any], notes: list[str]) -> None:
    assert schedule(**config).notes() == notes


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"switching": "fixed", "full_steps": "0-3,10"}, "full step 10 lies beyond the last of 10 steps"),
        ({"switching": "fixed", "full_steps": "1-3"}, "step 0 must be a full step"),
        ({"switching": "fixed", "tau1": 5, "tau2": 4}, "tau1 5 and tau2 4 must satisfy"),
        ({"switching": "fixed", "full_interval": 1}, "an interval of 1 leaves no step between full ones"),
        ({"switching": "published", "parallel_steps": 9}, "lies beyond the last of 10 steps"),
        ({"calibration": "/no/such/file.json"}, "cannot read the calibration /no/such/file.json"),
    ],
)
def test_what_is_refused_before_a_run(config: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        schedule(10, **config).check()


def test_whether_the_network_may_have_to_be_cut(tmp_path: Path) -> None:
    def needed(**config: Any) -> bool:
        return may_need_stages(pipeline(), ParallelConfig(**{"strategy": "hybrid", **config}))

    assert not needed()
    assert not needed(between="skipped")
    assert not needed(**calibration_file(tmp_path))
    assert needed(strategy="reuse")
    assert needed(switching="published")
    assert all(needed(between=name) for name in ("reuse", "pipelined", "mixed"))
    # Another scheduler may be put in later, for which the calibration has another entry.
    other = entry_between("reuse", scheduler="EulerDiscreteScheduler")
    assert needed(**calibration_file(tmp_path, ENTRY, other))
    assert not needed(**calibration_file(tmp_path, ENTRY, other), between="skipped")


def test_what_ranks_compare(tmp_path: Path) -> None:
    """Where the thresholds stand does not matter, only what they are."""
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    measured = replace(ENTRY, curves={"drift": [1.0]}, measured=[{"psnr": 30.0}])
    files = [
        calibration_file(tmp_path / "a"),
        calibration_file(tmp_path / "b", measured),
        calibration_file(tmp_path, replace(ENTRY, catch_up=0.5)),
        {},
    ]
    one, same, other, none = (
        describe_settings(pipeline(name=str(place)), ParallelConfig(strategy="hybrid", **file))
        for place, file in enumerate(files)
    )
    assert one == same
    assert len({one, other, none}) == 3
    sdxl, sd3 = (
        describe_settings(pipeline(name=name), ParallelConfig(strategy="hybrid", **files[0]))
        for name in ("sdxl", "sd3")
    )
    assert sdxl != sd3  # presets go by the model's name


def test_models_by_other_names_bring_no_calibration() -> None:
    for name in ("", "someone/a-model", "..", "tiny"):
        assert find_calibration(pipeline(name=name), None) is None


def test_a_higher_quality_never_has_a_larger_tolerance() -> None:
    tolerances = [guided(schedule(quality=number / 100)).tolerance for number in range(100)]
    assert all(lower >= higher > 0 for lower, higher in itertools.pairwise(tolerances))
