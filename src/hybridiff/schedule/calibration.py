"""Thresholds measured for a model, a scheduler and a number of steps: read from and written to a small file."""

from __future__ import annotations

import json
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ..config import BETWEEN
from ..utils.files import write_whole

FEWEST_PROMPTS = 16
"""Thresholds from fewer prompts follow the prompts more than the model."""


@dataclass(frozen=True)
class Band:
    """A range of qualities with steps of one kind between full ones.

    Attributes:
        least: The quality from which on it holds.
        between: What the steps between full ones are, a name of `config.BETWEEN`.
        tolerances: A tolerance each for some qualities, rising: ((quality, tolerance), ...).
    """

    least: float
    between: str
    tolerances: tuple[tuple[float, float], ...]


@dataclass(frozen=True)
class Entry:
    """What was measured for one scheduler and number of steps.

    Attributes:
        scheduler: Class of the scheduler.
        num_inference_steps: Number of denoising steps.
        guidance_scale: At which it was measured.
        prompts: From how many prompts.
        bands: What holds for which qualities, rising from 0.
        catch_up: Share of the skipped steps' errors to make up for.
        slope_window: Setting of the published rule (L).
        slope_threshold: Likewise (g).
        parallel_steps: Likewise (k).
        tau_cap: Likewise.
        curves: Mean and standard deviation of discrepancy (a value a step) and drift (from step 1 on), for people to
            look at.
        measured: What each tolerance that was tried gave, likewise.
    """

    scheduler: str
    num_inference_steps: int
    guidance_scale: float | None
    prompts: int
    bands: tuple[Band, ...]
    catch_up: float
    slope_window: int
    slope_threshold: float
    parallel_steps: int
    tau_cap: int
    curves: dict[str, list[float]] = field(default_factory=dict)
    measured: list[dict[str, Any]] = field(default_factory=list)

    def band(self, quality: float, between: str | None = None) -> Band:
        """What holds for a quality from 0 to 1; the band of another kind of steps where it is asked for and there."""
        asked = [band for band in self.bands if band.between == between]
        return (asked or [band for band in self.bands if band.least <= quality] or [self.bands[0]])[-1]

    def tolerance(self, quality: float, between: str | None = None) -> float:
        """The tolerance of a quality in its `band`, between those that were measured along a straight line."""
        return interpolate(self.band(quality, between).tolerances, quality)


@dataclass(frozen=True)
class Calibration:
    """The entries of one file.

    Attributes:
        model: What was calibrated.
        entries: One a scheduler and number of steps.
        splits: Index of the cut by purpose, `pipelined` or `reuse`, where measured times know better than counted work.
    """

    model: str
    entries: tuple[Entry, ...]
    splits: dict[str, int] = field(default_factory=dict)

    @classmethod
    def read(cls, path: Path) -> Calibration:
        """Read a file.

        Raises:
            ValueError: it cannot be read, or is no calibration; names it.
        """
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            entries = [
                Entry(**{**entry, "bands": tuple(_band(**band) for band in entry["bands"])})
                for entry in content["entries"]
            ]
            bands = [band for entry in entries for band in entry.bands]
            if not all(entry.bands for entry in entries) or not all(band.tolerances for band in bands) or not bands:
                raise ValueError("it holds no thresholds")
            unknown = {band.between for band in bands} - set(BETWEEN)
            if unknown:
                raise ValueError(f"unknown steps between full ones: {', '.join(sorted(unknown))}")
            return cls(content["model"], tuple(entries), _splits(content.get("splits", {})))
        except OSError as error:
            raise ValueError(f"cannot read the calibration {path}: {error.strerror}") from error
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{path} is no calibration ({error}); write one with: hybridiff calibrate") from error

    @classmethod
    def open(cls, path: Path, model: str) -> Calibration:
        """The calibration of a model in a file, to be added to; an empty one where there is no file.

        Raises:
            ValueError: the file is no calibration, or that of another model.
        """
        if not path.exists():
            return cls(model, ())
        found = cls.read(path)
        if found.model != model:
            raise ValueError(f"{path} holds the thresholds of {found.model}, not of {model}; give another --output")
        return found

    def write(self, path: Path) -> None:
        """Write the file that `read` reads; never half of it."""
        content = {"model": self.model, "splits": self.splits, "entries": [asdict(entry) for entry in self.entries]}
        write_whole(path, json.dumps(content) + "\n")

    def with_entry(self, entry: Entry) -> Calibration:
        """With an entry added, in the place of one for the same scheduler and number of steps."""
        kept = [old for old in self.entries if _key(old) != _key(entry)]
        return Calibration(self.model, tuple(sorted([*kept, entry], key=_key)), self.splits)

    def nearest(self, scheduler: str, steps: int) -> Entry:
        """The entry for a scheduler and number of steps, or the one that is nearest to them."""
        return min(
            self.entries,
            key=lambda entry: (entry.scheduler != scheduler, abs(entry.num_inference_steps - steps)),
        )


def _splits(splits: dict[str, int]) -> dict[str, int]:
    for purpose, index in splits.items():
        if purpose not in ("pipelined", "reuse") or type(index) is not int or index < 0:
            raise ValueError(f"a split is the index of a cut for pipelined or reuse steps, not {purpose}: {index!r}")
    return dict(splits)


def _band(least: float, between: str, tolerances: Sequence[Sequence[float]]) -> Band:
    return Band(float(least), between, tuple((float(quality), float(tolerance)) for quality, tolerance in tolerances))


def interpolate(points: Sequence[tuple[float, float]], position: float) -> float:
    """The value at a position along straight lines through points in rising order; beyond them the outermost one."""
    places = [place for place, _ in points]
    after = bisect_left(places, position)
    if after == 0:
        return points[0][1]
    if after == len(points):
        return points[-1][1]
    (left, low), (right, high) = points[after - 1], points[after]
    return low + (high - low) * (position - left) / (right - left)


def _key(entry: Entry) -> tuple[str, int]:
    return entry.scheduler, entry.num_inference_steps
