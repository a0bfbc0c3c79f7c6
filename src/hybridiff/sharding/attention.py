"""Attention over the whole picture where each rank has the tokens of its part only."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch.nn.functional as F
from diffusers.hooks import ModelHook
from diffusers.models.attention import AttentionModuleMixin
from diffusers.models.attention_processor import Attention, MochiAttention
from torch.overrides import TorchFunctionMode

from ..errors import UsageError
from .group import ShardGroup
from .heads import attend_by_heads, can_be_by_heads, is_cheaper_by_heads, start_keys_and_values
from .place import current_group
from .plain import attend_plainly, attends_plainly

ATTENTIONS = (Attention, MochiAttention, AttentionModuleMixin)
_TENSORS = ("query", "key", "value")
_ARGUMENTS = (*_TENSORS, "attn_mask")

_TEXT = "encoder_hidden_states"


class AttentionHook(ModelHook):
    """Around an attention layer: where it attends to the picture, it attends to that of all parts.

    Args:
        name: Of the layer.
        text_is_cut: Each rank has a part of the text, too; otherwise all of it.
    """

    def __init__(self, name: str, text_is_cut: bool) -> None:
        super().__init__()
        self._name, self.text_is_cut = name, text_is_cut

    def new_forward(self, module: Any, *args: Any, **kwargs: Any) -> Any:
        """Replaces the layer's forward (see `diffusers.hooks.ModelHook`)."""
        group, forward = current_group(), self.fn_ref.original_forward
        if group is None:
            return forward(*args, **kwargs)
        text = args[1] if len(args) > 1 else kwargs.get(_TEXT)
        is_whole = text is not None and not self.text_is_cut
        further = [value for name, value in kwargs.items() if name != _TEXT and value is not None]
        is_known = len(args) == 1 and args[0].ndim == 3 and not further and (is_whole or text is None)
        if is_known and attends_plainly(module, forward):
            return attend_plainly(group, self._name, module, args[0], text)
        if is_whole:
            return forward(*args, **kwargs)
        return attend_to_whole(group, self._name, forward, args, kwargs)


def attend_to_whole(
    group: ShardGroup, layer: str, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> Any:
    """What the forward of an attention layer makes of a rank's part where it attends to all parts.

    Raises:
        UsageError: it does not attend in a way that is known.
    """
    with WholeAttention(group, layer) as whole:
        answer = forward(*args, **kwargs)
    if not whole.times:
        raise cannot_be_shared(layer, group)
    return answer


def cannot_be_shared(layer: str, group: ShardGroup) -> UsageError:
    """That a layer attends in another way than hooks know."""
    return UsageError(
        f"{layer} does not attend by scaled_dot_product_attention, so it cannot be shared by {group.count} devices; "
        "use the attention backend 'native', or shards=1"
    )


class WholeAttention(TorchFunctionMode):
    """While this lasts, attention is over the tokens of all parts, in order of the ranks.

    Either keys and values are gathered, or ranks exchange heads, whichever is cheaper: the same but for rounding.
    Attention does not ask in which order keys come, so that streams of text and picture may both be cut.
    """

    def __init__(self, group: ShardGroup, layer: str) -> None:
        super().__init__()
        self._group, self._layer = group, layer
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
        lengths = self._lengths_by_heads(named)
        if lengths is None:
            return func(**self._gathered(named))
        return attend_by_heads(self._group, lengths, [named.pop(name) for name in _TENSORS], **named)

    @property
    def _place(self) -> str:
        """Of the running attention, as a layer may attend to several things."""
        return f"{self._layer} {self.times}"

    def _lengths_by_heads(self, named: dict[str, Any]) -> tuple[int, ...] | None:
        """Tokens of each rank where heads are exchanged; None where keys and values are gathered."""
        query, key, value = (named[name] for name in _TENSORS)
        is_plain = named.get("attn_mask") is None and not named.get("enable_gqa")
        if not is_plain or not can_be_by_heads(self._group, query, key, value):
            return None
        lengths = self._group.lengths(self._place, key.shape[-2])
        if not is_cheaper_by_heads(key, lengths):
            return None
        # Each rank may have as many queries as keys by chance: all have to.
        return lengths if self._group.lengths(f"{self._place} queries", query.shape[-2]) == lengths else None

    def _gathered(self, named: dict[str, Any]) -> dict[str, Any]:
        """The arguments with keys, values and mask of all parts."""
        key, value, mask = named["key"], named["value"], named.get("attn_mask")
        named["key"], named["value"] = start_keys_and_values(self._group, self._place, key, value)()
        if mask is not None and mask.shape[-1] == key.shape[-2]:
            named["attn_mask"] = self._group.concatenate(f"{self._place} mask", mask, -1)
        return named
