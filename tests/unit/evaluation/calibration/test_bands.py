"""Thresholds from measurements: pure functions on made-up sweeps."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest

from hybridiff.config import PublishedSettings
from hybridiff.evaluation.calibration.bands import (
    TARGETS,
    SweepPoint,
    choose_bands,
    fit_published,
    invert,
)
from hybridiff.strategies.published.rule import PublishedPolicy

PRESET = PublishedSettings(slope_window=3, slope_threshold=0.5, parallel_steps=2, tau_cap=9)


def swept(psnrs: list[float], speeds: list[float] | None = None, step_kind: str = "cached") -> list[SweepPoint]:
    """Points at tolerances 0.01, 0.02, 0.04 ..."""
    speeds = speeds or [2.0 + 0.5 * place for place in range(len(psnrs))]
    return [
        SweepPoint(step_kind, 0.01 * 2**place, speed, psnr)
        for place, (psnr, speed) in enumerate(zip(psnrs, speeds, strict=True))
    ]


def test_tolerances_are_read_off_the_sweep() -> None:
    found = dict(invert(swept([72.0, 58.0, 52.0, 49.0, 41.0, 25.0])))
    assert list(found) == [*sorted(TARGETS), 1.0]
    assert found[0.0] == pytest.approx(0.32, rel=1e-3)
    assert found[0.5] == pytest.approx(0.08 * math.sqrt(2), rel=1e-3), "45 dB lies half-way, on a logarithmic scale"
    assert found[0.75] == pytest.approx(0.02 * math.sqrt(2), rel=1e-3)
    assert found[1.0] == 0.0


@pytest.mark.parametrize(
    "psnrs",
    [[72.0, 66.0, 60.0], [40.0, 38.0, 20.0], [50.0, 50.0, 50.0], [72.0, 50.0, 55.0, 30.0], [72.0, 72.0, 72.0, 41.0]],
)
def test_tolerances_fall_with_quality_whatever_was_measured(psnrs: list[float]) -> None:
    tolerances = [tolerance for _, tolerance in invert(swept(psnrs))]
    assert all(lower > higher for lower, higher in pairwise(tolerances))
    assert 0.01 * 0.9**4 * 0.99 < tolerances[-2] <= tolerances[0] <= 0.01 * 2 ** (len(psnrs) - 1)


def test_out_of_reach_the_outermost_tolerance_holds() -> None:
    """Below what the fastest gives, and above what the nearest does; tolerances go on falling."""
    found = dict(invert(swept([60.0, 58.0, 50.0])))
    assert found[0.0] == 0.04, "the fastest that was tried"
    assert found[0.5] == pytest.approx(0.04 * 0.9**2, rel=1e-3)
    assert found[0.75] == pytest.approx(0.02 * 2 ** (3 / 8), rel=1e-3), "55 dB, between 58 and 50"
    assert found[0.95] == 0.01


def test_of_tolerances_that_are_equally_near_the_largest_counts() -> None:
    assert dict(invert(swept([60.0, 40.0, 40.0, 41.0])))[0.0] == 0.08


def test_each_quality_has_the_step_kind_that_is_fastest_at_its_fidelity() -> None:
    cached = swept([70.0, 60.0, 50.0, 40.0], [2.0, 4.0, 6.0, 8.0])
    slower = swept([70.0, 60.0, 50.0, 40.0], [2.0, 3.0, 4.0, 5.0], "reuse")
    (band,) = choose_bands({"cached": cached, "reuse": slower})
    assert (band.least, band.step_kind, band.tolerances) == (0.0, "cached", invert(cached))
    nearer = swept([72.0, 66.0, 50.0], [2.5, 4.0, 4.5], "reuse")
    low, high = choose_bands({"cached": cached, "reuse": nearer})
    assert (low.least, low.step_kind, low.tolerances) == (0.0, "cached", invert(cached))
    assert (high.least, high.step_kind, high.tolerances) == (0.85, "reuse", invert(nearer)), "63 dB at 0.95, not 55"


def test_of_equal_step_kinds_the_first_is_taken() -> None:
    same = swept([70.0, 50.0, 30.0])
    assert [band.step_kind for band in choose_bands({"cached": same, "reuse": same})] == ["cached"]
    apart = swept([30.0, 20.0], [2.0, 9.0])
    assert [band.step_kind for band in choose_bands({"cached": swept([70.0, 60.0]), "reuse": apart})], "no common PSNR"


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
