"""Thresholds measured for a model, a scheduler and a number of steps: read from and written to a small file."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from ..config import STEP_KINDS, PublishedSettings
from ..errors import UsageError
from ..numerics.interpolation import interpolate
from ..utils.checked import check_limits
from ..utils.files import write_whole
from .kinds import StepKind

FEWEST_PROMPTS = 16
"""Thresholds from fewer prompts follow the prompts more than the model."""


@dataclass(frozen=True)
class Band:
    """A range of qualities with steps of one kind between full ones.

    Attributes:
        least: The quality from which on it holds.
        step_kind: Kind of the steps between full ones, a name of `config.STEP_KINDS`.
        tolerances: A tolerance each for some qualities, rising: ((quality, tolerance), ...).
    """

    least: float
    step_kind: str
    tolerances: tuple[tuple[float, float], ...]

    @classmethod
    def parse(cls, content: dict[str, Any]) -> Band:
        """The band that a file holds; ValueError, KeyError or TypeError where it is none."""
        pairs = tuple((float(quality), float(tolerance)) for quality, tolerance in content["tolerances"])
        if not pairs or content["step_kind"] not in STEP_KINDS:
            raise ValueError(f"a band needs tolerances and a step_kind of {', '.join(STEP_KINDS)}")
        for _, tolerance in pairs:
            check_limits("tolerance", tolerance, least=0)
        return cls(float(content["least"]), content["step_kind"], pairs)


@dataclass(frozen=True)
class Entry:
    """What was measured for one scheduler and number of steps.

    Attributes:
        scheduler: Its name, see `models.schedulers.scheduler_name`.
        num_inference_steps: Number of denoising steps.
        guidance_scale: At which it was measured.
        prompts: From how many prompts.
        bands: What holds for which qualities, rising from 0.
        published: Settings of the published rule.
        curves: Mean and standard deviation over the prompts of discrepancy (one per step) and drift (from step 1 on),
            for people to look at.
        measured: What each tolerance that was tried gave, likewise.
    """

    scheduler: str
    num_inference_steps: int
    guidance_scale: float | None
    prompts: int
    bands: tuple[Band, ...]
    published: PublishedSettings
    curves: dict[str, list[float]] = field(default_factory=dict)
    measured: list[dict[str, Any]] = field(default_factory=list)

    @classmethod
    def parse(cls, content: dict[str, Any]) -> Entry:
        """The entry that a file holds; ValueError, KeyError or TypeError where it is none."""
        bands, published = tuple(map(Band.parse, content["bands"])), PublishedSettings(**content["published"])
        if not bands:
            raise ValueError("an entry needs a band")
        if None in published.rule:
            raise ValueError("an entry needs all settings of the published rule")
        entry = cls(**content | {"bands": bands, "published": published})
        check_limits("num_inference_steps", entry.num_inference_steps, least=1)
        return entry

    @property
    def key(self) -> tuple[str, int]:
        """What one file holds one entry for."""
        return self.scheduler, self.num_inference_steps

    def band(self, quality: float, step_kind: str | None = None) -> Band:
        """What holds for a quality from 0 to 1; the band of another kind of steps where it is asked for and there."""
        asked = [band for band in self.bands if band.step_kind == step_kind]
        return (asked or [band for band in self.bands if band.least <= quality] or [self.bands[0]])[-1]

    def tolerance(self, quality: float, step_kind: str | None = None) -> float:
        """The tolerance of a quality in its `band`, between those that were measured along a straight line."""
        return interpolate(self.band(quality, step_kind).tolerances, quality)


@dataclass(frozen=True)
class Calibration:
    """The entries of one file.

    Attributes:
        model: What was calibrated.
        entries: One per scheduler and number of steps.
        split_points: Index of the split point for a kind of steps, where measured times know better than counted work.
    """

    model: str
    entries: tuple[Entry, ...]
    split_points: dict[str, int] = field(default_factory=dict)

    @classmethod
    def read(cls, path: Path) -> Calibration:
        """Read a file.

        Raises:
            UsageError: it cannot be read, or is no calibration; names it.
        """
        try:
            content = json.loads(path.read_text(encoding="utf-8"), object_hook=_without_correction)
            entries = tuple(map(Entry.parse, content["entries"]))
            if not entries:
                raise ValueError("it holds no thresholds")
            return cls(content["model"], entries, _split_points(content.get("split_points", {})))
        except OSError as error:
            raise UsageError(f"cannot read the calibration {path}: {error.strerror}") from error
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise UsageError(f"{path} is no calibration ({error}); write one with: hybridiff calibrate") from error

    @classmethod
    def open(cls, path: Path, model: str) -> Calibration:
        """The calibration of a model in a file, to be added to; an empty one where there is no file.

        Raises:
            UsageError: the file is no calibration, or that of another model.
        """
        if not path.exists():
            return cls(model, ())
        found = cls.read(path)
        if found.model != model:
            raise UsageError(f"{path} holds the thresholds of {found.model}, not of {model}; give another --output")
        return found

    def write(self, path: Path) -> None:
        """Write the file that `read` reads; never half of it."""
        content = asdict(self)
        write_whole(path, json.dumps(content) + "\n")

    def with_entry(self, entry: Entry) -> Calibration:
        """With an entry added, in the place of one for the same scheduler and number of steps."""
        kept = [old for old in self.entries if old.key != entry.key]
        return replace(self, entries=tuple(sorted([*kept, entry], key=lambda one: one.key)))

    def nearest(self, scheduler: str, steps: int) -> Entry:
        """The entry for a scheduler and number of steps, or the one that is nearest to them."""
        return min(
            self.entries,
            key=lambda entry: (
                entry.scheduler != scheduler,
                entry.scheduler.split()[0] != scheduler.split()[0],  # the same class with other settings comes next
                abs(entry.num_inference_steps - steps),
            ),
        )

    def describe(self) -> str:
        """All that decides images, as text: ranks must have the same."""
        return f"{[replace(entry, curves={}, measured=[]) for entry in self.entries]}, {self.split_points}"

    def __str__(self) -> str:
        return f"calibration of {self.model}"


def _without_correction(content: dict[str, Any]) -> dict[str, Any]:
    """Older files say what share of their errors was made up for when cached steps were measured; now all of it is."""
    share = content.pop("correction", 1.0)
    if share != 1.0:
        raise ValueError(f"it was measured with a correction of {share}, which is always 1 now")
    return content


def _split_points(content: dict[str, Any]) -> dict[str, int]:
    for kind, index in content.items():
        if kind not in (StepKind.PIPELINED.value, StepKind.REUSE.value) or type(index) is not int or index < 0:
            raise ValueError(f"split_points are indices for pipelined or reuse steps, not {kind}: {index!r}")
    return dict(content)
