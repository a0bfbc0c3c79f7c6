"""Reuse steps: only the outer stage runs, on a forecast of the inner one.

Step caching (DeepCache, arXiv 2312.00858; TaylorSeer, arXiv 2503.06923) married to condition-based partitioning:
guidance is fresh at every step, and the only message is the gather of the predictions.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch

from ...denoiser.blocks import Boundary
from ...denoiser.call import Evaluation
from ...denoiser.stages import StagedDenoiser
from ...numerics.extrapolation import Forecast


class Reuse:
    """The reuse steps of one run; each rank forecasts its own branch's inner result.

    Args:
        staged: The denoiser, cut.
        inner: Forecasts of the inner result, by rank; full steps feed them.
    """

    def __init__(self, staged: StagedDenoiser, inner: Mapping[int, Forecast]) -> None:
        self._staged = staged
        self._inner = inner

    def evaluate(self, evaluation: Evaluation, rank: int, share: slice, step: int) -> torch.Tensor:
        """A rank's rows through the outer stage: (rows, C, H, W)."""

        def inner(down: Boundary) -> Boundary:
            return self._staged.restored(down, self._inner[rank].at(step))

        return self._staged.run_outer(evaluation, share, exchange=inner)
