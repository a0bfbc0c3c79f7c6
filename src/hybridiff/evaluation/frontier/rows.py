"""What one setting gave over all prompts."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ...report.speedup import evaluated_steps, mean_speedup
from ..metrics import counted_psnr, worst_tenth
from ..simulation import RunSummary
from ..tables import distinct
from .settings import Setting


@dataclass(frozen=True)
class ImageResult:
    """One image by one setting, beside the one-device image of the same prompt and seed.

    Attributes:
        psnr: In dB on float pixels, at most 100.
        ssim: See `metrics.structural_similarity`.
        is_right: Whether colours, position and background are the caption's; None for prompts that are no captions,
            and where hybridiff[eval] is not installed.
        run: How the run went.
        psnr_converged: As `psnr`, beside the converged image; None where there is none.
    """

    psnr: float
    ssim: float | None
    is_right: bool | None
    run: RunSummary
    psnr_converged: float | None = None


@dataclass(frozen=True)
class FrontierRow:
    """One setting over all prompts.

    Attributes:
        setting: Which.
        results: One per prompt.
    """

    setting: Setting
    results: list[ImageResult]

    @property
    def ideal_speedup(self) -> float:
        """Of all prompts, one after the other; NaN where it is not known."""
        return mean_speedup(result.run.ideal_speedup for result in self.results)

    def to_dict(self) -> dict[str, Any]:
        """What was measured as plain data, ready for JSON."""
        ssims = [result.ssim for result in self.results if result.ssim is not None]
        psnrs = [result.psnr for result in self.results]
        schedules = [result.run.schedule for result in self.results]
        found: dict[str, Any] = {
            "prompts": len(self.results),
            "ideal_speedup": None if math.isnan(self.ideal_speedup) else round(self.ideal_speedup, 4),
            **_mean_and_worst("psnr", psnrs),
            "psnr_pooled": round(pooled_psnr(psnrs), 3),
            "psnr_counted": round(counted_psnr(psnrs), 3),
            **_mean_and_worst("psnr_converged", [result.psnr_converged for result in self.results]),
            "ssim": round(statistics.mean(ssims), 5) if ssims else None,
            "right": share_right(result.is_right for result in self.results),
            "schedules": {schedule: schedules.count(schedule) for schedule in sorted(set(schedules))},
            "notes": distinct(result.run.notes for result in self.results),
        }
        if not set("".join(schedules)) & set("pr"):  # steps that evaluate a part of the network
            found["evaluations"] = round(mean_evaluations(found), 3)
        return found | (self._spread() if self.setting.is_adaptive else {}) | self._estimates()

    def _spread(self) -> dict[str, Any]:
        """How the schedules differ over the prompts."""
        full = [evaluated_steps(result.run.schedule) for result in self.results]
        middle = {"median": statistics.median(full), "deviation": round(statistics.pstdev(full), 3)}
        return {
            "full_steps": {"min": min(full), "max": max(full), **middle},
            "tau1": _range(result.run.tau1 for result in self.results),
            "tau2": _range(result.run.tau2 for result in self.results),
        }

    def _estimates(self) -> dict[str, Any]:
        """What promised runs estimated of themselves, in dB; how far off, where that is what PSNR measures."""
        known = [(result.run.estimated, result.psnr) for result in self.results if result.run.estimated is not None]
        if not known:
            return {}
        found = {"estimated": round(statistics.mean(estimated for estimated, _ in known), 3)}
        if self.setting.steps is not None or self.setting.scheduler is not None:
            return found
        return found | {"estimate_error": round(statistics.mean(abs(estimated - true) for estimated, true in known), 3)}


def mean_evaluations(row: Mapping[str, Any]) -> float:
    """Steps that evaluate the whole network, both branches, as a mean over the prompts of a row, however old.

    Args:
        row: As of `FrontierRow.to_dict`.
    """
    counts: dict[str, int] = row["schedules"]
    return sum(evaluated_steps(schedule) * count for schedule, count in counts.items()) / sum(counts.values())


def pooled_psnr(values: Sequence[float]) -> float:
    """The PSNR in dB of all images as one: of their mean squared error, which images without any cannot lift."""
    return -10 * math.log10(statistics.mean(10 ** (-value / 10) for value in values))


def share_right(verdicts: Iterable[bool | None]) -> float | None:
    """The share of captions whose image is right; None where there are none."""
    known = [verdict for verdict in verdicts if verdict is not None]
    return round(sum(known) / len(known), 4) if known else None


def upper_envelope(points: Iterable[tuple[float, float]]) -> list[tuple[float, float]]:
    """The points, (speed, fidelity), that no other one beats in both; from slow to fast."""
    best: list[tuple[float, float]] = []
    for speed, fidelity in sorted(points, reverse=True):
        if not best or fidelity > best[-1][1]:
            best.append((speed, fidelity))
    return best[::-1]


def _mean_and_worst(name: str, values: Iterable[float | None]) -> dict[str, float]:
    """Mean, and mean of the worst tenth, where they are known."""
    known = [value for value in values if value is not None]
    if not known:
        return {}
    return {name: round(statistics.mean(known), 3), f"{name}_worst_tenth": round(worst_tenth(known), 3)}


def _range(values: Iterable[int | None]) -> list[int] | None:
    known = [value for value in values if value is not None]
    return [min(known), max(known)] if known else None
