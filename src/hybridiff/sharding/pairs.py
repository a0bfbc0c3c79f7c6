"""Where a convolution follows a group normalization, so that one message serves both."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from diffusers.models.resnet import ResnetBlock2D
from torch import nn


def normalized_convolutions(network: nn.Module) -> dict[nn.GroupNorm, nn.Conv2d]:
    """Convolutions whose input is a normalized picture, changed at most pixel by pixel such that zeros stay zeros."""
    return {
        norm: convolution
        for norm, act, convolution in _candidates(network)
        if type(norm) is nn.GroupNorm and _keeps_rows(convolution) and not act(torch.zeros(1)).any()
    }


def _candidates(network: Any) -> Iterator[tuple[Any, Any, Any]]:
    """Normalization, activation and convolution that follow each other."""
    for block in network.modules():
        if type(block) is ResnetBlock2D:
            if block.upsample is None and block.downsample is None:
                yield block.norm1, block.nonlinearity, block.conv1
            if block.time_embedding_norm == "default":
                yield block.norm2, block.nonlinearity, block.conv2
    if getattr(network, "conv_norm_out", None) is not None:
        yield network.conv_norm_out, network.conv_act, network.conv_out


def _keeps_rows(convolution: Any) -> bool:
    """Whether it makes as many rows as it is given, and looks at those around."""
    if type(convolution) is not nn.Conv2d or convolution.stride[0] != 1:
        return False
    around = convolution.padding[0]
    return isinstance(around, int) and around > 0 and convolution.kernel_size[0] == 2 * around + 1
