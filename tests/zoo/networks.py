"""Networks whose guidance can be seen, though they are freshly initialised; pipelines made of parts of others."""

from __future__ import annotations

import inspect
from typing import Any, TypeVar

import diffusers
import torch
from diffusers import ControlNetModel

from support.pipelines import quiet

Network = TypeVar("Network", bound=torch.nn.Module)


def awake(network: Network, *parts: str, factor: float = 8.0, gain: float = 1.0) -> Network:
    """Random numbers for the matrices that were initialised with zeros; `parts` of the network times `factor`.

    Args:
        network: Changed in place, the same way every time, and returned.
        parts: Ends of the names of modules by which the text comes in; fresh ones let hardly any of it through.
        factor: How much stronger their weights become.
        gain: Size of the numbers in place of zeros, in 1 / sqrt(inputs).
    """
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for weight in network.parameters():
            if weight.ndim > 1 and weight.numel() and not weight.any():
                weight.copy_(torch.randn(weight.shape, generator=generator) * gain / weight[0].numel() ** 0.5)
        found = [module for name, module in network.named_modules() if parts and name.endswith(parts)]
        assert len(found) >= len(parts), f"{parts} not found"
        for module in found:
            assert isinstance(module.weight, torch.Tensor)
            module.weight.mul_(factor)
    return network.eval()


def with_parts_of(pipe: Any, name: str, **parts: Any) -> Any:
    """A pipeline of the class of that name with the parts of another, and some more."""
    pipeline = getattr(diffusers, name)
    taken = inspect.signature(pipeline.__init__).parameters
    settings = {"requires_safety_checker": False, "force_zeros_for_empty_prompt": False} | pipe.components | parts
    return quiet(pipeline(**{part: value for part, value in settings.items() if part in taken}))


def controlled(pipe: Any, name: str, network: Any = ControlNetModel, **settings: Any) -> Any:
    """A pipeline of that class with the parts of `pipe` and a ControlNet of the shape of its U-Net."""
    return with_parts_of(pipe, name, controlnet=copied_controlnet(pipe, network, **settings))


def copied_controlnet(pipe: Any, network: Any = ControlNetModel, **settings: Any) -> Any:
    """A ControlNet of the shape of the U-Net of `pipe`; `settings` replaces or adds some of its configuration."""
    copy = network.from_unet(pipe.unet, conditioning_embedding_out_channels=(8, 16))
    torch.manual_seed(4)
    return awake(network.from_config(copy.config, **settings))
