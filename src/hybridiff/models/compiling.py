"""Denoisers under `torch.compile`."""

from __future__ import annotations

from typing import Any

from ..errors import UsageError
from ..utils.names import require_known

COMPILES = ("none", "blocks", "whole")
"""Nothing; each of the blocks that a denoiser repeats, which takes seconds; or all of it, which takes minutes."""


def check_compile(compile: str, offload: str) -> None:
    """Refuse what is unknown, and compiled networks whose weights come and go.

    Raises:
        UsageError: with what would do.
    """
    require_known("compile", compile, COMPILES)
    if compile != "none" and offload != "none":
        raise UsageError(
            f"compile {compile!r} needs networks that stay on their device, got offload {offload!r}; leave one out"
        )


def compile_denoisers(pipe: Any, compile: str) -> Any:
    """Have a pipeline's denoisers compiled where they are called, at the first call of each shape; the pipeline.

    Raises:
        UsageError: it is not known which blocks a network repeats.
    """
    from ..denoiser.adapters import find_denoisers

    if compile == "none":
        return pipe
    adapter, networks = find_denoisers(pipe)
    for network in networks:
        if compile == "whole":
            network.compile()
            continue
        names = adapter.repeated_blocks or getattr(network, "_repeated_blocks", None) or ()
        blocks = [module for module in network.modules() if type(module).__name__ in names]
        if not blocks:
            raise UsageError(f"it is not known which blocks {type(network).__name__} repeats; use compile='whole'")
        for block in blocks:
            block.compile()
    return pipe
