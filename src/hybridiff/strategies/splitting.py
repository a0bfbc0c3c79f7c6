"""Where a run splits the network, for kinds of steps that run its stages apart."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from ..denoiser.evaluation import Evaluation
from ..denoiser.rows import branch_rows
from ..denoiser.split import Split
from ..denoiser.stages import StagedDenoiser
from ..schedule.kinds import StepKind
from .base import RunContext


def split_network(
    context: RunContext,
    first: Evaluation,
    kind: StepKind,
    choose: Callable[[Sequence[Split]], Split],
    stages: int = 2,
) -> StagedDenoiser:
    """The denoiser, split for steps of a kind; measured anew where the shape or the kind has changed.

    Args:
        context: What the strategy works with.
        first: A call with the shapes of the run.
        kind: Kind of the steps.
        choose: Chooses among all splits, unless a calibration says which it is.
        stages: Number of stages; calibrations know of two.
    """
    staged = context.staged
    assert staged is not None
    made_for = (kind, first.sample.shape)
    if staged.made_for != made_for:
        staged.remove()
        if context.groups is not None:
            context.groups.prepare(first)  # first, so that the hooks of stages lie around those that cut images
        splits = staged.measure(first, branch_rows(first, first.branches - 1))
        split = choose_split(context, kind, splits, choose) if stages == 2 else choose(splits)
        # No two measurements are the same: what the leader measured stands in every report.
        staged.apply(context.channel.consensus(split, "agree on the split")[0], made_for)
    return staged


def choose_split(
    context: RunContext, kind: StepKind, splits: Sequence[Split], choose: Callable[[Sequence[Split]], Split]
) -> Split:
    """The split into two stages that a calibration stored for a kind of steps, or else the chosen one."""
    index = context.settings.split_point(kind)
    return choose(splits) if index is None or index >= len(splits) else splits[index]
