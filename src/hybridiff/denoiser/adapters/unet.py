"""U-Nets, split at the granularity of their residual and attention layers.

Skip connections are local to a stage: a stage consumes the skips that it produced. The one exception is the skip
that *is* the boundary, which both stages have.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from diffusers.models.unets.unet_2d_condition import UNet2DConditionOutput

from ...config import PublishedSettings
from ...errors import UsageError
from ..layers import Layer
from ..split import SplitPoint
from .base import DenoiserAdapter

_BLOCKS = {
    "DownBlock2D",
    "CrossAttnDownBlock2D",
    "UpBlock2D",
    "CrossAttnUpBlock2D",
    "UNetMidBlock2DCrossAttn",
    "UNetMidBlock2D",
}


class UNetAdapter(DenoiserAdapter):
    """`UNet2DConditionModel`: SDXL, SD 1.x, SD 2.x."""

    class_name = "UNet2DConditionModel"
    attribute = "unet"
    sample = "sample"
    keeps_residual = False  # the boundaries down and up have different shapes
    reuse_share = 0.3
    cuda_dtype = "float16"
    # Jung et al. 2026, Sec. 5.1 (SDXL, DDIM, w = 5).
    published = PublishedSettings(slope_window=12, slope_threshold=4e-4, parallel_steps=5, tau_cap=15)

    def output(self, sample: Any) -> Any:
        return UNet2DConditionOutput(sample=sample)

    def layers(self, network: Any) -> list[Layer]:
        """From `conv_in` to the last upsampler."""
        for block in [*network.down_blocks, network.mid_block, *network.up_blocks]:
            if type(block).__name__ not in _BLOCKS:
                name = type(block).__name__
                raise UsageError(f"a U-Net with {name} blocks cannot be split; known: {sorted(_BLOCKS)}")
        layers = [Layer("conv_in", None)]
        for i, block in enumerate(network.down_blocks):
            layers += _block_layers(f"down_blocks.{i}", block)
        layers.append(Layer("mid_block", None))
        for i, block in enumerate(network.up_blocks):
            layers += _block_layers(f"up_blocks.{i}", block)
        return layers

    def skips(self, network: Any) -> dict[int, int]:
        skips = _find_skips(self.layers(network))
        producers = {skip: layer for layer, skip in skips.produced.items()}
        return {layer: producers[skip] for layer, skip in skips.consumed.items()}

    def split_points(self, network: Any) -> list[SplitPoint]:
        """All nested ones that leave every skip connection within its stage."""
        layers = self.layers(network)
        skips = _find_skips(layers)
        middle = next(i for i, layer in enumerate(layers) if layer.name == "mid_block")
        return [
            SplitPoint(entry, exit_)
            for entry in range(middle)
            for exit_ in range(middle, len(layers))
            if _keeps_skips_local(skips, entry, exit_)
        ]


@dataclass(frozen=True)
class _Skips:
    """Which skip connection each layer produces (by order of production), and which it consumes."""

    produced: dict[int, int]
    consumed: dict[int, int]


def _block_layers(name: str, block: Any) -> list[Layer]:
    layers: list[Layer] = []
    attentions = getattr(block, "attentions", None)
    for j in range(len(block.resnets)):
        layers.append(Layer(f"{name}.resnets.{j}", name))
        if attentions is not None:
            layers.append(Layer(f"{name}.attentions.{j}", name))
    for sampler in ("downsamplers", "upsamplers"):
        layers += [Layer(f"{name}.{sampler}.{j}", name) for j in range(len(getattr(block, sampler, None) or ()))]
    return layers


def _find_skips(layers: list[Layer]) -> _Skips:
    names = [layer.name for layer in layers]
    produced: dict[int, int] = {}
    consumed: dict[int, int] = {}
    for i, name in enumerate(names):
        has_attention = i + 1 < len(names) and names[i + 1] == name.replace("resnets", "attentions")
        ends_layer = "attentions" in name or "downsamplers" in name or ("resnets" in name and not has_attention)
        if name == "conv_in" or (name.startswith("down_blocks") and ends_layer):
            produced[i] = len(produced)
        if name.startswith("up_blocks") and "resnets" in name:
            consumed[i] = len(consumed)
    return _Skips(produced, {i: len(produced) - 1 - order for i, order in consumed.items()})


def _keeps_skips_local(skips: _Skips, entry: int, exit_: int) -> bool:
    outer_skips = sum(layer <= entry for layer in skips.produced)
    boundary_skip = skips.produced.get(entry)
    for layer, skip in skips.consumed.items():
        consumer_is_outer = layer > exit_
        producer_is_outer = skip < outer_skips
        if consumer_is_outer != producer_is_outer and not (skip == boundary_skip and not consumer_is_outer):
            return False
    return True
