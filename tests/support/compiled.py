"""Denoisers under `torch.compile`, and how many graphs they have."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from support.pipelines import denoiser_of

BLOCKS = ("JointTransformerBlock", "BasicTransformerBlock")


class Graphs:
    """A backend that compiles nothing, and counts graphs and how often they run."""

    def __init__(self) -> None:
        self.made = self.runs = 0

    def __call__(self, graph: torch.fx.GraphModule, _: Any) -> Callable[..., Any]:
        self.made += 1

        def run(*args: Any) -> Any:
            self.runs += 1
            return graph.forward(*args)

        return run


def compile_whole(pipe: Any, graphs: Graphs) -> None:
    denoiser_of(pipe).compile(backend=graphs, fullgraph=True)


def compile_blocks(pipe: Any, graphs: Graphs) -> None:
    for module in denoiser_of(pipe).modules():
        if type(module).__name__ in BLOCKS:
            module.compile(backend=graphs, fullgraph=True)
