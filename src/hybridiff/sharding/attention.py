"""Attention over the whole picture where each rank has the queries of its part only."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from diffusers.hooks import ModelHook
from diffusers.models.attention import AttentionModuleMixin
from diffusers.models.attention_processor import Attention, MochiAttention
from torch.overrides import TorchFunctionMode

from ..errors import UsageError
from .group import ShardGroup
from .place import current_group

ATTENTIONS = (Attention, MochiAttention, AttentionModuleMixin)
_ARGUMENTS = ("query", "key", "value", "attn_mask")


class AttentionHook(ModelHook):
    """Around an attention layer: where it attends to the picture, keys and values of all parts are gathered.

    Args:
        name: Of the layer.
        text_is_cut: Each rank has a part of the text, too; otherwise all of it.
    """

    def __init__(self, name: str, text_is_cut: bool) -> None:
        super().__init__()
        self._name, self._text_is_cut = name, text_is_cut

    def new_forward(self, module: torch.nn.Module, *args: Any, **kwargs: Any) -> Any:
        """Replaces the layer's forward (see `diffusers.hooks.ModelHook`)."""
        group, forward = current_group(), self.fn_ref.original_forward
        text = args[1] if len(args) > 1 else kwargs.get("encoder_hidden_states")
        if group is None or not (text is None or self._text_is_cut):
            return forward(*args, **kwargs)
        with _GatheredKeys(group, self._name) as gathered:
            answer = forward(*args, **kwargs)
        if not gathered.times:
            raise UsageError(
                f"{self._name} does not attend by scaled_dot_product_attention, so it cannot be shared by "
                f"{group.count} devices; use the attention backend 'native', or shards=1"
            )
        return answer


class _GatheredKeys(TorchFunctionMode):
    """While this lasts, keys and values are those of all parts, in order of the ranks.

    Attention does not ask in which order keys come, so that streams of text and picture may both be cut.
    """

    def __init__(self, group: ShardGroup, place: str) -> None:
        super().__init__()
        self._group, self._layer = group, place
        self.times = 0  # that the layer attended

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is not F.scaled_dot_product_attention:
            return func(*args, **kwargs)
        self.times += 1
        named = dict(zip(_ARGUMENTS, args, strict=False)) | kwargs
        rest = args[len(_ARGUMENTS) :]
        if rest or named.get("is_causal"):
            raise UsageError(f"{self._layer} attends in order (causally), which cannot be shared; use shards=1")
        mine = named["key"].shape[-2]
        named["key"], named["value"] = self._both(named["key"], named["value"])
        mask = named.get("attn_mask")
        if mask is not None and mask.shape[-1] == mine:
            named["attn_mask"] = self._group.concatenate(f"{self._place} mask", mask, -1)
        return func(**named)

    @property
    def _place(self) -> str:
        """Of the running attention, as a layer may attend to several things."""
        return f"{self._layer} {self.times}"

    def _both(self, key: torch.Tensor, value: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """All keys and values, by one message where their shapes allow it."""
        if key.shape != value.shape:
            return self._group.concatenate(self._place, key, -2), self._group.concatenate(self._place, value, -2)
        both = self._group.concatenate(self._place, torch.stack((key, value)), -2)
        return both[0], both[1]
