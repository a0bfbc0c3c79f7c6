"""Which steps of one call are full, and what the others are: decided once, from all that bears on it."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..config import ParallelConfig, parse_steps, quality_value
from ..numerics.sensitivity import Sensitivity, measure_sensitivity
from .calibration import Entry
from .fixed import FixedPolicy
from .guided import GuidedPolicy
from .kinds import Policy, StepKind
from .presets import GuidedSettings, ModelSettings

LEAST_STEPS = 3
"""A run has to have a full step or two before another kind; with fewer steps all are full."""

_SNAPSHOT = re.compile("[0-9a-f]{40}")
"""A folder of the hub's cache, which does not say what the model is called."""


@dataclass(frozen=True)
class RunPlan:
    """How `hybrid` runs one call.

    Attributes:
        policy: Says which steps are full.
        step_kind: Kind of the others; FULL where there are none.
        correction: Share of the cached steps' errors that the next full step makes up for.
        sensitivity: How far each prediction moves the sample.
        notes: Sentences for the user about what the plan rests on.
    """

    policy: Policy
    step_kind: StepKind
    correction: float
    sensitivity: Sensitivity
    notes: tuple[str, ...] = ()

    @classmethod
    def all_full(cls, steps: int, *notes: str) -> RunPlan:
        """Every step is full."""
        return cls(FixedPolicy.all_full(steps), StepKind.FULL, 0.0, Sensitivity.unknown(steps), notes)

    @classmethod
    def make(
        cls,
        config: ParallelConfig,
        settings: ModelSettings,
        pipe: Any,
        steps: int,
        first_timestep: float,
        agree: Callable[[Sensitivity], Sensitivity] = lambda measured: measured,
    ) -> RunPlan:
        """The plan of a call whose first step is about to run.

        Args:
            config: What the user asked for.
            settings: What holds for the model.
            pipe: The pipeline, its scheduler's timesteps set; to be read only.
            steps: Number of denoising steps.
            first_timestep: That of the first step.
            agree: Makes one of the sensitivities that ranks measured, where these may differ in a bit.
        """
        scheduler = pipe.scheduler
        refusal = second_order_note(scheduler)
        if refusal is not None:
            return cls.all_full(steps, refusal)
        # Image to image takes the last steps of a longer way, which decides how far apart they are.
        grid = getattr(scheduler, "num_inference_steps", None) or steps
        entry = settings.entry(scheduler, grid)
        guided = GuidedSettings.choose(config, entry, grid)
        sensitivity = agree(measure_sensitivity(scheduler, steps, first_timestep))
        notes = _notes(config, settings, entry, pipe, grid, guided)
        if guided.step_kind is StepKind.CACHED and not sensitivity.on_sample:
            name = type(scheduler).__name__
            notes.append(f"{name} is not linear as it is configured: nothing makes up for the errors of cached steps")
        policy = _policy(config, guided, sensitivity, steps)
        return cls(policy, guided.step_kind, guided.correction, sensitivity, tuple(notes))


def second_order_note(scheduler: Any) -> str | None:
    """Why all steps of a scheduler are full, where it takes two evaluations a step; else None."""
    order, name = getattr(scheduler, "order", 1), type(scheduler).__name__
    if order == 1:
        return None
    return f"{name} is of order {order}: none of its steps can be shared in another way, all ran partitioned"


def _policy(config: ParallelConfig, guided: GuidedSettings, sensitivity: Sensitivity, steps: int) -> Policy:
    if config.full_steps is not None:
        return FixedPolicy(parse_steps(config.full_steps), steps, guided.step_kind)
    if quality_value(config.quality) == 1.0 or steps < LEAST_STEPS:
        return FixedPolicy.all_full(steps)
    return GuidedPolicy(guided.tolerance, guided.longest, sensitivity.weights, guided.step_kind)


def _notes(
    config: ParallelConfig, settings: ModelSettings, entry: Entry | None, pipe: Any, grid: int, guided: GuidedSettings
) -> list[str]:
    if config.full_steps is not None or config.tolerance is not None:
        return []
    if quality_value(config.quality) == 1.0:
        return ["quality exact: every step is a full one"]
    if entry is None:
        return ["this model is not calibrated: general thresholds hold; hybridiff calibrate measures its own"]
    notes = _notes_on_origin(settings, entry, pipe, grid)
    measured = entry.band(quality_value(config.quality), guided.step_kind.value).step_kind
    if measured != guided.step_kind.value:
        notes.append(f"{guided.step_kind.value} steps were not calibrated: the tolerances of {measured} steps hold")
    return notes


def _notes_on_origin(settings: ModelSettings, entry: Entry, pipe: Any, grid: int) -> list[str]:
    """What was calibrated, as far as it is not what runs."""
    assert settings.calibration is not None
    notes, scheduler, model = [], type(pipe.scheduler).__name__, settings.model
    if entry.key != (scheduler, grid):
        notes.append(
            f"calibrated for {entry.scheduler} with {entry.num_inference_steps} steps, the nearest to {scheduler} "
            f"with {grid}"
        )
    calibrated = Path(settings.calibration.model).name
    if model and not _SNAPSHOT.fullmatch(model) and calibrated != model:
        notes.append(f"calibrated for {calibrated}, this is {model}")
    guidance = getattr(pipe, "_guidance_scale", None)  # the pipeline's property, known once it is called
    if None not in (guidance, entry.guidance_scale) and guidance != entry.guidance_scale:
        notes.append(f"calibrated at guidance scale {entry.guidance_scale:g}, this is {guidance:g}")
    return notes
