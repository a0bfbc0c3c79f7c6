"""diffusers' own step caches on a network, and off it again without rests.

- First block (FirstBlockCache, after TeaCache, arXiv 2411.19108): transformers; of SD3 all blocks but the last, whose
  text stream ends. A U-Net has no single list of blocks.
- TaylorSeer (arXiv 2503.06923): U-Nets and SD3, in the manner of its lite mode: the output is extrapolated, and the
  blocks are skipped. They are named one by one, as the patterns of the lite mode hit blocks that do not return plain
  tensors.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from diffusers.hooks import (
    FirstBlockCacheConfig,
    HookRegistry,
    TaylorSeerCacheConfig,
    apply_first_block_cache,
    apply_taylorseer_cache,
)

from ..denoiser.adapters.sd3 import SD3Adapter
from ..denoiser.through import expose
from ..schedule.presets import scaled_steps


class AttachedCache:
    """A cache on a network, and the way back.

    Args:
        network: The denoiser.
        apply: Applies the cache to it.

    Raises:
        LookupError: it found nothing in the network to be cached.
    """

    def __init__(self, network: torch.nn.Module, apply: Callable[[torch.nn.Module], None]) -> None:
        self._network = network
        self._compiled = [expose(module) for module in network.modules()]
        self._before = {module: (_hooks(module), "forward" in vars(module)) for module in network.modules()}
        try:
            apply(network)
            if all(_hooks(module) == hooks for module, (hooks, _) in self._before.items()):
                raise LookupError("no layer of the network is one that the cache knows")
            self._tell_registries()
        except BaseException:
            self.remove()
            raise

    def remove(self) -> None:
        """Take off every hook that has come since; others stay."""
        for module, (before, had_forward) in self._before.items():
            added = [name for name in _hooks(module) or () if name not in (before or ())]
            for name in reversed(added):
                module._diffusers_hook.remove_hook(name, recurse=False)  # type: ignore[union-attr,operator]
            if added and before is None and not _hooks(module):
                del module._diffusers_hook  # the registry and the original forward stay behind as attributes
                if not had_forward:
                    vars(module).pop("forward", None)
        for undo in self._compiled:
            undo()
        self._tell_registries()

    def _tell_registries(self) -> None:
        """A registry keeps a list of those below it, by which it tells them whose state is to be used."""
        HookRegistry.check_if_exists_or_initialize(self._network).invalidate_child_registries_cache()


def apply_first_block(network: Any, threshold: float) -> None:
    """Skip the blocks after the first one while its residual changes by less than a share of itself."""
    cached = network
    if type(network).__name__ == SD3Adapter.class_name:
        cached = torch.nn.Module()  # it holds all blocks but the last one
        cached.transformer_blocks = torch.nn.ModuleList(network.transformer_blocks[:-1])
    apply_first_block_cache(cached, FirstBlockCacheConfig(threshold))


def apply_taylorseer(network: Any, interval: int, order: int, steps: int) -> None:
    """Compute one step of so many and extrapolate the others; the first and last steps are computed.

    Args:
        network: The denoiser.
        interval: Steps from one that is computed to the next.
        order: Of the extrapolation.
        steps: Number of steps of a run.
    """
    if hasattr(network, "transformer_blocks"):
        skipped = "|".join(str(block) for block in range(len(network.transformer_blocks) - 1))
        names, output = rf"transformer_blocks\.({skipped})", "proj_out"
    else:
        names, output = r".*\.(resnets|transformer_blocks|downsamplers|upsamplers)\.\d+", "conv_out"
    config = TaylorSeerCacheConfig(
        cache_interval=interval,
        disable_cache_before_step=scaled_steps(5, steps),
        disable_cache_after_step=scaled_steps(47, steps),
        max_order=order,
        taylor_factors_dtype=torch.float32,
        skip_predict_identifiers=[names],
        cache_identifiers=[output],
    )
    apply_taylorseer_cache(network, config)


def _hooks(module: torch.nn.Module) -> list[str] | None:
    """Names of the hooks on a module; None where it has no registry."""
    registry = vars(module).get("_diffusers_hook")
    return None if registry is None else list(registry.hooks)
