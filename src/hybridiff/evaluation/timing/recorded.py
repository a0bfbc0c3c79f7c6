"""Schedules of trained models, for models whose weights are random."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from ...models.bench import TRAINED
from ..frontier.generation import guided_schedules
from ..frontier.schedules import steps_as_text, typical_schedule
from ..frontier.settings import Setting
from ..workload import Workload, take_prompts
from .contenders import Contender

PROMPTS = 8
"""Captions whose schedules are recorded; the typical one of them is taken."""


def recorded_contenders(contenders: Sequence[Contender], model: str, steps: int) -> tuple[list[Contender], list[str]]:
    """The contenders, those that choose their full steps by the image with full steps that a trained model chose.

    Args:
        contenders: Of a bench model.
        model: Its name.
        steps: Number of denoising steps.

    Returns:
        They, and a sentence for each schedule that was recorded.
    """
    trained, said = TRAINED[model], dict[str, str]()
    call = {"num_inference_steps": steps} | ({"max_sequence_length": 16} if trained == "tiny-sd3" else {})
    workload: Workload | None = None
    found = []
    for contender in contenders:
        config = contender.config
        if config.strategy == "hybrid" and config.full_steps is None and not contender.is_exact:
            workload = workload or Workload.load(trained, call, device="cpu")
            if contender.label not in said:
                said[contender.label] = _full_steps(workload, contender)
            full = said[contender.label]
            config = replace(config, fidelity=None, quality=None, tolerance=None, full_steps=full)
        found.append(replace(contender, config=config))
    notes = (
        f"{label}: full steps {full}, as {trained} typically chooses them in {steps} steps ({PROMPTS} captions)"
        for label, full in said.items()
    )
    return found, list(notes)


def _full_steps(workload: Workload, contender: Contender) -> str:
    prompts = take_prompts(workload.model, None, "calibration", (PROMPTS,))
    setting = Setting("hybrid", contender.label, replace(contender.config, devices=2, shards=None))
    return steps_as_text(typical_schedule(guided_schedules(workload.pipe, prompts, setting, workload.call)))
