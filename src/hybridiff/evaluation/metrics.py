"""How alike two images are."""

from __future__ import annotations

import math
from typing import Any


def psnr(image: Any, reference: Any) -> float:
    """Peak signal-to-noise ratio of two images in dB; infinite where they are identical.

    Args:
        image: An image or array, such as (H, W, C), with values from 0 to 255.
        reference: Of the same size.
    """
    import numpy as np

    ours, theirs = np.asarray(image, dtype=np.float64), np.asarray(reference, dtype=np.float64)
    if ours.shape != theirs.shape:
        raise ValueError(f"images of different sizes cannot be compared: {ours.shape} and {theirs.shape}")
    error = float(np.mean((ours - theirs) ** 2))
    return math.inf if error == 0.0 else 10.0 * math.log10(255.0**2 / error)


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
    import torch

    ours, theirs = (torch.as_tensor(pixels).permute(2, 0, 1)[None] for pixels in (image, reference))
    similarity: Any = structural_similarity_index_measure(ours, theirs, data_range=1.0)
    return float(similarity)
