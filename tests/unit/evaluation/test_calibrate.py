"""Thresholds from measurements: pure functions on made-up ladders, and one small calibration."""

from __future__ import annotations

import math
from itertools import pairwise
from pathlib import Path

import pytest

from hybridiff.config import ParallelConfig
from hybridiff.evaluation.calibrate import (
    CATCH_UPS,
    TARGETS,
    TOLERANCES,
    Rung,
    calibrate,
    choose_bands,
    expectations,
    fit_published,
    format_expectations,
    invert,
    reachable_targets,
)
from hybridiff.evaluation.charts import calibration_figure
from hybridiff.pipeline import parallelize
from hybridiff.schedule.calibration import Calibration
from hybridiff.schedule.kinds import PublishedPolicy, PublishedSettings
from hybridiff.utils.prompts import Prompt
from support.pipelines import build

CALL = {"num_inference_steps": 6, "guidance_scale": 5.0, "height": 32, "width": 32, "max_sequence_length": 12}
PRESET = PublishedSettings(slope_window=3, slope_threshold=0.5, parallel_steps=2, tau_cap=9)


def ladder(psnrs: list[float], speeds: list[float] | None = None, between: str = "skipped") -> list[Rung]:
    """Rungs at tolerances 0.01, 0.02, 0.04 ..."""
    speeds = speeds or [2.0 + 0.5 * rung for rung in range(len(psnrs))]
    return [
        Rung(between, 1.0, 0.01 * 2**rung, speed, psnr)
        for rung, (psnr, speed) in enumerate(zip(psnrs, speeds, strict=True))
    ]


def inverted(rungs: list[Rung]) -> tuple[tuple[float, float], ...]:
    """The tolerances where there is one candidate."""
    return invert(rungs, reachable_targets([rungs]))


def test_tolerances_are_read_off_the_ladder() -> None:
    found = dict(inverted(ladder([72.0, 66.0, 58.0, 50.0, 38.0, 30.0])))
    assert list(found) == [*sorted(TARGETS), 1.0]
    assert found[0.0] == pytest.approx(0.16, rel=1e-3)
    assert found[0.5] == pytest.approx(0.04 * math.sqrt(2), rel=1e-3), "54 dB lies half-way, on a logarithmic scale"
    assert found[0.75] == pytest.approx(0.02 * math.sqrt(2), rel=1e-3)
    assert found[1.0] == 0.0


@pytest.mark.parametrize(
    "psnrs",
    [[72.0, 66.0, 60.0], [40.0, 38.0, 20.0], [50.0, 50.0, 50.0], [72.0, 50.0, 55.0, 30.0], [72.0, 72.0, 72.0, 41.0]],
)
def test_tolerances_fall_with_quality_whatever_was_measured(psnrs: list[float]) -> None:
    tolerances = [tolerance for _, tolerance in inverted(ladder(psnrs))]
    assert all(lower > higher for lower, higher in pairwise(tolerances))
    assert 0.01 * 0.9**4 * 0.99 < tolerances[-2] <= tolerances[0] <= 0.01 * 2 ** (len(psnrs) - 1)


def test_targets_out_of_reach_are_drawn_together() -> None:
    found = dict(inverted(ladder([72.0, 68.0, 52.0])))
    assert found[0.0] == 0.04, "the fastest that was tried"
    assert found[0.95] == 0.02
    assert 0.02 < found[0.75] < found[0.5] < found[0.25] < 0.04


def test_of_tolerances_that_are_equally_near_the_largest_counts() -> None:
    assert dict(inverted(ladder([60.0, 40.0, 40.0, 41.0])))[0.0] == 0.08


def test_each_quality_has_the_candidate_that_is_fastest_at_its_fidelity() -> None:
    skipped = ladder([70.0, 60.0, 50.0, 40.0], [2.0, 4.0, 6.0, 8.0])
    slower = ladder([70.0, 60.0, 50.0, 40.0], [2.0, 3.0, 4.0, 5.0], "reuse")
    (band,) = choose_bands({"skipped": skipped, "reuse": slower})
    assert (band.least, band.between, band.tolerances) == (0.0, "skipped", inverted(skipped))
    nearer = ladder([72.0, 66.0, 50.0], [2.5, 4.0, 4.5], "reuse")
    reached = reachable_targets([skipped, nearer])
    low, high = choose_bands({"skipped": skipped, "reuse": nearer})
    assert (low.least, low.between, low.tolerances) == (0.0, "skipped", invert(skipped, reached))
    assert (high.least, high.between, high.tolerances) == (0.625, "reuse", invert(nearer, reached)), (
        "62 dB at 0.75, not 54"
    )


def test_of_equal_candidates_the_first_is_taken() -> None:
    same = ladder([70.0, 50.0, 30.0])
    assert [band.between for band in choose_bands({"skipped": same, "reuse": same})] == ["skipped"]
    apart = ladder([30.0, 20.0], [2.0, 9.0])
    assert [band.between for band in choose_bands({"skipped": ladder([70.0, 60.0]), "reuse": apart})], "no common PSNR"


def test_the_published_rule_is_fitted_to_the_curve() -> None:
    curve = [9.0, 7.0, 5.0, 4.0, 3.2, 2.6, 2.2, 2.0, 1.9, 2.0, 2.2, 2.4, 2.6, 2.8]
    fitted = fit_published(curve, PRESET)
    assert fitted.tau_cap == 8
    assert fitted.slope_threshold == pytest.approx((curve[3] - curve[5]) / 3, rel=1e-3), "at 0.6 x 8"
    assert (fitted.slope_window, fitted.parallel_steps) == (3, 2)
    PublishedPolicy(fitted, len(curve))


@pytest.mark.parametrize(
    ("curve", "tau_cap"),
    [(sorted(range(14), reverse=True), 11), (sorted(range(14)), 3), ([1.0] * 14, 3)],
)
def test_the_published_rule_stays_legal_on_any_curve(curve: list[float], tau_cap: int) -> None:
    fitted = fit_published(curve, PRESET)
    assert fitted.tau_cap == tau_cap
    assert fitted.slope_threshold > 0
    PublishedPolicy(fitted, len(curve))


def test_a_calibration_is_measured_written_and_used(tmp_path: Path) -> None:
    pipe = build("sd3")
    told: list[tuple[str, int, int]] = []
    entry = calibrate(
        pipe, [Prompt("a ring"), Prompt("a cross")], CALL, ["skipped"], lambda *progress: told.append(progress)
    )
    pictures = 2 * (1 + len(CATCH_UPS) + len(TOLERANCES))
    assert told[0] == ("full steps", 1, pictures)
    assert told[-1] == ("skipped", pictures, pictures)
    assert (entry.scheduler, entry.num_inference_steps, entry.prompts) == ("FlowMatchEulerDiscreteScheduler", 6, 2)
    assert [band.between for band in entry.bands] == ["skipped"]
    assert entry.catch_up in CATCH_UPS
    assert [len(entry.curves[name]) for name in ("discrepancy", "discrepancy_deviation", "drift")] == [6, 6, 5]
    assert len(entry.measured) == len(TOLERANCES)
    assert [found.quality for found in expectations(entry)] == sorted(TARGETS)
    assert format_expectations(entry).splitlines()[-1].endswith("identical")
    assert len(calibration_figure("random", entry).axes) == 3
    path = tmp_path / "calibration.json"
    Calibration.open(path, "random").with_entry(entry).write(path)
    assert Calibration.open(path, "random").entries == (entry,)
    assert path.stat().st_size < 4000
    config = ParallelConfig(strategy="hybrid", simulate=True, calibration=str(path), quality=0.0)
    with parallelize(pipe, config) as parallel:
        parallel("a ring", output_type="latent", **CALL)
        assert parallel.report is not None
        assert not parallel.report.notes
    with pytest.raises(ValueError, match="holds the thresholds of random, not of tiny-sd3"):
        Calibration.open(path, "tiny-sd3")


def test_what_cannot_be_calibrated_is_refused() -> None:
    with pytest.raises(ValueError, match="HeunDiscreteScheduler is of order 2: all of its steps are full"):
        calibrate(build("sdxl", "heun"), [Prompt("a ring")], CALL)
    with pytest.raises(ValueError, match="unknown between 'magic'; choose some of skipped, reuse"):
        calibrate(build("sdxl"), [Prompt("a ring")], CALL, ["magic"])
