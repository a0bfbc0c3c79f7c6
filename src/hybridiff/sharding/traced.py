"""Attention layers in compiled blocks: an operator in their graphs says and hears what ranks tell each other there.

A hook would break a graph, and a group that is read while it is traced would stay in it. So the forward of a layer is
traced with the operator `attend` in place of `scaled_dot_product_attention`, the same for whole and shared evaluations:
`attend` asks at each call whose part runs.
"""

from __future__ import annotations

import contextlib
import functools
import types
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from diffusers.hooks import ModelHook
from torch.overrides import TorchFunctionMode

from .attention import WholeAttention, attend_to_whole, cannot_be_shared
from .place import begin_block, current_group, next_place

with torch.inference_mode(False):
    _ORDER = torch.zeros(1, device="cpu")
"""Every `attend` is said to change this, so that those of a graph run in the same order on all ranks."""

_SCHEMAS = {
    "attend": "(Tensor query, Tensor key, Tensor value, Tensor? mask, float dropout, bool causal, float? scale, "
    "bool gqa, Tensor(a!) order) -> Tensor",
    "refuse": "(Tensor(a!) order) -> ()",
}

_TENSORS: dict[str, Any] = dict.fromkeys(("query", "key", "value", "attn_mask"))
_ARGUMENTS = _TENSORS | {"dropout_p": 0.0, "is_causal": False, "scale": None, "enable_gqa": False}
"""Of `scaled_dot_product_attention`, in order, with their defaults."""


class PlaceHook(ModelHook):
    """Around a compiled block: by its name and their order within it ranks know the attentions there.

    Args:
        name: Of the block.
    """

    def __init__(self, name: str) -> None:
        super().__init__()
        self._name = name

    def new_forward(self, module: torch.nn.Module, *args: Any, **kwargs: Any) -> Any:
        """Replaces the block's forward (see `diffusers.hooks.ModelHook`)."""
        begin_block(self._name)
        return self.fn_ref.original_forward(*args, **kwargs)


class TracedAttention:
    """The forward of an attention layer as graphs may have it, and the way back; see `AttentionHook`.

    It is a method, as whatever else a module calls is taken for another program in each block.

    Args:
        layer: The layer, whose forward nobody has replaced.
        text_is_cut: Each rank has a part of the text, too; otherwise all of it.
    """

    def __init__(self, layer: Any, text_is_cut: bool) -> None:
        _register_operators()
        self._layer = layer
        layer.forward_by_itself = layer.forward
        layer.forward = types.MethodType(_attend_to_both if text_is_cut else _attend_to_picture, layer)

    def remove(self) -> None:
        """Restore the layer."""
        del self._layer.forward, self._layer.forward_by_itself


def _attend_to_picture(layer: Any, *args: Any, **kwargs: Any) -> Any:
    text = args[1] if len(args) > 1 else kwargs.get("encoder_hidden_states")
    forward = layer.forward_by_itself if text is not None else functools.partial(_attend_to_both, layer)
    return forward(*args, **kwargs)


def _attend_to_both(layer: Any, *args: Any, **kwargs: Any) -> Any:
    if not torch.compiler.is_compiling():  # but measured, or in a form for which no more graphs are made
        group = current_group()
        if group is None:
            return layer.forward_by_itself(*args, **kwargs)
        return attend_to_whole(group, next_place(), layer.forward_by_itself, args, kwargs)
    replaced = _Replaced()
    with replaced:
        answer = layer.forward_by_itself(*args, **kwargs)
    if not replaced.times:
        torch.ops.hybridiff.refuse(_ORDER)
    return answer


class _Replaced(TorchFunctionMode):
    """While a layer is traced, the operator takes the place of attention."""

    def __init__(self) -> None:
        super().__init__()
        self.times = 0  # that the layer attended

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is torch.Tensor.unflatten:  # torch.compile knows it by name, and not by its Python function
            return args[0].unflatten(*args[1:], **(kwargs or {}))
        if func is not F.scaled_dot_product_attention:
            return func(*args, **(kwargs or {}))
        self.times += 1
        return _traced(args, kwargs or {})


def _traced(args: tuple[Any, ...], kwargs: dict[str, Any]) -> torch.Tensor:
    named = _ARGUMENTS | dict(zip(_ARGUMENTS, args, strict=False)) | kwargs
    kind = named["query"].device.type
    if torch.is_autocast_enabled(kind):  # which does not know the operator
        narrow = torch.get_autocast_dtype(kind)
        for name in _TENSORS:
            if named[name] is not None and named[name].is_floating_point():
                named[name] = named[name].to(narrow)
    tokens_first: torch.Tensor = torch.ops.hybridiff.attend(*named.values(), _ORDER)
    return tokens_first.transpose(-3, -2)


def _attend(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *options: Any) -> torch.Tensor:
    """Attention of this rank's tokens to those of all ranks, tokens before heads: strides that graphs may rely on."""
    named = dict(zip(_ARGUMENTS, (query, key, value, *options[:-1]), strict=True))
    group, mask = current_group(), named["attn_mask"]
    whole: contextlib.AbstractContextManager[Any] = contextlib.nullcontext()
    if group is not None:
        whole = WholeAttention(group, next_place())
        if mask is not None:  # sent as it is, maybe in the background, when its memory is the graph's again
            named["attn_mask"] = mask.clone()
    with whole:
        return F.scaled_dot_product_attention(**named).transpose(-3, -2).contiguous()


def _shape_of_attend(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *rest: Any) -> torch.Tensor:
    *batch, heads, tokens, _ = query.shape
    return query.new_empty((*batch, tokens, heads, value.shape[-1]))


def _refuse(order: torch.Tensor) -> None:
    """Whatever attends in another way may do so in whole evaluations."""
    group = current_group()
    if group is not None:
        raise cannot_be_shared(next_place(), group)


@functools.cache
def _register_operators() -> Any:
    """The operators are there from now on: they last as long as what this returns."""
    library: Any = torch.library.Library("hybridiff", "DEF")  # type: ignore[no-untyped-call]
    # A CUDA graph would repeat the messages of the evaluation in which it was recorded.
    disable: Any = torch.compiler.disable
    tags = tuple(filter(None, [getattr(torch.Tag, "cudagraph_unsafe", None)]))
    for (name, schema), run in zip(_SCHEMAS.items(), (_attend, _refuse), strict=True):
        library.define(f"{name}{schema}", tags=tags)
        library.impl(name, disable(run), "CompositeExplicitAutograd")
    torch.library.register_fake("hybridiff::attend", _shape_of_attend, lib=library)
    torch.library.register_fake("hybridiff::refuse", lambda order: None, lib=library)
    return library
