"""How many ranks should share the rows of an evaluation."""

from __future__ import annotations

import math

import torch

LEAST_PIXELS = 4096
"""A latent is cut unasked from so many pixels on, 64 x 64: below, ranks wait for messages more than they compute."""

_GAIN = 0.9
"""So many ranks are taken to be `shards ** _GAIN` times as fast as one, where their number is chosen."""


def is_large(sample: torch.Tensor) -> bool:
    """Whether a noisy sample, of pixels or of tokens, is cut unasked."""
    packed = 4 if sample.ndim == 3 else 1  # tokens of 2 x 2 pixels
    channels = sample.shape[-1] if sample.ndim == 3 else sample.shape[1]
    return sample.numel() // (sample.shape[0] * channels) * packed >= LEAST_PIXELS


def choose_shards(ranks: int, rows: int, most: int, wanted: int | None = None) -> int:
    """How many ranks should share rows so that the slowest group is done earliest: images first, then branches.

    Args:
        ranks: Number of ranks.
        rows: Rows of the evaluation.
        most: Shards that there can be.
        wanted: As many as were asked for; more only where groups of so many would have nothing to do.
    """
    least = wanted or 1
    if wanted is not None and ranks // wanted <= rows:
        return wanted
    possible = [shards for shards in range(least, min(ranks, most) + 1, least) if ranks % shards == 0]
    return min(possible, key=lambda shards: (math.ceil(rows / (ranks // shards)) / shards**_GAIN, shards))
