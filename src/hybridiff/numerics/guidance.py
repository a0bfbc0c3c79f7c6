"""Classifier-free guidance seen from outside the pipeline: pure tensor functions."""

from __future__ import annotations

import torch

from .extrapolation import ORDERS, Forecast


def discrepancy(unconditional: torch.Tensor, conditional: torch.Tensor) -> torch.Tensor:
    """Denoising discrepancy of a step, `M = mean|e_c - e_u| / mean|e_u|` (Jung et al. 2026, Eq. 1).

    Args:
        unconditional: Prediction of the unconditional branch, any shape; noise or velocity.
        conditional: Prediction of the conditional branch, the same shape.

    Returns:
        A 0-d float32 tensor on the device of the predictions, so that nothing waits for the device here.
    """
    unconditional, conditional = unconditional.float(), conditional.float()
    scale = unconditional.abs().mean().clamp_min(torch.finfo(torch.float32).tiny)
    return (conditional - unconditional).abs().mean() / scale


def drift(prediction: torch.Tensor, earlier: torch.Tensor) -> torch.Tensor:
    """How far a prediction moved: `|p - q| / |p|` in the 2-norm of each row, as root mean square over the rows.

    Args:
        prediction: All rows of a step, (rows, C, H, W).
        earlier: Those of an earlier step.

    Returns:
        A 0-d float32 tensor on the device of the predictions.
    """
    now, before = prediction.float().flatten(1), earlier.float().flatten(1)
    scale = now.square().sum(1).clamp_min(torch.finfo(torch.float32).tiny)
    return ((now - before).square().sum(1) / scale).mean().sqrt()


class GuidanceCarry:
    """Carries the guidance difference `d = e_c - e_u` over steps that compute the conditional branch only.

    Compare LinearAG in "Adaptive Guidance" (arXiv 2312.12487). The difference is small beside the predictions, so it
    is kept in float32.

    Args:
        order: `hold` keeps the latest difference; `linear` and `quadratic` follow the latest ones, as far as they
            lie at least two steps apart.
    """

    def __init__(self, order: str = "hold") -> None:
        self._forecast = Forecast(ORDERS[order], spread=2.0)

    def observe(self, step: int, unconditional: torch.Tensor, conditional: torch.Tensor) -> None:
        """Take in both predictions of a full step, (B, C, H, W) each."""
        self._forecast.observe(step, (conditional.float() - unconditional.float(),))

    def unconditional(self, step: int, conditional: torch.Tensor) -> torch.Tensor:
        """The unconditional prediction that a conditional one and the carried difference stand for."""
        (difference,) = self._forecast.at(step)
        return (conditional.float() - difference).to(conditional.dtype)
