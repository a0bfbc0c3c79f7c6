"""The layers of a denoiser, and what each of them costs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from diffusers.hooks import ModelHook
from torch.utils.flop_counter import FlopCounterMode

from ..utils.clock import elapsed, mark, timed
from .attached import AttachedHooks
from .blocks import tensors_of

_REPEATS = 4


@dataclass(frozen=True)
class Layer:
    """The smallest piece that a split does not divide.

    Attributes:
        name: Path of the module in the network.
        block: Path of the block that holds it, None where it is a block itself.
    """

    name: str
    block: str | None


@dataclass(frozen=True)
class LayerCost:
    """What a measurement says of one layer.

    Attributes:
        seconds: Time of one evaluation of one branch.
        bytes: Size of its output tensors, without skip connections.
        work: Floating-point operations of one evaluation of one branch.
    """

    seconds: float
    bytes: int
    work: int


@dataclass(frozen=True)
class NetworkCost:
    """What a measurement says of a network.

    Attributes:
        layers: One cost per layer, in order.
        other_seconds: Time of what lies outside the layers: embeddings and the like, which either stage runs.
        other_work: Floating-point operations of the same.
    """

    layers: Sequence[LayerCost]
    other_seconds: float = 0.0
    other_work: int = 0

    @property
    def seconds(self) -> float:
        """Time of one evaluation of one branch by the whole network."""
        return sum(layer.seconds for layer in self.layers) + self.other_seconds

    @property
    def work(self) -> int:
        """Floating-point operations of the same."""
        return sum(layer.work for layer in self.layers) + self.other_work


def measure_layers(
    network: torch.nn.Module, layers: Sequence[Layer], evaluate: Callable[[], object], device: torch.device
) -> NetworkCost:
    """Count the work of every layer in one evaluation, and time it in a few more.

    Args:
        network: The denoiser.
        layers: Its layers.
        evaluate: Runs the network once, on the rows of one branch.
        device: Where it runs.
    """
    probes = [_Probe(device) for _ in layers]
    named = zip(layers, probes, strict=True)
    hooks = AttachedHooks((network.get_submodule(layer.name), probe, "hybridiff_cost") for layer, probe in named)
    try:
        # What torch.compile meets in a dispatch mode it never compiles, and one branch may need graphs of its own.
        with torch.compiler.set_stance("force_eager"):
            with FlopCounterMode(display=False) as counter:  # this first evaluation also pays for allocations
                for probe in probes:
                    probe.counter = counter
                evaluate()
            for probe in probes:
                probe.counter = None
            wholes = [timed(evaluate, device) for _ in range(_REPEATS)]
    finally:
        hooks.remove()
    # Minima, as other work on the machine can only add time; what is around the layers from one same evaluation.
    other = min(whole - sum(probe.seconds(i) for probe in probes) for i, whole in enumerate(wholes, start=1))
    repeats = range(1, _REPEATS + 1)
    costs = [LayerCost(min(map(probe.seconds, repeats)), probe.bytes, probe.work) for probe in probes]
    return NetworkCost(costs, max(0.0, other), counter.get_total_flops() - sum(cost.work for cost in costs))


class _Probe(ModelHook):
    """Times a layer in every forward, without waiting for the device in between, and counts its work where asked to."""

    def __init__(self, device: torch.device) -> None:
        super().__init__()
        self._device = device
        self._marks: list[tuple[Any, Any]] = []
        self.bytes = self.work = 0
        self.counter: FlopCounterMode | None = None

    def new_forward(self, module: torch.nn.Module, *args: Any, **kwargs: Any) -> Any:
        before = self.counter.get_total_flops() if self.counter is not None else 0
        start = mark(self._device)
        output = self.fn_ref.original_forward(*args, **kwargs)
        self._marks.append((start, mark(self._device)))
        if self.counter is not None:
            self.work = self.counter.get_total_flops() - before
        self.bytes = sum(tensor.nbytes for tensor in tensors_of(output))
        return output

    def seconds(self, repeat: int) -> float:
        return elapsed(*self._marks[repeat])
