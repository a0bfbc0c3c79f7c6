"""The settings of every method, and what tells them apart."""

from __future__ import annotations

from pathlib import Path

import pytest

from hybridiff import ParallelConfig
from hybridiff.config import parse_steps
from hybridiff.errors import UsageError
from hybridiff.evaluation.frontier.grid import METHODS, NAMES, guided_models, list_settings
from hybridiff.evaluation.frontier.schedules import regular_schedule, steps_as_text, typical_schedule
from hybridiff.evaluation.frontier.settings import Setting, guided
from hybridiff.schedule.calibration import Calibration
from support.calibrations import ENTRY, calibration_file
from support.pipelines import build

EXACT = Setting("exact", "cfg", ParallelConfig("cfg"))


@pytest.mark.parametrize("steps", [6, 20, 28, 50])
def test_every_setting_of_every_method_is_legal(steps: int) -> None:
    pipe = build("sd3")
    settings = list_settings(NAMES, steps, pipe.scheduler)
    assert {setting.method for setting in settings} == {*METHODS, "solvers", "solvers-hybrid"}
    assert len({setting.name for setting in settings}) == len(settings)
    for setting in settings + guided_models():
        assert setting.describe(pipe, steps)["method"] == setting.method


def test_the_published_exchange_is_tried_at_every_start() -> None:
    settings = list_settings(["published"], 50)
    labels = [setting.label for setting in settings]
    assert labels[:2] == ["k 5, tau1 5", "k 5, tau1 10"]
    assert "k 10, tau1 35" in labels
    assert "k 10, tau1 40" not in labels, "it would end with the last step"
    assert not any(setting.is_adaptive for setting in settings)
    (rule,) = list_settings(["published-rule"], 50)
    assert rule.is_adaptive
    with pytest.raises(UsageError, match="unknown method 'magic'; choose one of exact"):
        list_settings(["magic"], 50)


def test_a_description_tells_settings_apart_by_the_thresholds_that_hold() -> None:
    pipe = build("sdxl")
    quality = Setting("quality", "0.5", ParallelConfig("hybrid", quality=0.5, simulate=True))
    described = quality.describe(pipe, 50)
    assert described["config"] == {"strategy": "hybrid", "quality": 0.5}
    assert described["thresholds"] == {"step_kind": "cached", "fidelity": 45.0, "longest": 6}
    assert EXACT.describe(pipe, 50)["thresholds"] == {}
    fixed = Setting("fixed", "some", ParallelConfig("hybrid", full_steps="0,5"))
    assert fixed.describe(pipe, 50)["thresholds"] == {"step_kind": "cached"}
    by_hand = {"step_kind": "cached", "tolerance": 0.1, "longest": 6}
    assert guided("cached", 0.1).describe(pipe, 50)["thresholds"] == by_hand
    with pytest.raises(UsageError, match="full step 5 lies beyond the last of 5 steps"):
        fixed.describe(pipe, 5)


def test_thresholds_of_the_published_rule_do_not_depend_on_what_ran_before() -> None:
    pipe, (rule,) = build("sdxl"), list_settings(["published-rule"], 50)
    before = rule.describe(pipe, 50)
    assert before["thresholds"] == {"slope_window": 12, "slope_threshold": 4e-4, "parallel_steps": 5, "tau_cap": 15}
    pipe.scheduler.set_timesteps(12)
    assert rule.describe(pipe, 50) == before


def test_a_calibration_serves_the_settings_that_take_one_and_have_none(tmp_path: Path) -> None:
    path = calibration_file(tmp_path)["calibration"]
    quality = Setting("quality", "0.5", ParallelConfig("hybrid", quality=0.5)).calibrated(path)
    assert isinstance(quality.config.calibration, Calibration)
    assert quality.config.calibration.entries == (ENTRY,)
    assert quality.describe(build("sdxl"), 20)["thresholds"]["tolerance"] == ENTRY.tolerance(0.5)
    assert EXACT.calibrated(path) == EXACT
    own = Setting("quality", "own", ParallelConfig("hybrid", calibration=Calibration("own", (ENTRY,))))
    assert own.calibrated(path) == own
    with pytest.raises(UsageError, match="cannot read the calibration"):
        guided("cached", 0.1).calibrated(str(tmp_path / "none.json"))


def test_the_typical_schedule_has_the_median_number_of_full_steps_and_is_nearest_to_the_others() -> None:
    assert typical_schedule(["ffccf", "fcfcf", "ffccf", "fffff", "fcccf"]) == [0, 1, 4]
    assert typical_schedule(["fcf", "fff"]) == [0, 2], "of an even number the lower middle one"


def test_steps_are_written_as_they_are_read() -> None:
    for steps in ([0], [0, 1, 2, 5, 7, 8], [0, 2, 4]):
        assert parse_steps(steps_as_text(steps)) == steps
    assert steps_as_text([0, 1, 2, 5, 7, 8]) == "0-2,5,7-8"
    assert regular_schedule(2, 7, 3, 10) == [0, 1, 2, 5, 8, 9]
