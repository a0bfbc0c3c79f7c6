"""diffusers' own step caches beneath condition-based partitioning.

Each guidance branch has a network of its own, as it has on two devices, and the caches are applied to both. What works
with the two families of networks (diffusers 0.42; neither has `enable_cache`, but the functions behind it take any
module):

- `first-block` (FirstBlockCache, after TeaCache, arXiv 2411.19108): SD3, on all blocks but the last, whose text stream
  ends. A U-Net has no single list of blocks.
- `mag` (MagCache, arXiv 2506.09045): SD3. Its ratios are measured in one generation, as its authors do; those of both
  branches are averaged, so that no branch waits for the other.
- `taylorseer` (TaylorSeer, arXiv 2503.06923): both, in the manner of its lite mode: the output is extrapolated, and
  the blocks are skipped. They are named one by one, as the patterns of the lite mode hit blocks that do not return
  plain tensors.
- `pyramid` (Pyramid Attention Broadcast, arXiv 2408.12588): both; it only saves attention.

FasterCache saves the unconditional branch, which here runs on the other device and saves no time; SeaCache and the text
cache know other networks only.
"""

from __future__ import annotations

import copy
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from diffusers.hooks import (
    HookRegistry,
    MagCacheConfig,
    PyramidAttentionBroadcastConfig,
    apply_mag_cache,
    apply_pyramid_attention_broadcast,
)
from diffusers.models.cache_utils import CacheMixin

from hybridiff.denoiser.adapters import find_denoiser
from hybridiff.denoiser.attached import AttachedHook
from hybridiff.denoiser.call import DenoiserCall
from hybridiff.denoiser.hooks import DenoiserHook
from hybridiff.evaluation.simulation import RunSummary
from hybridiff.rivals.caches import apply_first_block, apply_taylorseer

KINDS = {
    "first-block": ("transformer",),
    "mag": ("transformer",),
    "taylorseer": ("transformer", "unet"),
    "pyramid": ("transformer", "unet"),
}
"""Which networks each cache works with, by their place in the pipeline."""

PROMPT = "a large red ring at the left on a white background"
"""With which the ratios of `mag` are measured."""

_FULL = 0.99
"""An evaluation that does more than this share of the whole network's work counts as full."""


@dataclass(frozen=True)
class Cache:
    """One of diffusers' caches.

    Attributes:
        kind: A name of `KINDS`.
        amount: The threshold of `first-block` and `mag`; of the others, the distance of steps that are computed.
        order: Of the extrapolation of `taylorseer`.
    """

    kind: str
    amount: float
    order: int = 1

    def fits(self, pipe: Any) -> bool:
        """Whether it works with a pipeline's denoiser."""
        return find_denoiser(pipe)[0].attribute in KINDS[self.kind]

    @property
    def is_adaptive(self) -> bool:
        """Whether what is generated decides which steps are computed."""
        return self.kind == "first-block"


class CachedPipeline:
    """A stock pipeline whose guidance branches are evaluated one by one, each by a cached copy of its network.

    Args:
        pipe: The stock pipeline; its own network is not touched.
        cache: The cache.
        call: Arguments of every call, with the number of steps.

    Attributes:
        shares: Of the last call, for every step the work that the busier branch did, as a share of the whole network's;
            counted in multiplications by linear layers and convolutions.
        sums: Likewise, the work of both branches.
    """

    def __init__(self, pipe: Any, cache: Cache, call: dict[str, Any]) -> None:
        adapter, network = find_denoiser(pipe)
        self.pipe = pipe
        self.shares: list[float] = []
        self.sums: list[float] = []
        self._adapter = adapter
        self._timestep = 0.0
        self._work = 0
        self._whole = 0
        self._branches = [self._copy(network) for _ in range(2)]
        self._hook = DenoiserHook()
        self._attached = AttachedHook(network, self._hook, "hybridiff_caches")
        try:
            self._apply(cache, call)
        except BaseException:
            self.detach()
            raise

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call the stock pipeline."""
        self.shares, self.sums, self._whole = [], [], 0
        for network in self._branches:
            HookRegistry.check_if_exists_or_initialize(network).reset_stateful_hooks()
        self._hook.answer = self._answer
        try:
            return self.pipe(*args, **kwargs)
        finally:
            self._hook.answer = None

    @property
    def summary(self) -> RunSummary:
        """Of the last call, on two devices that wait for each other at every step."""
        letters = "".join("f" if share > _FULL else "c" for share in self.shares)
        return RunSummary(2.0 * len(self.shares) / sum(self.shares), letters)

    @property
    def one_device(self) -> float:
        """What the cache alone saves in the last call: one device does the work of both branches."""
        return 2.0 * len(self.sums) / sum(self.sums)

    def detach(self) -> None:
        """Restore the stock pipeline exactly."""
        self._attached.remove()
        self._branches = []

    def __enter__(self) -> CachedPipeline:
        return self

    def __exit__(self, *_: object) -> None:
        self.detach()

    def _answer(self, network: Any, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        call = DenoiserCall.bind(self._adapter, network, forward, args, kwargs)
        self._timestep = call.timestep
        half = call.rows // 2
        work, predictions = [], []
        for network, start in zip(self._branches, (0, half), strict=True):
            self._work = 0
            with CacheMixin.cache_context(network, "branch"):
                own = DenoiserCall(self._adapter, network, network.forward, call.arguments)
                predictions.append(own.run(slice(start, start + half)))
            work.append(self._work)
        self._whole = self._whole or max(work)  # no cache leaves anything out in the first step
        self.shares.append(max(work) / self._whole)
        self.sums.append(sum(work) / self._whole)
        return call.wrap(torch.cat(predictions))

    def _copy(self, network: torch.nn.Module) -> Any:
        """A network of its own for one branch, whose layers count what they do."""
        copied = copy.deepcopy(network)
        for module in copied.modules():
            if isinstance(module, (torch.nn.Linear, torch.nn.Conv2d)):
                module.register_forward_hook(self._count)
        return copied

    def _count(self, module: torch.nn.Module, inputs: Any, output: torch.Tensor) -> None:
        self._work += output.numel() * module.weight[0].numel()  # type: ignore[index]

    def _apply(self, cache: Cache, call: dict[str, Any]) -> None:
        steps = int(call["num_inference_steps"])
        if cache.kind == "mag":
            ratios = self._magnitudes(call, steps)  # applied once more, a cache takes the place of the one before
        for network in self._branches:
            if cache.kind == "first-block":
                apply_first_block(network, cache.amount)
            elif cache.kind == "mag":
                apply_mag_cache(network, MagCacheConfig(cache.amount, 5, 0.1, steps, ratios))
            elif cache.kind == "taylorseer":
                apply_taylorseer(network, int(cache.amount), cache.order, steps)
            else:
                apply_pyramid_attention_broadcast(network, self._pyramid(int(cache.amount)))

    def _pyramid(self, interval: int) -> PyramidAttentionBroadcastConfig:
        return PyramidAttentionBroadcastConfig(
            spatial_attention_block_skip_range=interval,
            cross_attention_block_skip_range=interval,
            current_timestep_callback=lambda: self._timestep,
        )

    def _magnitudes(self, call: dict[str, Any], steps: int) -> list[float]:
        """How much longer each step's residual is than the one before, as mean of the branches: one generation."""
        for network in self._branches:  # one step more, as the cache forgets its ratios with the last one
            apply_mag_cache(network, MagCacheConfig(num_inference_steps=steps + 1, calibrate=True))
        self(PROMPT, generator=torch.Generator().manual_seed(0), output_type="latent", **call)
        ratios = [_mag_state(network).calibration_ratios for network in self._branches]
        return [statistics.mean(branches) for branches in zip(*ratios, strict=True)]  # so that both skip the same steps


def _mag_state(network: Any) -> Any:
    hook = next(
        hook
        for hook in network.transformer_blocks[0]._diffusers_hook.hooks.values()
        if type(hook).__name__ == "MagCacheHeadHook"
    )
    with CacheMixin.cache_context(network, "branch"):
        return hook.state_manager.get_state()
