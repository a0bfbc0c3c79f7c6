"""Convolutional networks by rows of the picture: rows of the neighbours, and statistics of the whole."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import torch
import torch.nn.functional as F
from diffusers.hooks import ModelHook

from .group import ShardGroup
from .place import current_group


def rows_of_part(rows: int, unit: int, group: ShardGroup) -> slice:
    """Which rows of a picture a rank has: parts begin at multiples of a unit, the last one takes the rest."""
    units = torch.arange(rows // unit).tensor_split(group.count)[group.index]
    return slice(int(units[0]) * unit, rows if group.is_last else (int(units[-1]) + 1) * unit)


class RowsHook(ModelHook, ABC):
    """Around a layer that has to know more of the picture than its part."""

    def new_forward(self, module: Any, picture: torch.Tensor) -> torch.Tensor:
        """Replaces the layer's forward (see `diffusers.hooks.ModelHook`)."""
        group = current_group()
        whole: torch.Tensor = (
            self.fn_ref.original_forward(picture) if group is None else self.run(group, module, picture)
        )
        return whole

    @abstractmethod
    def run(self, group: ShardGroup, module: Any, picture: torch.Tensor) -> torch.Tensor:
        """What the layer makes of a rank's part."""


class ConvolutionHook(RowsHook):
    """A 2-D convolution with zeros around the picture; parts begin at multiples of its stride."""

    def run(self, group: ShardGroup, module: Any, picture: torch.Tensor) -> torch.Tensor:
        above, aside = module.padding
        extended = with_neighbours(group, picture, module.kernel_size[0] - module.stride[0], (above, above))
        return _convolve(module, extended, aside)


class DownsampleHook(RowsHook):
    """A downsampler that adds a row below and a column at the right, as encoders of VAEs have it."""

    def run(self, group: ShardGroup, module: Any, picture: torch.Tensor) -> torch.Tensor:
        convolution = module.conv
        extended = with_neighbours(group, picture, convolution.kernel_size[0] - convolution.stride[0], (0, 1))
        return _convolve(convolution, F.pad(extended, (0, 1)), 0)


class GroupNormHook(RowsHook):
    """Group normalization by the statistics of all parts together."""

    def run(self, group: ShardGroup, module: Any, picture: torch.Tensor) -> torch.Tensor:
        images, channels = picture.shape[:2]
        exact = picture if picture.dtype is torch.float64 else picture.float()
        mean, variance = (
            value.repeat_interleave(channels // module.num_groups, 1).flatten()
            for value in _statistics(group, exact, module.num_groups)
        )
        weight, bias = (
            None if parameter is None else parameter.to(exact.dtype).repeat(images)
            for parameter in (module.weight, module.bias)
        )
        # Channels of all images, side by side, as one image: a single operation that applies given statistics.
        stacked = exact.reshape(1, images * channels, -1)
        normal = F.batch_norm(stacked, mean, variance, weight, bias, eps=module.eps)
        return normal.view(picture.shape).to(picture.dtype)


def with_neighbours(group: ShardGroup, picture: torch.Tensor, overlap: int, padding: tuple[int, int]) -> torch.Tensor:
    """A part with the rows around it that a convolution looks at.

    Args:
        group: The ranks.
        picture: This rank's part, (..., rows, columns).
        overlap: Rows that two neighbouring parts both look at: size of the kernel less stride.
        padding: Rows of zeros above and below the whole picture.
    """
    rows, above = picture.shape[-2], min(padding[0], overlap)
    below = overlap - above
    said = group.all_gather(torch.cat((picture[..., rows - above :, :], picture[..., :below, :]), -2))
    top = _blank(picture, padding[0]) if group.is_first else said[group.index - 1][..., :above, :]
    bottom = _blank(picture, padding[1]) if group.is_last else said[group.index + 1][..., above:, :]
    return torch.cat((top, picture, bottom), -2)


def _blank(picture: torch.Tensor, rows: int) -> torch.Tensor:
    return picture.new_zeros(*picture.shape[:-2], rows, picture.shape[-1])


def _convolve(convolution: Any, picture: torch.Tensor, aside: int) -> torch.Tensor:
    weight, bias, groups = convolution.weight, convolution.bias, convolution.groups
    return F.conv2d(picture, weight, bias, convolution.stride, (0, aside), convolution.dilation, groups)


def _statistics(group: ShardGroup, features: torch.Tensor, groups: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and variance of each group of channels, over the parts of all ranks, (images, groups) each.

    Args:
        group: The ranks.
        features: This rank's part, (images, channels, ...).
        groups: Number of groups of channels.
    """
    images, channels, pixels = *features.shape[:2], features[0, 0].numel()
    # Several times as fast as var_mean; without epsilon it gives the reciprocal deviation itself.
    _, mean, reciprocal = torch.native_group_norm(
        features.contiguous(), None, None, images, channels, pixels, groups, 0.0
    )
    own = torch.stack((mean, reciprocal.square().reciprocal(), torch.full_like(mean, pixels)))
    means, variances, sizes = group.changed_alike(group.all_gather(own), own).unbind(1)
    variances = variances.clamp(min=0)  # a guess may fall below
    shares = sizes / sizes.sum(0)
    mean = (shares * means).sum(0)
    return mean, (shares * (variances + (means - mean).square())).sum(0)
