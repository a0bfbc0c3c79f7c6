"""Makes the executor of cached steps from the plan of a run."""

from __future__ import annotations

from ...numerics.estimate import ErrorEstimate
from ...numerics.hindsight import Hindsight
from ...numerics.reaction import Reaction
from ...schedule.plan import RunPlan
from ...schedule.promised import PromisedPolicy
from ..base import RunContext
from ..evaluator import BranchEvaluator
from .cached import CachedStep


def make_cached_step(plan: RunPlan, evaluator: BranchEvaluator, context: RunContext) -> CachedStep:
    """The cached steps of a run, with what corrects them, and with an estimate of what is left where one is promised.

    Args:
        plan: Of the run.
        evaluator: Evaluates calls on all ranks.
        context: What the strategy works with.
    """
    sensitivity, coefficients = plan.sensitivity, context.coefficients
    reaction = Reaction(coefficients, sensitivity.begin, len(context.scheduler.timesteps))
    hindsight = Hindsight(sensitivity, reaction)
    estimate = ErrorEstimate(sensitivity, coefficients) if isinstance(plan.policy, PromisedPolicy) else None
    return CachedStep(evaluator, hindsight, sensitivity.places, estimate)
