"""How alike two pictures are."""

from __future__ import annotations

import math
from typing import Any


def psnr(picture: Any, reference: Any) -> float:
    """Peak signal-to-noise ratio of two pictures in dB; infinite where they are identical.

    Args:
        picture: An image or array, such as (H, W, C), with values from 0 to 255.
        reference: Of the same size.
    """
    import numpy as np

    ours, theirs = np.asarray(picture, dtype=np.float64), np.asarray(reference, dtype=np.float64)
    if ours.shape != theirs.shape:
        raise ValueError(f"pictures of different sizes cannot be compared: {ours.shape} and {theirs.shape}")
    error = float(np.mean((ours - theirs) ** 2))
    return math.inf if error == 0.0 else 10.0 * math.log10(255.0**2 / error)


def structural_similarity(picture: Any, reference: Any) -> float:
    """Structural similarity (SSIM) of two pictures, at most 1.

    Args:
        picture: (H, W, C) with values from 0 to 1.
        reference: Of the same size.

    Raises:
        ModuleNotFoundError: torchmetrics is not installed.
    """
    try:
        from torchmetrics.functional.image import structural_similarity_index_measure
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("SSIM needs torchmetrics; install hybridiff[eval]") from error
    import torch

    ours, theirs = (torch.as_tensor(image).permute(2, 0, 1)[None] for image in (picture, reference))
    similarity: Any = structural_similarity_index_measure(ours, theirs, data_range=1.0)
    return float(similarity)
