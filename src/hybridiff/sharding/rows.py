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
    each, longer = divmod(rows // unit, group.count)
    first = group.index * each + min(group.index, longer)
    return slice(first * unit, rows if group.is_last else (first + each + (group.index < longer)) * unit)


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
    """A 2-D convolution with zeros around the picture; parts begin at multiples of its stride.

    Args:
        is_extended: What it gets has the rows around the part already (`GroupNormHook`).
    """

    def __init__(self, is_extended: bool = False) -> None:
        super().__init__()
        self._is_extended = is_extended

    def run(self, group: ShardGroup, module: Any, picture: torch.Tensor) -> torch.Tensor:
        above, aside = module.padding
        if not self._is_extended:
            overlap = module.kernel_size[0] - module.stride[0]
            picture = with_neighbours(group, picture, overlap, (above, above))
        return _convolve(module, picture, aside)


class DownsampleHook(RowsHook):
    """A downsampler that adds a row below and a column at the right, as encoders of VAEs have it."""

    def run(self, group: ShardGroup, module: Any, picture: torch.Tensor) -> torch.Tensor:
        convolution = module.conv
        extended = with_neighbours(group, picture, convolution.kernel_size[0] - convolution.stride[0], (0, 1))
        return _convolve(convolution, F.pad(extended, (0, 1)), 0)


class GroupNormHook(RowsHook):
    """Group normalization by the statistics of all parts together.

    Args:
        name: Of the layer.
        around: So many rows above and below the part are normalized, too, for the convolution that follows: they come
            with the statistics, in one message. Around the whole picture they are zeros.
    """

    def __init__(self, name: str, around: int = 0) -> None:
        super().__init__()
        self._name, self._around = name, around

    def run(self, group: ShardGroup, module: Any, picture: torch.Tensor) -> torch.Tensor:
        exact, around = _exact(picture), self._around
        own, shares = _statistics(exact, module.num_groups), self._shares(group, exact)
        if not around:
            scale, shift = _affine(module, picture, *_of_all(group.changed_alike(group.all_gather(own), own), shares))
            return exact.mul(scale).add_(shift).to(picture.dtype)
        said, rows = _gathered(group, own, _rows_to_say(picture, around, around))
        scale, shift = _affine(module, picture, *_of_all(group.changed_alike(said, own), shares))
        normal = _exact(_extended(group, picture, rows, (around, around))).mul_(scale).add_(shift).to(picture.dtype)
        for is_outside, begin in ((group.is_first, 0), (group.is_last, normal.shape[-2] - around)):
            if is_outside:
                normal.narrow(-2, begin, around).zero_()
        return normal

    def _shares(self, group: ShardGroup, picture: torch.Tensor) -> torch.Tensor:
        """How much of the picture each part is, (count, 1, 1)."""
        lengths = group.lengths(self._name, picture.shape[2:].numel())
        key = self, lengths, picture.dtype
        if key not in group.kept:
            sizes = torch.tensor(lengths, dtype=picture.dtype, device=picture.device)
            group.kept[key] = (sizes / sizes.sum()).view(-1, 1, 1)
        shares: torch.Tensor = group.kept[key]
        return shares


def with_neighbours(group: ShardGroup, picture: torch.Tensor, overlap: int, padding: tuple[int, int]) -> torch.Tensor:
    """A part with the rows around it that a convolution looks at.

    Args:
        group: The ranks.
        picture: This rank's part, (..., rows, columns).
        overlap: Rows that two neighbouring parts both look at: size of the kernel less stride.
        padding: Rows of zeros above and below the whole picture.
    """
    above = min(padding[0], overlap)
    said = group.all_gather(_rows_to_say(picture, above, overlap - above))
    return _extended(group, picture, said, padding)


def _rows_to_say(picture: torch.Tensor, above: int, below: int) -> torch.Tensor:
    """What the next part needs above its first row, and the part before below its last."""
    return torch.cat((picture.narrow(-2, picture.shape[-2] - above, above), picture.narrow(-2, 0, below)), -2)


def _extended(group: ShardGroup, picture: torch.Tensor, said: torch.Tensor, padding: tuple[int, int]) -> torch.Tensor:
    """A part with the rows around it, of what all parts said (`_rows_to_say`)."""
    rows = said.shape[-2]
    above = min(padding[0], rows)
    top = _blank(picture, padding[0]) if group.is_first else said[group.index - 1].narrow(-2, 0, above)
    bottom = _blank(picture, padding[1]) if group.is_last else said[group.index + 1].narrow(-2, above, rows - above)
    return torch.cat((top, picture, bottom), -2)


def _gathered(group: ShardGroup, one: torch.Tensor, other: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """What all ranks say of two things, in one message; the first may be of a wider dtype."""
    bits = one.view(-1).view(other.dtype)
    said = group.all_gather(torch.cat((bits, other.reshape(-1))))
    first = said[:, : len(bits)]
    if one.dtype is not other.dtype:
        first = first.contiguous().view(one.dtype)
    return first.view(-1, *one.shape), said[:, len(bits) :].view(-1, *other.shape)


def _blank(picture: torch.Tensor, rows: int) -> torch.Tensor:
    return picture.new_zeros(*picture.shape[:-2], rows, picture.shape[-1])


def _convolve(convolution: Any, picture: torch.Tensor, aside: int) -> torch.Tensor:
    weight, bias, groups = convolution.weight, convolution.bias, convolution.groups
    sizes = (0, aside), convolution.stride, convolution.dilation
    if _takes_onednn(picture) and picture.dtype is weight.dtype is torch.float32:
        # What conv2d does on a CPU, but for one small picture and one thread, where it is slower by half.
        return torch.mkldnn_convolution(picture, weight, bias, *sizes, groups)
    return F.conv2d(picture, weight, bias, sizes[1], sizes[0], sizes[2], groups)


def _takes_onednn(picture: torch.Tensor) -> bool:
    backend: Any = torch.backends.mkldnn
    is_there = picture.is_cpu and backend.is_available() and backend.enabled
    return is_there and not torch.is_autocast_enabled("cpu")  # which does not know it


def _exact(picture: torch.Tensor) -> torch.Tensor:
    return picture if picture.dtype is torch.float64 else picture.float()


def _statistics(features: torch.Tensor, groups: int) -> torch.Tensor:
    """Mean and variance of each group of channels of a part: (2, images, groups).

    Args:
        features: Of the part, (images, channels, ...).
        groups: Number of groups of channels.
    """
    (images, channels), pixels = features.shape[:2], features.shape[2:].numel()
    # Several times as fast as var_mean; without epsilon it gives the reciprocal deviation itself.
    _, mean, reciprocal = torch.native_group_norm(
        features.contiguous(), None, None, images, channels, pixels, groups, 0.0
    )
    return torch.stack((mean, reciprocal.pow(-2)))


def _of_all(said: torch.Tensor, shares: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and variance over all parts, (images, groups) each, of the statistics that they said."""
    means, variances = said.unbind(1)
    mean = (shares * means).sum(0)
    apart = means - mean
    variances = variances.clamp(min=0)  # a guess may fall below
    return mean, torch.addcmul(variances, apart, apart).mul_(shares).sum(0)


def _affine(
    module: Any, picture: torch.Tensor, mean: torch.Tensor, variance: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """What a picture is multiplied by, and what is added, so that it is normalized by given statistics.

    Args:
        module: The normalization.
        picture: (images, channels, ...).
        mean: (images, groups).
        variance: Likewise.
    """
    images, channels = picture.shape[:2]
    scale = (variance + module.eps).rsqrt_()[..., None].expand(-1, -1, channels // module.num_groups)
    if module.weight is not None:
        scale = scale * module.weight.to(mean.dtype).view(scale.shape[1:])
    shift = mean[..., None] * scale
    shift = -shift if module.bias is None else module.bias.to(mean.dtype).view(scale.shape[1:]) - shift
    form = images, channels, *(1 for _ in picture.shape[2:])
    return scale.reshape(form), shift.reshape(form)
