"""Hooks that leave no trace: registered through diffusers, removed without rests."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from diffusers.hooks import HookRegistry, ModelHook

from .through import expose


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

        diffusers (0.42) puts the forward of a removed hook that came before ours in the place of ours. Accelerate, if
        it came before us, puts back what it found after every call with model offload. We would silently be passed by.
        Where it came after us, we go around it: inside of its hooks weights are there during a call only.
        """
        if self._reference.forward is not self._forward:
            self._reference.original_forward = self._reference.forward
            self._reference.forward = self._forward
        if not self._is_called() or self._is_in_accelerate:
            self._had_forward = self._had_forward or self._is_in_accelerate
            found = self._module.forward
            self._registry.remove_hook(self._name, recurse=False)
            self._leave_inside(found)  # not what was there when we came
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
        self._registry: Any = HookRegistry.check_if_exists_or_initialize(self._module)
        self._registry.register_hook(self._hook, self._name)
        self._reference = self._hook.fn_ref
        self._forward = self._hook.fn_ref.forward
        self._hooked = self._module.forward

    def _is_called(self) -> bool:
        """Whether calls of the module still come by, through whatever others have put around us."""
        forward: Any = self._module.forward
        while forward is not None and forward is not self._hooked:
            forward = getattr(forward, "__wrapped__", None)
        return forward is not None

    @property
    def _is_in_accelerate(self) -> bool:
        """Whether accelerate calls us."""
        return vars(self._module).get("_old_forward") is self._hooked

    def _leave_inside(self, outermost: Any) -> None:
        """Leave what others have put around us in place, without us; where we cannot, our hook lets calls through."""
        self._module.forward = outermost
        if self._is_in_accelerate:
            self._module._old_forward = self._reference.original_forward


class AttachedHooks:
    """Hooks on several modules, all of them or none, and the way back; they are around what is compiled of each.

    Args:
        hooks: Modules, hooks and names, see `AttachedHook`; none to begin with unless given.
    """

    def __init__(self, hooks: Iterable[tuple[torch.nn.Module, ModelHook, str]] = ()) -> None:
        self._undo: list[Callable[[], None]] = []
        self._modules: list[torch.nn.Module] = []
        try:
            for module, hook, name in hooks:
                self._undo.append(expose(module))
                self._undo.append(AttachedHook(module, hook, name).remove)
                self._modules.append(module)
        except BaseException:
            self.remove()
            raise

    def __bool__(self) -> bool:
        return bool(self._undo)

    @property
    def are_traced(self) -> bool:
        """Whether some module was compiled since, hook and all."""
        return any(module._compiled_call_impl is not None for module in self._modules)

    def remove(self) -> None:
        """Restore the modules; nothing is left behind."""
        for undo in reversed(self._undo):
            undo()
        self._undo, self._modules = [], []


def hooks_of(module: torch.nn.Module) -> dict[str, ModelHook]:
    """The diffusers hooks of a module, ours and those of others, by name."""
    hooks: dict[str, ModelHook] = getattr(getattr(module, "_diffusers_hook", None), "hooks", {})
    return hooks
