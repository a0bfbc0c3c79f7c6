"""Measure the thresholds of a model for one scheduler and number of steps, on one device."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from ..config import BETWEEN, ParallelConfig
from ..pipeline import parallelize
from ..schedule.calibration import Band, Entry, interpolate
from ..schedule.kinds import PublishedSettings
from ..schedule.presets import published_settings
from ..utils.prompts import Prompt
from .frontier import Cuts, FrontierRow, Reference, Setting, draw_references, seeded, simulate

TARGETS = {0.0: 38.0, 0.25: 46.0, 0.5: 54.0, 0.75: 62.0, 0.95: 68.0}
"""What a quality means: mean PSNR in dB against the picture of one device. Quality 1 is that picture.

Where the tolerances that are tried do not reach as far, the targets are drawn together to what they reach.
"""

TOLERANCES = tuple(float(f"{0.012 * (0.4 / 0.012) ** (rung / 6):.3g}") for rung in range(7))
"""The ladder of tolerances that are tried."""

MOST_DECIBELS = 72.0
"""A picture counts for no more: nearer ones look the same, and exact ones would outweigh all others in a mean."""

CATCH_UPS = (0.0, 0.5, 0.75, 1.0)
CATCH_UP_TOLERANCE = 0.1
"""At which the shares to catch up are compared: skipped steps are common there, and pictures still near."""

CANDIDATES = ("skipped", "reuse")

_FALLING = 0.9
"""A quality's tolerance is at most this share of the one below it."""


@dataclass(frozen=True)
class Rung:
    """What one tolerance gave, as means over the prompts.

    Attributes:
        between: What the steps between full ones were.
        catch_up: Share of skipped steps' errors that was made up for.
        tolerance: The tolerance.
        ideal_speedup: Against one device.
        psnr: In dB against the picture of one device, each at most `MOST_DECIBELS`.
    """

    between: str
    catch_up: float
    tolerance: float
    ideal_speedup: float
    psnr: float


def calibrate(
    pipe: Any,
    prompts: Sequence[Prompt],
    call: dict[str, Any],
    candidates: Sequence[str] = CANDIDATES,
    on_progress: Callable[[str, int, int], None] = lambda what, done, total: None,
) -> Entry:
    """Measure a model's thresholds with its scheduler.

    Args:
        pipe: A stock pipeline.
        prompts: What is drawn; at least `calibration.FEWEST_PROMPTS` for thresholds to rely on.
        call: Further arguments of the pipeline, with the number of steps and the guidance scale.
        candidates: What the steps between full ones may be, names of `config.BETWEEN`; the fastest is chosen for each
            quality.
        on_progress: Is told after every picture what is drawn, how many are, and of how many.

    Raises:
        ValueError: the scheduler leaves nothing to calibrate, or a candidate is unknown.
    """
    check_candidates(candidates)
    check_order(pipe.scheduler)
    work = _Work(pipe, prompts, call, on_progress)
    work.count(passes=1 + len(CATCH_UPS) * ("skipped" in candidates) + len(TOLERANCES) * len(candidates))
    references, curves = work.draw_full()
    catch_up = work.best_catch_up(references) if "skipped" in candidates else 1.0
    ladders = {between: work.climb(references, between, catch_up) for between in candidates}
    published = fit_published(curves["discrepancy"], published_settings(pipe).scaled(work.steps))
    return Entry(
        scheduler=type(pipe.scheduler).__name__,
        num_inference_steps=work.steps,
        guidance_scale=call.get("guidance_scale"),
        prompts=len(prompts),
        bands=choose_bands(ladders),
        catch_up=catch_up,
        **asdict(published),
        curves={name: [_rounded(value) for value in curve] for name, curve in curves.items()},
        measured=[
            {name: value if isinstance(value, str) else _rounded(value) for name, value in asdict(rung).items()}
            for ladder in ladders.values()
            for rung in ladder
        ],
    )


def check_candidates(candidates: Sequence[str]) -> None:
    """Refuse unknown kinds of steps between full ones.

    Raises:
        ValueError: with the names that would do.
    """
    for between in candidates:
        if between not in BETWEEN:
            raise ValueError(f"unknown between {between!r}; choose some of {', '.join(BETWEEN)}")


def check_order(scheduler: Any) -> None:
    """Refuse schedulers whose steps are all full.

    Raises:
        ValueError: with the scheduler's order.
    """
    order = getattr(scheduler, "order", 1)
    if order > 1:
        raise ValueError(
            f"{type(scheduler).__name__} is of order {order}: all of its steps are full, nothing is to be calibrated"
        )


class _Work:
    """The pictures of one calibration."""

    def __init__(self, pipe: Any, prompts: Sequence[Prompt], call: dict[str, Any], on_progress: Any) -> None:
        self._pipe, self._prompts, self._call = pipe, seeded(prompts), call
        self._on_progress = on_progress
        self._done = self._total = 0
        self._cuts: Cuts | None = None
        self.steps = int(call["num_inference_steps"])

    def count(self, passes: int) -> None:
        self._total = passes * len(self._prompts)

    def draw_full(self) -> tuple[list[Reference], dict[str, list[float]]]:
        """The pictures of full steps, those of one device bit for bit, and what full steps saw."""
        references, discrepancies, drifts = [], [], []
        with parallelize(self._pipe, _guided("skipped", 0.0).config) as parallel:
            for reference in draw_references(parallel, self._prompts, self._call):
                assert parallel.report is not None
                references.append(reference)
                discrepancies.append([step.discrepancy or 0.0 for step in parallel.report.steps])
                drifts.append([step.drift or 0.0 for step in parallel.report.steps[1:]])
                self._tell("full steps")
        return references, _statistics("discrepancy", discrepancies) | _statistics("drift", drifts)

    def best_catch_up(self, references: Sequence[Reference]) -> float:
        """The share to catch up that brings pictures nearest; of equal ones the largest."""
        rungs = self._measure(
            references, [_guided("skipped", CATCH_UP_TOLERANCE, catch_up) for catch_up in CATCH_UPS], "catch-up"
        )
        return max(rungs, key=lambda rung: (rung.psnr, rung.catch_up)).catch_up

    def climb(self, references: Sequence[Reference], between: str, catch_up: float) -> list[Rung]:
        """All tolerances, rising."""
        return self._measure(references, [_guided(between, rung, catch_up) for rung in TOLERANCES], between)

    def _measure(self, references: Sequence[Reference], settings: Sequence[Setting], what: str) -> list[Rung]:
        self._cuts = self._cuts or Cuts.measure(self._pipe, self._call)
        rows = simulate(self._pipe, references, settings, self._call, self._cuts, lambda setting: self._tell(what))
        return [_rung(row) for row in rows]

    def _tell(self, what: str) -> None:
        self._done += 1
        self._on_progress(what, self._done, self._total)


def _guided(between: str, tolerance: float, catch_up: float | None = None) -> Setting:
    config = ParallelConfig(strategy="hybrid", simulate=True, between=between, tolerance=tolerance, catch_up=catch_up)
    return Setting(between, f"tolerance {tolerance:g}", config)


def _rung(row: FrontierRow) -> Rung:
    config = row.setting.config
    assert config.between is not None
    assert config.catch_up is not None
    assert config.tolerance is not None
    psnr = statistics.mean(min(drawing.psnr, MOST_DECIBELS) for drawing in row.drawings)
    return Rung(config.between, config.catch_up, config.tolerance, row.ideal_speedup, psnr)


def _statistics(name: str, curves: Sequence[Sequence[float]]) -> dict[str, list[float]]:
    """Mean and standard deviation over the prompts, a value a step."""
    steps = list(zip(*curves, strict=True))
    return {
        name: [statistics.mean(values) for values in steps],
        f"{name}_deviation": [statistics.pstdev(values) for values in steps],
    }


def choose_bands(ladders: dict[str, list[Rung]]) -> tuple[Band, ...]:
    """For each quality in `TARGETS` the candidate that is fastest at its PSNR; bands meet half-way between qualities.

    Args:
        ladders: The rungs of each candidate; of equally fast candidates the first is taken.
    """
    targets = reachable_targets(ladders.values())
    lines = {name: _speeds(ladder) for name, ladder in ladders.items()}
    bands: list[Band] = []
    before = 0.0
    for quality, target in targets.items():
        # A candidate whose fastest pictures are nearer than that counts with them.
        between = max(lines, key=lambda name: interpolate(lines[name], target))
        if not bands or bands[-1].between != between:
            least = (before + quality) / 2 if bands else 0.0
            bands.append(Band(_rounded(least), between, invert(ladders[between], targets)))
        before = quality
    return tuple(bands)


def _speeds(ladder: Sequence[Rung]) -> list[tuple[float, float]]:
    """The highest ideal speed-up at each PSNR that was reached, rising."""
    fastest: dict[float, float] = {}
    for rung in _falling(ladder):
        fastest[rung.psnr] = max(rung.ideal_speedup, fastest.get(rung.psnr, 0.0))
    return sorted(fastest.items())


def reachable_targets(ladders: Iterable[Sequence[Rung]]) -> dict[float, float]:
    """`TARGETS` by rising quality, drawn together to the PSNRs that some candidate reaches."""
    reached = [rung.psnr for ladder in ladders for rung in _falling(ladder)]
    lowest, highest = TARGETS[min(TARGETS)], TARGETS[max(TARGETS)]
    low, high = max(lowest, min(reached)), min(highest, max(reached))
    drawn_together = (high - low) / (highest - lowest)
    return {quality: low + (TARGETS[quality] - lowest) * drawn_together for quality in sorted(TARGETS)}


def invert(ladder: Sequence[Rung], targets: dict[float, float]) -> tuple[tuple[float, float], ...]:
    """The tolerance of each quality: ((quality, tolerance), ...), strictly falling, 0 at quality 1.

    Args:
        ladder: What tolerances gave; between them the logarithm of the tolerance follows PSNR along straight lines.
        targets: PSNR in dB of each quality, by rising quality.
    """
    # Of tolerances that are equally near the largest counts.
    points = sorted({rung.psnr: math.log(rung.tolerance) for rung in _falling(ladder)}.items())
    found: list[tuple[float, float]] = []
    for quality, target in targets.items():
        tolerance = math.exp(interpolate(points, target))
        if found:
            tolerance = min(tolerance, _FALLING * found[-1][1])
        found.append((quality, _rounded(tolerance)))
    return (*found, (1.0, 0.0))


def _falling(ladder: Sequence[Rung]) -> list[Rung]:
    """The rungs by rising tolerance, none with a higher PSNR than one before it."""
    rungs = sorted(ladder, key=lambda rung: rung.tolerance)
    least = math.inf
    falling = []
    for rung in rungs:
        least = min(least, rung.psnr)
        falling.append(replace(rung, psnr=least))
    return falling


def fit_published(discrepancy: Sequence[float], preset: PublishedSettings) -> PublishedSettings:
    """The published rule's settings for a mean curve of the discrepancy.

    The cap is where the curve is lowest, and a slope counts as flat from the one at six tenths of the way there on.

    Args:
        discrepancy: A value a step.
        preset: For the curve's number of steps; its window and length are kept, and its threshold where the curve does
            not fall.
    """
    window = preset.slope_window
    latest = max(1, len(discrepancy) - 1 - preset.parallel_steps)
    lowest = min(range(len(discrepancy)), key=lambda step: discrepancy[step])
    tau_cap = min(max(lowest, window), latest)
    # As the rule takes it, see switching.PublishedPolicy.
    slopes = [
        (discrepancy[step - window + 1] - discrepancy[step]) / window
        for step in range(max(window, round(0.6 * tau_cap)), len(discrepancy))
    ]
    threshold = next((slope for slope in slopes if slope > 0), preset.slope_threshold)
    return replace(preset, tau_cap=tau_cap, slope_threshold=_rounded(threshold))


@dataclass(frozen=True)
class Expectation:
    """What a quality is expected to give, from what was measured.

    Attributes:
        quality: From 0 to 1.
        between: What its steps between full ones are.
        tolerance: Its tolerance.
        ideal_speedup: Against one device.
        psnr: In dB.
    """

    quality: float
    between: str
    tolerance: float
    ideal_speedup: float
    psnr: float


def expectations(entry: Entry) -> list[Expectation]:
    """What each quality below 1 is expected to give, between the measured tolerances along straight lines."""
    return [_expectation(entry, quality) for quality in sorted(TARGETS)]


def _expectation(entry: Entry, quality: float) -> Expectation:
    between, tolerance = entry.band(quality).between, entry.tolerance(quality)
    rungs = _falling([Rung(**rung) for rung in entry.measured if rung["between"] == between])
    speeds = [(math.log(rung.tolerance), rung.ideal_speedup) for rung in rungs]
    psnrs = [(math.log(rung.tolerance), rung.psnr) for rung in rungs]
    at = math.log(tolerance)
    return Expectation(quality, between, tolerance, interpolate(speeds, at), interpolate(psnrs, at))


def format_expectations(entry: Entry) -> str:
    """The calibrated qualities as text with aligned columns."""
    lines = [("quality", "between", "tolerance", "ideal speed-up", "PSNR against one device")]
    lines += [
        (
            f"{found.quality:g}",
            found.between,
            f"{found.tolerance:.3g}",
            f"{found.ideal_speedup:.2f}x",
            f"{found.psnr:.1f} dB",
        )
        for found in expectations(entry)
    ]
    lines.append(("1", "-", "0", "2.00x", "identical"))
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join("  ".join(map(str.rjust, line, widths)) for line in lines)


def _rounded(value: float) -> float:
    """To four digits, which keeps files small."""
    return float(f"{value:.4g}")
