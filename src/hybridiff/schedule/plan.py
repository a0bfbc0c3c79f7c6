"""Which steps of one call are full, and what the others are: decided once, from all that bears on it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ..config import LEAST_STEPS, ParallelConfig, parse_steps, quality_value
from ..numerics.sensitivity import Sensitivity
from .fixed import FixedPolicy
from .guided import GuidedPolicy
from .kinds import Policy, StepKind
from .notes import plan_notes, refusal_of_promises, scheduler_notes
from .presets import GuidedSettings, ModelSettings
from .promised import PromisedPolicy, error_bound


@dataclass(frozen=True)
class RunPlan:
    """How `hybrid` runs one call.

    Attributes:
        policy: Says which steps are full.
        step_kind: Kind of the others; FULL where there are none.
        sensitivity: How far each prediction moves the sample.
        fidelity: What is promised, in dB; None where nothing is.
        notes: Sentences for the user about what the plan rests on.
    """

    policy: Policy
    step_kind: StepKind
    sensitivity: Sensitivity
    fidelity: float | None = None
    notes: tuple[str, ...] = ()

    @classmethod
    def all_full(cls, steps: int, *notes: str, fidelity: float | None = None) -> RunPlan:
        """Every step is full."""
        return cls(FixedPolicy.all_full(steps), StepKind.FULL, Sensitivity.unknown(steps), fidelity, notes)

    @classmethod
    def make(
        cls,
        config: ParallelConfig,
        settings: ModelSettings,
        pipe: Any,
        sensitivity: Sensitivity,
        guidance_scale: float | None = None,
    ) -> RunPlan:
        """The plan of a call whose first step is about to run.

        Args:
            config: What the user asked for.
            settings: What holds for the model.
            pipe: The pipeline, its scheduler's timesteps set; to be read only.
            sensitivity: Of the scheduler, one per step, the same on all ranks.
            guidance_scale: By which guidance combines the branches; None where that is not known.
        """
        scheduler, steps = pipe.scheduler, len(sensitivity.weights)
        # Image to image takes the last steps of a longer way, which decides how far apart they are.
        grid = getattr(scheduler, "num_inference_steps", None) or steps
        entry = settings.entry(scheduler, grid)
        guided = GuidedSettings.choose(config, entry, grid * getattr(scheduler, "order", 1))  # evaluations
        notes = plan_notes(config, settings, entry, scheduler, grid, guided, guidance_scale)
        refusal = refusal_of_promises(scheduler, sensitivity)
        policy = _policy(config, guided, settings.decoder_gain, sensitivity, refusal)
        is_all_full = isinstance(policy, FixedPolicy) and policy.tau1 is None
        kind = StepKind.FULL if is_all_full else guided.step_kind
        notes += scheduler_notes(guided, scheduler, sensitivity, kind, refusal)
        if is_all_full:  # nothing has to be prepared for other steps
            return cls.all_full(steps, *notes, fidelity=guided.fidelity)
        return cls(policy, guided.step_kind, sensitivity, guided.fidelity, tuple(notes))


def _policy(
    config: ParallelConfig, guided: GuidedSettings, gain: float, sensitivity: Sensitivity, refusal: str | None
) -> Policy:
    steps = len(sensitivity.weights)
    if config.full_steps is not None:
        return FixedPolicy(parse_steps(config.full_steps), steps, guided.step_kind)
    is_blind = guided.fidelity is not None and refusal is not None
    if quality_value(config.quality) == 1.0 or steps < LEAST_STEPS or is_blind:
        return FixedPolicy.all_full(steps)
    if guided.fidelity is not None:
        return PromisedPolicy(error_bound(guided.fidelity, gain), sensitivity, guided.longest)
    return GuidedPolicy(guided.tolerance, guided.longest, sensitivity.weights, guided.step_kind)
