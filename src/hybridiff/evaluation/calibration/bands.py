"""From what tolerances gave to the thresholds of each quality: pure functions."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from ...config import PublishedSettings, quality_fidelity
from ...numerics.interpolation import interpolate
from ...schedule.calibration import Band, Entry

TARGETS = {quality: quality_fidelity(quality) for quality in (0.0, 0.25, 0.5, 0.75, 0.95)}
"""What qualities mean: mean PSNR in dB against the image of one device. Quality 1 is that image.

Where the tolerances that are tried do not reach as far, the outermost one holds.
"""

_FALLING = 0.9
"""A quality's tolerance is at most this share of the one below it."""


@dataclass(frozen=True)
class SweepPoint:
    """What one tolerance gave, as means over the prompts.

    Attributes:
        step_kind: Kind of the steps between full ones.
        tolerance: The tolerance.
        ideal_speedup: Against one device.
        psnr: In dB against the image of one device, each at most `metrics.MOST_DECIBELS`.
    """

    step_kind: str
    tolerance: float
    ideal_speedup: float
    psnr: float


Sweep = Sequence[SweepPoint]
"""What several tolerances gave, with steps of one kind."""


def choose_bands(sweeps: Mapping[str, Sweep]) -> tuple[Band, ...]:
    """For each quality in `TARGETS` the step kind that is fastest at its PSNR; bands meet half-way between qualities.

    Args:
        sweeps: One per step kind; of equally fast ones the first is taken.
    """
    lines = {kind: _speeds(sweep) for kind, sweep in sweeps.items()}
    bands: list[Band] = []
    before = 0.0
    for quality, target in TARGETS.items():
        # A kind whose fastest images are nearer than that counts with them.
        kind = max(lines, key=lambda kind: interpolate(lines[kind], target))
        if not bands or bands[-1].step_kind != kind:
            least = (before + quality) / 2 if bands else 0.0
            bands.append(Band(rounded(least), kind, invert(sweeps[kind])))
        before = quality
    return tuple(bands)


def invert(sweep: Sweep) -> tuple[tuple[float, float], ...]:
    """The tolerance of each quality: ((quality, tolerance), ...), strictly falling, 0 at quality 1.

    Args:
        sweep: What tolerances gave; between them the logarithm of the tolerance follows PSNR along straight lines.
    """
    # Of tolerances that are equally near the largest counts.
    points = sorted({point.psnr: math.log(point.tolerance) for point in _falling(sweep)}.items())
    found: list[tuple[float, float]] = []
    for quality, target in TARGETS.items():
        tolerance = math.exp(interpolate(points, target))
        if found:
            tolerance = min(tolerance, _FALLING * found[-1][1])
        found.append((quality, rounded(tolerance)))
    return (*found, (1.0, 0.0))


def fit_published(discrepancy: Sequence[float], preset: PublishedSettings) -> PublishedSettings:
    """The published rule's settings for a mean curve of the discrepancy.

    The cap is where the curve is lowest, and a slope counts as flat from the one at six tenths of the way there on.

    Args:
        discrepancy: One value per step.
        preset: Complete, for the curve's number of steps; its window and length are kept, and its threshold where the
            curve does not fall.
    """
    window, threshold, length, _ = preset.values
    latest = max(1, len(discrepancy) - 1 - length)
    lowest = min(range(len(discrepancy)), key=lambda step: discrepancy[step])
    cap = min(max(lowest, window), latest)
    # As the rule takes it, see published.rule.PublishedPolicy.
    slopes = [
        (discrepancy[step - window + 1] - discrepancy[step]) / window
        for step in range(max(window, round(0.6 * cap)), len(discrepancy))
    ]
    return replace(preset, tau_cap=cap, slope_threshold=rounded(next((s for s in slopes if s > 0), threshold)))


def expectations(entry: Entry) -> dict[float, SweepPoint]:
    """What each quality below 1 is expected to give, between the measured tolerances along straight lines."""
    return {quality: _expectation(entry, quality) for quality in sorted(TARGETS)}


def rounded(value: float) -> float:
    """To four digits, which keeps files small."""
    return float(f"{value:.4g}")


def _expectation(entry: Entry, quality: float) -> SweepPoint:
    kind, tolerance = entry.band(quality).step_kind, entry.tolerance(quality)
    points = _falling([SweepPoint(**point) for point in entry.measured if point["step_kind"] == kind])
    at, places = math.log(tolerance), [math.log(point.tolerance) for point in points]
    speedup = interpolate(list(zip(places, [point.ideal_speedup for point in points], strict=True)), at)
    psnr = interpolate(list(zip(places, [point.psnr for point in points], strict=True)), at)
    return SweepPoint(kind, tolerance, speedup, psnr)


def _speeds(sweep: Sweep) -> list[tuple[float, float]]:
    """The highest ideal speed-up at each PSNR that was reached, rising."""
    fastest: dict[float, float] = {}
    for point in _falling(sweep):
        fastest[point.psnr] = max(point.ideal_speedup, fastest.get(point.psnr, 0.0))
    return sorted(fastest.items())


def _falling(sweep: Sweep) -> list[SweepPoint]:
    """The points by rising tolerance, none with a higher PSNR than one before it."""
    least, falling = math.inf, []
    for point in sorted(sweep, key=lambda point: point.tolerance):
        least = min(least, point.psnr)
        falling.append(replace(point, psnr=least))
    return falling
