"""Modules under `torch.compile` and hooks on them, which are around what is compiled: traced, they would break it."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch

Forward = Callable[..., Any]


def through(compiled: Forward, module: torch.nn.Module, forward: Forward) -> Forward:
    """A forward as it is in the compiled module, without the hooks around it.

    Args:
        compiled: The compiled module.
        module: The module itself, whose forward is hooked.
        forward: What its hook calls.
    """

    @functools.wraps(forward)
    def run(*args: Any, **kwargs: Any) -> Any:
        hooked = vars(module)["forward"]
        vars(module)["forward"] = forward
        try:
            return compiled(*args, **kwargs)
        finally:
            vars(module)["forward"] = hooked

    run.is_compiled = True  # type: ignore[attr-defined]
    return run


def expose(module: torch.nn.Module) -> Callable[[], None]:
    """Have calls of a module that was compiled by `module.compile()` reach its forward, which goes through the graph.

    Returns:
        Undoes it, once hooks that have come since are gone.
    """
    compiled = module._compiled_call_impl
    if compiled is None:
        return lambda: None
    own, inside = vars(module).get("forward"), through(compiled, module, module.forward)
    module._compiled_call_impl, module.forward = None, inside

    def undo() -> None:
        if vars(module).get("forward") is not inside:
            return  # somebody else's hook stays, around the graph as ours were
        module._compiled_call_impl = compiled
        del vars(module)["forward"]
        if own is not None:
            vars(module)["forward"] = own

    return undo


def is_compiled(network: torch.nn.Module, forward: Forward) -> bool:
    """Whether a forward goes through something compiled: the network (`through`), or modules of it."""
    return getattr(forward, "is_compiled", False) or any(
        module._compiled_call_impl is not None
        or "_orig_mod" in module._modules  # `torch.compile(module)` in its place
        or getattr(vars(module).get("forward"), "is_compiled", False)
        for module in network.modules()
    )
