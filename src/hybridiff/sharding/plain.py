"""Attention of U-Nets by parts of the picture: as stock, but that messages travel while queries are computed."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from diffusers.models.attention_processor import Attention, AttnProcessor2_0

from .group import ShardGroup
from .heads import attend_by_heads, can_be_by_heads, is_cheaper_by_heads, start_keys_and_values
from .text import made_of_text

_STOCK: Any = AttnProcessor2_0.__call__
"""What such layers run, unless somebody has put something else in its place."""


def attends_plainly(attention: Any, forward: Any) -> bool:
    """Whether an attention layer does what `attend_plainly` knows, given tokens and maybe a text.

    Args:
        attention: The layer.
        forward: Its own, unhooked.
    """
    return (
        type(attention.processor).__call__ is _STOCK
        and getattr(forward, "__func__", None) is Attention.forward
        and attention.spatial_norm is attention.group_norm is attention.norm_cross is None
        and attention.norm_q is attention.norm_k is None
        and not attention.residual_connection
        and attention.rescale_output_factor == 1
    )


def attend_plainly(
    group: ShardGroup, place: str, attention: Any, picture: torch.Tensor, text: torch.Tensor | None
) -> torch.Tensor:
    """What such a layer makes of a rank's part.

    Args:
        group: The ranks.
        place: Names the layer.
        attention: The layer.
        picture: This rank's tokens, (images, tokens, channels).
        text: All of it, likewise; without one the layer attends to the tokens of all ranks.
    """
    if text is None:
        attended = _attended_to_picture(group, place, attention, picture)
    else:
        query = attention.to_q(picture)
        key, value = made_of_text(group, attention, (attention.to_k, attention.to_v), text)
        attended = _attended(attention, query, key, value)
    answer = attended.transpose(1, 2).flatten(2)
    for layer in attention.to_out:
        answer = layer(answer)
    return answer


def _attended_to_picture(group: ShardGroup, place: str, attention: Any, picture: torch.Tensor) -> torch.Tensor:
    key, value = attention.to_k(picture), attention.to_v(picture)
    by_heads = _by_heads(attention, key)
    if can_be_by_heads(group, by_heads, by_heads, by_heads):  # queries and values are of the form of keys
        lengths = group.lengths(place, picture.shape[1])
        if is_cheaper_by_heads(key, lengths):
            tensors = [_by_heads(attention, tensor) for tensor in (attention.to_q(picture), key, value)]
            return attend_by_heads(group, lengths, tensors)
    hear = start_keys_and_values(group, place, key, value)
    query = attention.to_q(picture)
    return _attended(attention, query, *hear())


def _attended(attention: Any, *tensors: torch.Tensor) -> torch.Tensor:
    """(images, heads, tokens, channels) of queries, keys and values, (images, tokens, heads x channels)."""
    query, key, value = (_by_heads(attention, tensor) for tensor in tensors)
    return F.scaled_dot_product_attention(query, key, value)


def _by_heads(attention: Any, tensor: torch.Tensor) -> torch.Tensor:
    images, tokens, channels = tensor.shape
    return tensor.view(images, tokens, attention.heads, channels // attention.heads).transpose(1, 2)
