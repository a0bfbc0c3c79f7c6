"""What is special about each family of networks: one adapter per file."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from ...errors import UsageError
from .. import DENOISERS
from .base import DenoiserAdapter
from .other import OtherAdapter
from .sd3 import SD3Adapter
from .unet import UNetAdapter

ADAPTERS: tuple[DenoiserAdapter, ...] = (UNetAdapter(), SD3Adapter())
"""Families whose layers are known."""

__all__ = ["ADAPTERS", "DenoiserAdapter", "as_called", "find_denoiser", "find_denoisers"]


def find_denoiser(pipe: Any) -> tuple[DenoiserAdapter, torch.nn.Module]:
    """The network that a pipeline calls at every step, and what is known of its family.

    Raises:
        UsageError: the pipeline has none.
    """
    adapter, networks = find_denoisers(pipe)
    return adapter, networks[0]


def find_denoisers(pipe: Any) -> tuple[DenoiserAdapter, tuple[torch.nn.Module, ...]]:
    """All such networks: some pipelines go over to another one within a generation.

    Raises:
        UsageError: the pipeline has none.
    """
    modules = (getattr(pipe, attribute, None) for attribute in DENOISERS)
    # torch.compile wraps the network
    networks = tuple(getattr(module, "_orig_mod", module) for module in modules if isinstance(module, torch.nn.Module))
    if not networks:
        raise UsageError(f"{type(pipe).__name__} has no denoiser: neither a unet nor a transformer")
    name = type(networks[0]).__name__
    return next((adapter for adapter in ADAPTERS if adapter.class_name == name), OtherAdapter()), networks


def as_called(pipe: Any, network: torch.nn.Module) -> torch.nn.Module:
    """A denoiser as the pipeline has it now: `torch.compile` may have wrapped it."""
    modules: Iterator[Any] = (getattr(pipe, attribute, None) for attribute in DENOISERS)
    return next((module for module in modules if getattr(module, "_orig_mod", module) is network), network)
