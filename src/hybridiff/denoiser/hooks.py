"""Hooks that leave no trace: registered through diffusers, removed without rests."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from diffusers.hooks import HookRegistry, ModelHook

from .compiled import through


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
        self._hook = hook
        self._name = name
        self._had_registry = hasattr(module, "_diffusers_hook")
        self._had_forward = "forward" in vars(module)
        self._register()

    def relink(self) -> None:
        """Take our place again, where others have removed their hooks and ours with them.

        diffusers (0.42) puts the forward of a removed hook that came before ours in the place of ours; accelerate puts
        back what it found where it came before us, after every call with model offload. Ours would silently be passed by.
        """
        if self._reference.forward is not self._forward:
            self._reference.original_forward = self._reference.forward
            self._reference.forward = self._forward
        if not self._is_called():
            found = self._module.forward
            self._module._diffusers_hook.remove_hook(self._name, recurse=False)
            self._module.forward = found  # not what was there when we came
            self._register()

    def remove(self) -> None:
        """Restore the module; hooks that others registered since stay in place."""
        registry = getattr(self._module, "_diffusers_hook", None)
        if registry is None:
            return
        self.relink()
        outermost = self._module.forward
        registry.remove_hook(self._name, recurse=False)
        if outermost is not self._hooked:
            self._leave_inside(outermost)
        if registry.hooks:
            return
        # The registry leaves itself and the original forward behind as attributes of the instance.
        if not self._had_registry:
            del self._module._diffusers_hook
        if not self._had_forward and outermost is self._hooked:
            vars(self._module).pop("forward", None)

    def _register(self) -> None:
        HookRegistry.check_if_exists_or_initialize(self._module).register_hook(self._hook, self._name)
        self._reference = self._hook.fn_ref
        self._forward = self._hook.fn_ref.forward
        self._hooked = self._module.forward

    def _is_called(self) -> bool:
        """Whether calls of the module still come by, through whatever others have put around us."""
        forward = self._module.forward
        while forward is not None and forward is not self._hooked:
            forward = getattr(forward, "__wrapped__", None)
        return forward is self._hooked

    def _leave_inside(self, outermost: Any) -> None:
        """Leave what others have put around us in place, without us; where we cannot, our hook lets calls through."""
        self._module.forward = outermost
        if vars(self._module).get("_old_forward") is self._hooked:  # what accelerate calls
            self._module._old_forward = self._reference.original_forward


class DenoiserHook(ModelHook):
    """The only door: answers each call of the denoiser through `answer`, while there is one.

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
