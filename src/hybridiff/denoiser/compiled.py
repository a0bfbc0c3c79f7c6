"""Networks under `torch.compile`: their hook answers outside of what is compiled, and evaluates rows inside of it."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch

from .adapters import as_called

Forward = Callable[..., Any]

_EAGER = (
    "the network is compiled as a whole but split here, so it ran uncompiled; compile its blocks instead "
    "(compile_repeated_blocks), or use cached steps or 'cfg'"
)


@contextlib.contextmanager
def around_compiled(pipe: Any, hooks: Mapping[torch.nn.Module, Any], is_split: bool) -> Iterator[list[str]]:
    """While this lasts, hooks are not in what `torch.compile` made of their networks, but around it.

    Args:
        pipe: The pipeline.
        hooks: A `DenoiserHook` for each of its networks.
        is_split: The network is split by hooks on its blocks, which would break a graph.

    Yields:
        What the user should know of it.
    """
    notes: list[str] = []
    with contextlib.ExitStack() as stack:
        for network, hook in hooks.items():
            compiled = stack.enter_context(uncompiled(as_called(pipe, network)))
            hook.compiled = None if is_split else compiled
            stack.callback(setattr, hook, "compiled", None)
            if is_split and compiled is not None:
                notes.append(_EAGER)
        yield notes


@contextlib.contextmanager
def uncompiled(module: torch.nn.Module) -> Iterator[Forward | None]:
    """While this lasts, calls of a network reach its forward, and the hooks there, as if it were not compiled.

    A hook in a graph would be traced with all that ranks tell each other, and would break it.

    Args:
        module: The network as a pipeline has it: compiled by `torch.compile(network)` or `network.compile()`, or not.

    Yields:
        The compiled network; None where there is none.
    """
    network = getattr(module, "_orig_mod", module)
    by_method: Forward | None = network._compiled_call_impl
    by_wrapper: Forward | None = module.forward if network is not module else None
    try:
        if by_method is not None:
            network._compiled_call_impl = None
        if by_wrapper is not None:
            module.forward = network.__call__
        yield by_wrapper or by_method
    finally:
        if by_method is not None:
            network._compiled_call_impl = by_method
        if by_wrapper is not None:
            module.forward = by_wrapper


def through(compiled: Forward, network: torch.nn.Module, forward: Forward) -> Forward:
    """A forward as it is in the compiled network, without the hooks around it.

    Args:
        compiled: The compiled network (`uncompiled`).
        network: The network itself.
        forward: What its hook calls.
    """

    @functools.wraps(forward)
    def run(*args: Any, **kwargs: Any) -> Any:
        hooked = vars(network)["forward"]
        vars(network)["forward"] = forward
        try:
            return compiled(*args, **kwargs)
        finally:
            vars(network)["forward"] = hooked

    run.is_compiled = True  # type: ignore[attr-defined]
    return run


def is_compiled(network: torch.nn.Module, forward: Forward) -> bool:
    """Whether a forward goes through something compiled: the network (`through`), or modules of it."""
    if getattr(forward, "is_compiled", False):
        return True
    return any(module._compiled_call_impl is not None for module in network.modules())
