"""How alike two images are."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from .perceptual import lpips_at_hand

HIGHEST_PSNR = 100.0
"""In dB: that of identical images, which would be infinite."""

MOST_DECIBELS = 72.0
"""An image counts for no more: nearer ones look the same, and exact ones would outweigh all others in a mean."""


def psnr(image: Any, reference: Any) -> float:
    """Peak signal-to-noise ratio of two images in dB; infinite where they are identical.

    Args:
        image: An image or array, such as (H, W, C), with values from 0 to 255.
        reference: Of the same size.
    """
    ours, theirs = np.asarray(image, dtype=np.float64), np.asarray(reference, dtype=np.float64)
    if ours.shape != theirs.shape:
        raise ValueError(f"images of different sizes cannot be compared: {ours.shape} and {theirs.shape}")
    error = float(np.mean((ours - theirs) ** 2))
    return math.inf if error == 0.0 else 10.0 * math.log10(255.0**2 / error)


def capped_psnr(image: Any, reference: Any) -> float:
    """The PSNR in dB of two images with values from 0 to 1, at most `HIGHEST_PSNR`."""
    return min(HIGHEST_PSNR, psnr(image * 255.0, reference * 255.0))


def counted_psnr(values: Sequence[float]) -> float:
    """The mean of the PSNRs of some images in dB, of which each counts for `MOST_DECIBELS` at most."""
    return statistics.mean(min(value, MOST_DECIBELS) for value in values)


def structural_similarity(image: Any, reference: Any) -> float | None:
    """Structural similarity (SSIM) of two images, at most 1; None where torchmetrics is not installed.

    Args:
        image: (H, W, C) with values from 0 to 1.
        reference: Of the same size.
    """
    try:
        from torchmetrics.functional.image import structural_similarity_index_measure
    except ModuleNotFoundError:
        return None
    ours, theirs = (torch.as_tensor(pixels).permute(2, 0, 1)[None] for pixels in (image, reference))
    similarity: Any = structural_similarity_index_measure(ours, theirs, data_range=1.0)
    return float(similarity)


def likeness(images: Sequence[Any], references: Sequence[Any]) -> dict[str, float | None]:
    """How alike images are to others, (H, W, C) from 0 to 1 each: means of PSNR, SSIM and LPIPS.

    What cannot be computed here is None; see `structural_similarity` and `perceptual_distance`.
    """
    pairs = list(zip(images, references, strict=True))
    found: dict[str, list[float | None]] = {
        "psnr": [capped_psnr(*pair) for pair in pairs],
        "ssim": [structural_similarity(*pair) for pair in pairs],
        "lpips": [perceptual_distance(*pair) for pair in pairs],
    }
    known = {name: [value for value in values if value is not None] for name, values in found.items()}
    return {name: math.fsum(values) / len(values) if values else None for name, values in known.items()}


def worst_tenth(values: Sequence[float], is_distance: bool = False) -> float:
    """The mean of the worst tenth of some values, of the worst one at least.

    Args:
        values: At least one.
        is_distance: Whether less is better.
    """
    return statistics.fmean(sorted(values, reverse=is_distance)[: max(1, len(values) // 10)])


def perceptual_distance(image: Any, reference: Any) -> float | None:
    """LPIPS (AlexNet) of two images; None where torchmetrics or the weights are not on this machine. Loads nothing.

    Args:
        image: (H, W, C) with values from 0 to 1.
        reference: Of the same size.
    """
    distance = lpips_at_hand()
    return None if distance is None else distance(image, reference)
