"""Hooks that leave no trace: registered through diffusers, removed without rests."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from diffusers.hooks import HookRegistry, ModelHook


class AttachedHook:
    """A diffusers hook on a module, and the way back.

    Args:
        module: The module to hook.
        hook: What to run around its forward.
        name: Name of the hook in the module's registry.

    Raises:
        ValueError: the module has a hook of that name already.
    """

    def __init__(self, module: torch.nn.Module, hook: ModelHook, name: str) -> None:
        self._module = module
        self._name = name
        self._had_registry = hasattr(module, "_diffusers_hook")
        self._had_forward = "forward" in vars(module)
        HookRegistry.check_if_exists_or_initialize(module).register_hook(hook, name)
        self._reference = hook.fn_ref
        self._forward = hook.fn_ref.forward

    def relink(self) -> None:
        """Take our place again, if a hook that came before ours has been removed.

        diffusers (0.42) then puts the removed hook's forward in the place of ours, which would silently be passed by.
        """
        if self._reference.forward is not self._forward:
            self._reference.original_forward = self._reference.forward
            self._reference.forward = self._forward

    def remove(self) -> None:
        """Restore the module; hooks that others registered since stay in place."""
        registry = getattr(self._module, "_diffusers_hook", None)
        if registry is None:
            return
        self.relink()
        registry.remove_hook(self._name, recurse=False)
        if registry.hooks:
            return
        # The registry leaves itself and the original forward behind as attributes of the instance.
        if not self._had_registry:
            del self._module._diffusers_hook
        if not self._had_forward:
            vars(self._module).pop("forward", None)


class DenoiserHook(ModelHook):
    """The only door: answers each call of a denoiser, or of its ControlNet, through `answer`, while there is one.

    Attributes:
        answer: Called as `answer(network, forward, args, kwargs)`; None lets calls through to the network untouched.
        owner: What attached it, and can `detach()` it.
    """

    def __init__(self) -> None:
        super().__init__()
        self.owner: Any = None
        self.answer: Callable[[Any, Callable[..., Any], tuple[Any, ...], dict[str, Any]], Any] | None = None

    @torch.compiler.disable(recursive=False)  # type: ignore[no-untyped-call, untyped-decorator]
    def new_forward(self, module: torch.nn.Module, *args: Any, **kwargs: Any) -> Any:
        """Replaces the network's forward (see `diffusers.hooks.ModelHook`)."""
        forward = self.fn_ref.original_forward
        return forward(*args, **kwargs) if self.answer is None else self.answer(module, forward, args, kwargs)
