"""Attention over the tokens of all ranks: keys and values gathered, or heads exchanged.

By heads (Ulysses, Jacobs et al. 2023) ranks trade their tokens of all heads for all of some heads.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F

from .group import ShardGroup

LATENCY = 2**19
"""A message is taken to cost as much time as so many bytes of it, 0.5 MB: some 0.3 ms at 2 GB/s, 20 us at 25 GB/s."""


def can_be_by_heads(group: ShardGroup, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> bool:
    """Whether heads can be dealt out, as far as all ranks see it alike: lengths, which may differ, do not count.

    Args:
        group: The ranks.
        query: This rank's part, (batch, heads, tokens, channels); key and value likewise.
        key: See `query`.
        value: See `query`.
    """
    forms = {(tensor.dtype, tensor.ndim, *tensor.shape[:-2], tensor.shape[-1]) for tensor in (query, key, value)}
    return group.may_exchange and len(forms) == 1 and query.ndim == 4 and query.shape[1] % group.count == 0


def is_cheaper_by_heads(key: torch.Tensor, lengths: Sequence[int]) -> bool:
    """Whether two exchanges of heads take less time than all keys and values, gathered by one message.

    A rank receives up to two longest parts from each other rank for gathered ones, and otherwise four, of its heads
    only. So two ranks always gather.

    Args:
        key: This rank's part, (batch, heads, tokens, channels).
        lengths: Tokens of each rank.
    """
    ranks = len(lengths)
    part = key.nbytes // max(1, key.shape[-2]) * max(lengths)
    gathered = 2 * (ranks - 1) * part + LATENCY
    exchanged = 4 * (ranks - 1) * part // ranks + 2 * LATENCY
    return exchanged < gathered


def start_keys_and_values(
    group: ShardGroup, place: str, key: torch.Tensor, value: torch.Tensor
) -> Callable[[], tuple[torch.Tensor, ...]]:
    """Begin to gather those of all ranks, by one message.

    Args:
        group: The ranks.
        place: Names the attention.
        key: This rank's part, (..., tokens, channels); lengths may differ between ranks.
        value: Likewise.

    Returns:
        Waits for keys and values of all tokens.
    """
    hear = group.start_concatenate(place, torch.cat((key, value), -1), -2)
    return lambda: hear().tensor_split((key.shape[-1],), -1)


def attend_by_heads(
    group: ShardGroup, lengths: Sequence[int], tensors: Sequence[torch.Tensor], **options: Any
) -> torch.Tensor:
    """What this rank's queries make of all tokens, where heads are exchanged.

    Args:
        group: The ranks.
        lengths: Tokens of each rank.
        tensors: Queries, keys and values of this rank's part, (batch, heads, tokens, channels) each.
        options: Of `scaled_dot_product_attention`.
    """
    query, key, value = tokens_to_heads(group, tensors, lengths)
    return heads_to_tokens(group, F.scaled_dot_product_attention(query, key, value, **options), lengths)


def tokens_to_heads(group: ShardGroup, tensors: Sequence[torch.Tensor], lengths: Sequence[int]) -> list[torch.Tensor]:
    """All tokens of this rank's heads, (batch, heads / ranks, all tokens, channels), by one message for all tensors.

    Args:
        group: The ranks.
        tensors: Of one form: this rank's tokens, (batch, heads, tokens, channels).
        lengths: Tokens of each rank.
    """
    own = torch.stack([torch.stack(tensor.chunk(group.count, 1)) for tensor in tensors], 1)
    said = group.all_to_all(_padded(own, max(lengths)))  # (ranks, tensors, batch, heads / ranks, longest, channels)
    return list(torch.cat([part[..., :length, :] for part, length in zip(said, lengths, strict=True)], -2))


def heads_to_tokens(group: ShardGroup, tensor: torch.Tensor, lengths: Sequence[int]) -> torch.Tensor:
    """All heads of this rank's tokens, (batch, heads, tokens, channels): `tokens_to_heads` undone, for one tensor."""
    parts = torch.stack([_padded(part, max(lengths)) for part in torch.split(tensor, list(lengths), -2)])
    said = group.all_to_all(parts)  # (ranks, batch, heads / ranks, longest, channels)
    return said[..., : lengths[group.index], :].movedim(0, 1).flatten(1, 2)


def _padded(tensor: torch.Tensor, length: int) -> torch.Tensor:
    """Tokens, and behind them whatever is in memory, up to a length."""
    padded = tensor.new_empty(*tensor.shape[:-2], length, tensor.shape[-1])
    padded[..., : tensor.shape[-2], :] = tensor
    return padded
