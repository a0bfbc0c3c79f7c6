"""What is special about each family of networks: one adapter per file."""

from __future__ import annotations

from typing import Any

import torch

from ...errors import UsageError
from .base import DenoiserAdapter
from .sd3 import SD3Adapter
from .unet import UNetAdapter

ADAPTERS: tuple[DenoiserAdapter, ...] = (UNetAdapter(), SD3Adapter())

__all__ = ["ADAPTERS", "DenoiserAdapter", "find_denoiser"]


def find_denoiser(pipe: Any) -> tuple[DenoiserAdapter, torch.nn.Module]:
    """The network that a pipeline calls at every step, and what is known of its family.

    Raises:
        UsageError: the pipeline has none, or one of a family whose calls are not known.
    """
    for attribute in dict.fromkeys(adapter.attribute for adapter in ADAPTERS):
        module = getattr(pipe, attribute, None)
        if module is None:
            continue
        network = getattr(module, "_orig_mod", module)  # torch.compile wraps the network
        for adapter in ADAPTERS:
            if adapter.attribute == attribute and type(network).__name__ == adapter.class_name:
                return adapter, network
        known = ", ".join(adapter.class_name for adapter in ADAPTERS)
        raise UsageError(f"{type(pipe).__name__} denoises with {type(network).__name__}; supported: {known}")
    raise UsageError(f"{type(pipe).__name__} has no denoiser: neither a unet nor a transformer")
