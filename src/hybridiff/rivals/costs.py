"""What the layers of a network cost that is cut into stages."""

from __future__ import annotations

from ..denoiser.evaluation import Evaluation
from ..denoiser.layers import NetworkCost
from ..denoiser.rows import branch_rows
from ..errors import UsageError
from ..strategies.base import RunContext


def layer_costs(context: RunContext, first: Evaluation, stages: int) -> NetworkCost:
    """As the leader has measured them, once for a shape; the same on every rank.

    Raises:
        UsageError: there are more stages than layers.
    """
    staged, shape = context.staged, first.sample.shape
    assert staged is not None
    if stages > len(staged.layers):
        raise UsageError(f"a network of {len(staged.layers)} layers has no {stages} stages; use fewer ranks")
    measured = staged.costs.get(shape) or staged.cost(first, branch_rows(first, first.branches - 1))
    staged.costs[shape] = context.channel.consensus(measured, "agree on the stages")[0]
    return staged.costs[shape]
