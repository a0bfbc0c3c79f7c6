"""Sentences for the user about what a plan rests on."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from ..config import ParallelConfig, quality_value
from ..models.schedulers import scheduler_name
from ..numerics.sensitivity import Sensitivity
from .calibration import Entry
from .kinds import StepKind
from .presets import GuidedSettings, ModelSettings

_SNAPSHOT = re.compile("[0-9a-f]{40}")
"""A folder of the hub's cache, which does not say what the model is called."""

_AMPLIFIES = {"LMSDiscreteScheduler": "amplifies what earlier predictions got wrong"}
"""Schedulers that are linear and yet follow no estimate: methods of high order that are barely stable."""


def second_order_note(scheduler: Any) -> str | None:
    """Why all steps of `published` are full with a scheduler that takes two evaluations per step; else None."""
    order, name = getattr(scheduler, "order", 1), type(scheduler).__name__
    why = f"{name} is of order {order}: none of its steps can be shared in another way, all ran partitioned"
    return None if order == 1 else why


def refusal_of_promises(scheduler: Any, sensitivity: Sensitivity) -> str | None:
    """Why no cached step can be part of a promise with a scheduler; else None."""
    name = type(scheduler).__name__
    why = sensitivity.unknown_why if not sensitivity.on_sample else _AMPLIFIES.get(name)
    if why is None:
        return None
    return f"{name} {why}: errors cannot be told beforehand, and full steps alone keep the promise"


def scheduler_notes(
    guided: GuidedSettings, scheduler: Any, sensitivity: Sensitivity, kind: StepKind, refusal: str | None
) -> list[str]:
    """What it means for a run that a scheduler is as it is.

    Args:
        guided: What decides the schedule.
        scheduler: The scheduler.
        sensitivity: Its own.
        kind: Of the steps that are not full; FULL where there are none.
        refusal: See `refusal_of_promises`.
    """
    name = type(scheduler).__name__
    if guided.fidelity is not None and refusal is not None:
        return [f"{refusal}; a tolerance can be set by hand"]
    if kind is not StepKind.CACHED:
        return []
    if sensitivity.is_stochastic:
        promise = "a promise holds for most images, but" if guided.fidelity is not None else "with cached steps"
        return [f"{name} adds noise: {promise} a few become others altogether"]
    if guided.fidelity is None and not sensitivity.on_sample:
        return [f"{name} {sensitivity.unknown_why}: nothing makes up for the errors of cached steps"]
    if guided.fidelity is None and name in _AMPLIFIES:
        return [f"{name} {_AMPLIFIES[name]}: cached steps may leave more than they are known to"]
    return []


def plan_notes(
    config: ParallelConfig,
    settings: ModelSettings,
    entry: Entry | None,
    scheduler: Any,
    grid: int,
    guided: GuidedSettings,
    guidance_scale: float | None,
) -> list[str]:
    """What the thresholds of a call rest on.

    Args:
        config: What the user asked for.
        settings: What holds for the model.
        entry: The calibration in force, None where there is none.
        scheduler: Of the call.
        grid: Number of steps of the whole way from noise to image.
        guided: The thresholds.
        guidance_scale: By which guidance combines the branches; None where that is not known.
    """
    if config.full_steps is not None or config.tolerance is not None or config.fidelity is not None:
        return []
    if quality_value(config.quality) == 1.0:
        return ["quality exact: every step is a full one"]
    if entry is None and guided.fidelity is not None:
        return []  # kept by measuring, as the report says
    if entry is None:
        return ["reuse steps of this model are not calibrated: general thresholds hold; use hybridiff calibrate"]
    notes = _notes_on_origin(settings, entry, scheduler_name(scheduler), grid, guidance_scale)
    measured = entry.band(quality_value(config.quality), guided.step_kind.value).step_kind
    if measured != guided.step_kind.value:
        notes.append(f"{guided.step_kind.value} steps were not calibrated: the tolerances of {measured} steps hold")
    return notes


def _notes_on_origin(
    settings: ModelSettings, entry: Entry, scheduler: str, grid: int, scale: float | None
) -> list[str]:
    """What was calibrated, as far as it is not what runs."""
    assert settings.calibration is not None
    notes, model = [], settings.model
    if entry.key != (scheduler, grid):
        notes.append(
            f"calibrated for {entry.scheduler} with {entry.num_inference_steps} steps, the nearest to {scheduler} "
            f"with {grid}"
        )
    calibrated = Path(settings.calibration.model).name
    if model and not _SNAPSHOT.fullmatch(model) and calibrated != model:
        notes.append(f"calibrated for {calibrated}, this is {model}")
    if scale is not None and entry.guidance_scale is not None and scale != entry.guidance_scale:
        notes.append(f"calibrated at guidance scale {entry.guidance_scale:g}, this is {scale:g}")
    return notes
