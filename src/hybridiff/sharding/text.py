"""Keys and values of a text, which parts of a picture need alike: computed once a run."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from .group import ShardGroup

_MOST_TEXTS = 4
"""Texts whose keys and values a rank keeps: those of the calls of a step, or of the branches that it has rows of."""


def made_of_text(group: ShardGroup, key: Hashable, layers: Sequence[Any], text: torch.Tensor) -> list[torch.Tensor]:
    """What some layers make of a text: what they made of the same one before, where nothing has changed since.

    Args:
        group: The ranks, which keep it until the run ends (`ShardGroup.kept`).
        key: Of what is kept.
        layers: That make keys or values.
        text: Their input.
    """
    if not all(map(_is_plain, layers)) or not _are_tracked(text, *(layer.weight for layer in layers)):
        return [layer(text) for layer in layers]
    made: list[_Made] = group.kept.setdefault(key, [])
    weights = [tensor for layer in layers for tensor in (layer.weight, layer.bias) if tensor is not None]
    inputs = text, *weights
    of = [text.shape, text.stride(), text.dtype, *((tensor.data_ptr(), tensor._version) for tensor in inputs)]
    for one in made:
        if one.of == of and [answer._version for answer in one.answers] == one.versions:
            return one.answers
    with torch.inference_mode(False), torch.no_grad():
        answers = [layer(text) for layer in layers]
        made[:] = [_Made(of, inputs, answers, [answer._version for answer in answers]), *made][:_MOST_TEXTS]
    return answers


@dataclass(frozen=True)
class _Made:
    """What layers made of a text.

    Attributes:
        of: What tells text and weights, and what is in them, from others.
        inputs: The same themselves, whose memory nothing else takes so long.
        answers: Keys or values.
        versions: Of the answers, which nobody may have changed since.
    """

    of: list[Any]
    inputs: tuple[torch.Tensor, ...]
    answers: list[torch.Tensor]
    versions: list[int]


def _is_plain(layer: Any) -> bool:
    """Whether nothing is around a layer that changes what it makes or its weights, as LoRA and offload may."""
    is_hooked = "forward" in vars(layer) or layer._forward_hooks or layer._forward_pre_hooks
    return type(layer) is nn.Linear and not is_hooked


def _are_tracked(*tensors: torch.Tensor) -> bool:
    """Whether changes of some tensors are seen, and neither gradients nor autocast come into it."""
    if torch.is_grad_enabled() or torch.is_autocast_enabled(tensors[0].device.type):
        return False
    return not any(tensor.is_inference() for tensor in tensors)
