"""Makes the executor of cached steps from the plan of a run."""

from __future__ import annotations

from typing import Any

from ...numerics.estimate import ErrorEstimate
from ...numerics.hindsight import Hindsight
from ...numerics.reaction import Reaction
from ...schedule.plan import RunPlan
from ...schedule.promised import PromisedPolicy
from ..evaluator import BranchEvaluator
from .cached import CachedStep


def make_cached_step(plan: RunPlan, evaluator: BranchEvaluator, pipe: Any) -> CachedStep:
    """The cached steps of a run, with what corrects them, and with an estimate of what is left where one is promised.

    Args:
        plan: Of the run.
        evaluator: Evaluates calls on all ranks.
        pipe: The pipeline, called; its guidance scale is taken to stay as it is.
    """
    sensitivity = plan.sensitivity
    scale = float(getattr(pipe, "guidance_scale", None) or 1.0)
    hindsight = Hindsight(sensitivity, Reaction(scale, sensitivity.begin, len(pipe.scheduler.timesteps)))
    estimate = ErrorEstimate(sensitivity, scale) if isinstance(plan.policy, PromisedPolicy) else None
    return CachedStep(evaluator, hindsight, sensitivity.places, estimate)
