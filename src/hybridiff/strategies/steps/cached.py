"""Skipped steps: nothing runs; every rank forecasts both predictions, and the next full step makes up for the errors.

Holding a prediction over steps is step caching (as in TeaCache, arXiv 2411.19108). New here is the catching up: a full
step shows what the skipped steps before it should have predicted, and corrects the sample for it.
"""

from __future__ import annotations

import torch

from ...numerics.extrapolation import ORDERS, Forecast
from ...numerics.sensitivity import Influence
from ..base import Answer


class Skip:
    """The skipped steps of one run; the same on every rank, as all have the same predictions.

    Args:
        order: How predictions are carried over, a name of `forecast.ORDERS`.
        catch_up: Share of the skipped steps' errors that the next full step makes up for.
        influence: How far each prediction moves the sample.
    """

    def __init__(self, order: str, catch_up: float, influence: Influence) -> None:
        self._forecast = Forecast(ORDERS[order])
        self._hindsight = Forecast(order=3)
        self._catch_up = catch_up
        self._influence = influence
        self._answered: list[tuple[int, torch.Tensor]] = []  # skipped steps since the last full one

    def predict(self, step: int) -> Answer:
        """Answer a step without an evaluation."""
        (prediction,) = self._forecast.at(step)
        self._answered.append((step, prediction))
        return Answer(prediction, None)

    def observe(self, step: int, prediction: torch.Tensor) -> None:
        """Take in the prediction of a full step, all rows."""
        self._forecast.observe(step, (prediction,))
        self._hindsight.observe(step, (prediction,))

    def caught_up(self, step: int, prediction: torch.Tensor) -> torch.Tensor:
        """The prediction of a full step just observed, changed so that it makes up for the skipped steps before it.

        In hindsight a skipped step j should have predicted what a cubic through the latest full steps says there. The
        difference, times the influence of j on the sample relative to this step's own, moves the sample to where it
        would be by now.
        """
        corrected = prediction.float()
        for skipped, answered in self._answered:
            share = self._catch_up * self._influence.share(skipped, step)
            if share:
                (better,) = self._hindsight.at(skipped)
                corrected = corrected + share * (better.float() - answered.float())
        self._answered = []
        return corrected.to(prediction.dtype)
