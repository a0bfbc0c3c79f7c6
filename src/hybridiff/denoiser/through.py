"""Modules under `torch.compile` and hooks on them, which are around what is compiled: traced, they would break it."""

from __future__ import annotations

import contextlib
import functools
import threading
from collections.abc import Callable, Iterator
from typing import Any

import torch

Forward = Callable[..., Any]

_THREAD = threading.local()


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
        _running().append((module, hooked, forward))
        try:
            return compiled(*args, **kwargs)
        finally:
            _running().pop()
            vars(module)["forward"] = hooked

    run.is_compiled = True  # type: ignore[attr-defined]
    return run


@contextlib.contextmanager
def left_to_others() -> Iterator[None]:
    """While this lasts, other threads find the hooks around modules whose graphs this one is in."""
    for module, hooked, _ in reversed(_running()):
        vars(module)["forward"] = hooked
    try:
        yield
    finally:
        for module, _, forward in _running():
            vars(module)["forward"] = forward


def _running() -> list[tuple[torch.nn.Module, Forward, Forward]]:
    """Modules whose graphs this thread is in, each with its forward outside and inside of them."""
    calls: list[tuple[torch.nn.Module, Forward, Forward]] = vars(_THREAD).setdefault("calls", [])
    return calls


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


def is_compiled(forward: Forward | None) -> bool:
    """Whether a forward goes through the graph of its module as a whole (`through`)."""
    return getattr(forward, "is_compiled", False)


def compiled_blocks(network: torch.nn.Module, prefix: str = "") -> Iterator[tuple[str, torch.nn.Module]]:
    """The modules of a network that are compiled, by name; those within others are left out."""
    for name, module in network.named_children():
        if _has_graph(module):
            yield prefix + name, module
        else:
            yield from compiled_blocks(module, f"{prefix}{name}.")


def _has_graph(module: torch.nn.Module) -> bool:
    return (
        module._compiled_call_impl is not None
        or "_orig_mod" in module._modules  # `torch.compile(module)` in its place
        or is_compiled(vars(module).get("forward"))
    )
