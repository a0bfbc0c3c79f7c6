"""Networks under `torch.compile`: their hook answers outside of what is compiled, and evaluates rows inside of it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch

from .adapters import as_called
from .through import Forward, compiled_blocks

_EAGER = (
    "the network is compiled as a whole, but its layers run apart here, so it ran uncompiled; compile its blocks "
    "instead (compile='blocks'), or use cached steps or 'cfg'"
)


@contextlib.contextmanager
def around_compiled(pipe: Any, hooks: Mapping[torch.nn.Module, Any], is_split: bool) -> Iterator[list[str]]:
    """While this lasts, hooks are not in what `torch.compile` made of their networks, but around it.

    Args:
        pipe: The pipeline.
        hooks: A `DenoiserHook` for each of its networks.
        is_split: There are hooks on its blocks, which would break a graph.

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


def how_compiled(pipe: Any, networks: Sequence[torch.nn.Module]) -> str:
    """How a pipeline's denoisers are compiled: whole, blocks (any modules of theirs) or none."""
    called = [as_called(pipe, network) for network in networks]
    if any(
        module is not network or network._compiled_call_impl for module, network in zip(called, networks, strict=True)
    ):
        return "whole"
    return "blocks" if any(any(compiled_blocks(network)) for network in networks) else "none"
