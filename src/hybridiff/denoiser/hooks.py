"""The hook on a denoiser, by which its calls are answered."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from diffusers.hooks import ModelHook

from .through import through


class DenoiserHook(ModelHook):
    """The only door: answers each call of a denoiser, or of its ControlNet, through `answer`, while there is one.

    Attributes:
        answer: Called as `answer(network, forward, args, kwargs)`; None lets calls through to the network untouched.
        compiled: The compiled network, through which the `forward` of an answer goes; None where there is none.
        owner: What attached it, and can `detach()` it.
    """

    def __init__(self) -> None:
        super().__init__()
        self.owner: Any = None
        self.answer: Callable[[Any, Callable[..., Any], tuple[Any, ...], dict[str, Any]], Any] | None = None
        self.compiled: Callable[..., Any] | None = None

    def new_forward(self, module: torch.nn.Module, *args: Any, **kwargs: Any) -> Any:
        """Replaces the network's forward (see `diffusers.hooks.ModelHook`)."""
        if self.answer is None:  # may be traced by torch.compile
            return self.fn_ref.original_forward(*args, **kwargs)
        return self._answer(module, args, kwargs)

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def _answer(self, module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        assert self.answer is not None
        forward = self.fn_ref.original_forward
        if self.compiled is not None:
            forward = through(self.compiled, module, forward)
        return self.answer(module, forward, args, kwargs)
