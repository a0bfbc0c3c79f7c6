"""Classifier-free guidance seen from outside the pipeline: pure tensor functions."""

from __future__ import annotations

from collections.abc import Sequence

import torch


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


def discrepancy_between(prediction: torch.Tensor, branches: int) -> torch.Tensor:
    """The discrepancy of the outer branches of a prediction, (1,), as what is read with the status.

    Args:
        prediction: The rows of each branch, the unconditional one first, (branches * B, ...).
        branches: How many.
    """
    parts = prediction.chunk(branches)
    return discrepancy(parts[0], parts[-1]).reshape(1)


def drift(prediction: torch.Tensor, earlier: torch.Tensor) -> torch.Tensor:
    """How far a prediction moved: `|p - q| / |p|` in the 2-norm of each row, as root mean square over the rows.

    Args:
        prediction: All rows of a step, (rows, ...).
        earlier: Those of an earlier step.

    Returns:
        A 0-d float32 tensor on the device of the predictions.
    """
    now, before = prediction.float().flatten(1), earlier.float().flatten(1)
    scale = now.square().sum(1).clamp_min(torch.finfo(torch.float32).tiny)
    return ((now - before).square().sum(1) / scale).mean().sqrt()


def classifier_free(scale: float) -> tuple[float, float]:
    """By what classifier-free guidance multiplies the branches, unconditional first: `e_u + w (e_c - e_u)`."""
    return 1.0 - scale, scale


def guided(predictions: torch.Tensor, coefficients: Sequence[float]) -> torch.Tensor:
    """What guidance makes of its branches, in float32.

    Args:
        predictions: The rows of each branch, one branch after the other, (branches * B, ...).
        coefficients: By what guidance multiplies each branch; their sum is 1.
    """
    first, *others = predictions.float().chunk(len(coefficients))
    for coefficient, branch in zip(coefficients[1:], others, strict=True):
        first = first + coefficient * (branch - predictions[: len(branch)].float())
    return first
