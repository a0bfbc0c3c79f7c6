"""Which steps are full, and what the others are: the user's wishes, the calibration and the presets made one."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from ..config import ParallelConfig, parse_steps
from ..models import tiny
from .calibration import Calibration, Entry
from .kinds import (
    BETWEEN,
    FixedPolicy,
    GuidedPolicy,
    GuidedSettings,
    PublishedPolicy,
    PublishedSettings,
    StepKind,
    SwitchPolicy,
    regular_schedule,
)
from .presets import fixed_schedule, general_tolerance, model_name, published_settings, reuse_share, scaled_steps

STAGED = {StepKind.PIPELINED, StepKind.REUSE}
"""Kinds of steps that need the network cut."""

LEAST_STEPS = 3
"""A run has to have a full step or two before another kind; with fewer steps all are full."""

DEFAULT_BETWEEN = "skipped"
"""What the steps between full ones are, unless the user or a calibration says otherwise."""

_SNAPSHOT = re.compile("[0-9a-f]{40}")
"""A folder of the hub's cache, which does not say what the model is called."""

LONGEST = 6
"""Largest distance of full steps under the guided rule, for 50 steps."""


@dataclass(frozen=True)
class Schedule:
    """How `hybrid` and `reuse` run one call.

    Args:
        pipe: The stock pipeline, to be read only.
        config: What the user asked for.
        steps: Number of denoising steps.
        grid: Number of steps of the whole way from noise to picture, of which image to image takes the last ones; None
            where they are the same.
    """

    pipe: Any
    config: ParallelConfig
    steps: int
    grid: int | None = None

    def check(self) -> None:
        """Refuse settings that contradict each other or the number of steps, and calibrations that cannot be read.

        Raises:
            ValueError: with the numbers and the remedy.
        """
        self.policy([1.0] * self.steps)

    @property
    def between(self) -> str:
        """Name of what the steps between full ones are, see `switching.BETWEEN`."""
        return _between(self.config, self.entry)

    @property
    def kinds(self) -> tuple[StepKind, ...]:
        """The kinds of the steps between full ones."""
        return BETWEEN[self.between]

    @property
    def guidance(self) -> str:
        """What pipelined steps do for guidance, see `ParallelConfig.parallel_guidance`."""
        return self.config.parallel_guidance or ("published" if self.config.rule == "published" else "carry")

    @property
    def forecast(self) -> str:
        """How things are carried over to the steps between full ones, see `ParallelConfig.forecast`."""
        return self.config.forecast or ("hold" if self.between == "skipped" else "linear")

    @property
    def catch_up(self) -> float:
        """Share of the skipped steps' errors that the next full step makes up for."""
        if self.config.catch_up is not None:
            return self.config.catch_up
        return 1.0 if self.entry is None else self.entry.catch_up

    @cached_property
    def entry(self) -> Entry | None:
        """The calibration that holds for this call, None where the model has none."""
        if self._calibration is None:
            return None
        return self._calibration.nearest(type(self.pipe.scheduler).__name__, self._grid)

    @property
    def splits(self) -> dict[str, int]:
        """Index of the cut by purpose, as far as the calibration knows it."""
        return {} if self._calibration is None else self._calibration.splits

    @cached_property
    def _calibration(self) -> Calibration | None:
        return find_calibration(self.pipe, self.config.calibration)

    @property
    def _grid(self) -> int:
        """The number of steps that decides how far apart they are."""
        return self.grid or self.steps

    def policy(self, weights: Sequence[float]) -> SwitchPolicy:
        """The rule for one run.

        Args:
            weights: How far each step moves the sample, 1 on average.
        """
        rule = self.config.rule
        is_exact = rule == "guided" and self.config.quality_value == 1.0
        if is_exact or not self._is_long_enough:
            return FixedPolicy(range(self.steps), self.steps, self.kinds)
        if rule == "fixed":
            return FixedPolicy(self._full_steps(), self.steps, self.kinds)
        if rule == "published":
            return PublishedPolicy(self._published(), self.steps, self.kinds)
        return GuidedPolicy(self._guided(), weights, self.kinds)

    def notes(self) -> list[str]:
        """Sentences for the user about what the schedule rests on."""
        if self.config.rule != "guided" or self.config.tolerance is not None:
            return []
        if self.config.quality_value == 1.0:
            return ["quality exact: every step is a full one"]
        entry = self.entry
        if entry is None:
            return ["this model is not calibrated: general thresholds hold; hybridiff calibrate measures its own"]
        return [*self._notes_on_origin(entry), *self._notes_on_kind(entry)]

    def _notes_on_origin(self, entry: Entry) -> list[str]:
        """What was calibrated, as far as it is not what runs."""
        assert self._calibration is not None
        notes = []
        scheduler, model = type(self.pipe.scheduler).__name__, model_name(self.pipe)
        if (entry.scheduler, entry.num_inference_steps) != (scheduler, self._grid):
            notes.append(
                f"calibrated for {entry.scheduler} with {entry.num_inference_steps} steps, the nearest to {scheduler} "
                f"with {self._grid}"
            )
        calibrated = Path(self._calibration.model).name
        if model and not _SNAPSHOT.fullmatch(model) and calibrated != model:
            notes.append(f"calibrated for {calibrated}, this is {model}")
        guidance = getattr(self.pipe, "_guidance_scale", None)  # the pipeline's property, known once it is called
        if None not in (guidance, entry.guidance_scale) and guidance != entry.guidance_scale:
            notes.append(f"calibrated at guidance scale {entry.guidance_scale:g}, this is {guidance:g}")
        return notes

    def _notes_on_kind(self, entry: Entry) -> list[str]:
        measured = entry.band(self.config.quality_value, self.between).between
        if measured == self.between:
            return []
        return [f"{self.between} steps were not calibrated: the tolerances of {measured} steps hold"]

    @property
    def _is_long_enough(self) -> bool:
        """Whether a schedule makes sense, or was given by hand."""
        by_hand = {
            "guided": (),
            "published": ("slope_window", "slope_threshold", "parallel_steps", "tau_cap"),
            "fixed": ("full_steps", "tau1", "tau2", "full_interval"),
        }
        given = [name for name in by_hand[self.config.rule] if getattr(self.config, name) is not None]
        return self.steps >= LEAST_STEPS or bool(given)

    def _published(self) -> PublishedSettings:
        config, entry = self.config, self.entry
        if entry is not None:
            preset = PublishedSettings(
                entry.slope_window, entry.slope_threshold, entry.parallel_steps, entry.tau_cap
            ).scaled(self.steps, entry.num_inference_steps)
        else:
            preset = published_settings(self.pipe).scaled(self.steps)
        return preset.replaced(config.slope_window, config.slope_threshold, config.parallel_steps, config.tau_cap)

    def _guided(self) -> GuidedSettings:
        config, entry = self.config, self.entry
        settings = {
            "tolerance": config.tolerance,
            "settled": config.settled,
            "longest": config.longest_interval or scaled_steps(LONGEST, self._grid, least=2),
            "patience": config.patience,
        }
        if config.tolerance is None:
            quality = config.quality_value
            settings["tolerance"] = (
                general_tolerance(quality) if entry is None else entry.tolerance(quality, self.between)
            )
        return GuidedSettings(**{name: value for name, value in settings.items() if value is not None})  # type: ignore[arg-type]

    def _full_steps(self) -> list[int]:
        config = self.config
        if config.full_steps is not None:
            return parse_steps(config.full_steps)
        tau1, tau2, interval = fixed_schedule(self.steps, config.tau1, config.tau2, config.full_interval)
        return regular_schedule(tau1, tau2, interval, self.steps)


def _between(config: ParallelConfig, entry: Entry | None) -> str:
    """What the steps between full ones are: as the user says, or as was measured for the quality."""
    if config.kind_between is not None:
        return config.kind_between
    if entry is None or config.quality_value == 1.0:  # where all steps are full, nothing has to be prepared
        return DEFAULT_BETWEEN
    return entry.band(config.quality_value).between


def may_need_stages(pipe: Any, config: ParallelConfig) -> bool:
    """Whether some call of a pipeline may need its network cut, whatever the scheduler and the number of steps.

    Raises:
        ValueError: the calibration cannot be read.
    """
    calibration = find_calibration(pipe, config.calibration)
    entries = [None] if calibration is None else calibration.entries
    return any(not STAGED.isdisjoint(BETWEEN[_between(config, entry)]) for entry in entries)


def describe_settings(pipe: Any, config: ParallelConfig) -> str:
    """The presets and the calibration that hold for a pipeline, to be compared between ranks.

    Raises:
        ValueError: the calibration cannot be read.
    """
    calibration = find_calibration(pipe, config.calibration)
    entries = [] if calibration is None else [replace(entry, curves={}, measured=[]) for entry in calibration.entries]
    splits = {} if calibration is None else calibration.splits
    return f"{published_settings(pipe)}, {reuse_share(pipe)}, calibration {entries}, splits {splits}"


def find_calibration(pipe: Any, path: str | None) -> Calibration | None:
    """The calibration in a file, or the one that an embedded model brings; None where there is none.

    Raises:
        ValueError: the file cannot be read.
    """
    if path is not None:
        return Calibration.read(Path(path).expanduser())
    name = model_name(pipe)
    return Calibration.read(tiny.folder(name) / "calibration.json") if name in tiny.EMBEDDED else None
