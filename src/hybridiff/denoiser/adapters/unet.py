"""The nested cuts of a U-Net, at the granularity of its residual and attention layers.

Skip connections are local to a stage: a stage consumes the skips that it produced. The one exception is the skip
that *is* the boundary, which both stages have.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ..split import Cut, Unit

KEEPS_RESIDUAL = False
"""The boundaries down and up have different shapes."""

_BLOCKS = {
    "DownBlock2D",
    "CrossAttnDownBlock2D",
    "UpBlock2D",
    "CrossAttnUpBlock2D",
    "UNetMidBlock2DCrossAttn",
    "UNetMidBlock2D",
}


@dataclass(frozen=True)
class _Skips:
    """Which skip connection each unit produces (by order of production), and which it consumes."""

    produced: dict[int, int]
    consumed: dict[int, int]


def list_units(unet: Any) -> list[Unit]:
    """The layers of a `UNet2DConditionModel` in order of execution, from `conv_in` to the last upsampler.

    Raises:
        ValueError: it has blocks whose inside is not known.
    """
    for block in [*unet.down_blocks, unet.mid_block, *unet.up_blocks]:
        if type(block).__name__ not in _BLOCKS:
            raise ValueError(f"a U-Net with {type(block).__name__} blocks cannot be cut; known: {sorted(_BLOCKS)}")
    units = [Unit("conv_in", None)]
    for i, block in enumerate(unet.down_blocks):
        units += _block_units(f"down_blocks.{i}", block)
    units.append(Unit("mid_block", None))
    for i, block in enumerate(unet.up_blocks):
        units += _block_units(f"up_blocks.{i}", block)
    return units


def list_cuts(unet: Any) -> list[Cut]:
    """All nested cuts that leave every skip connection within its stage."""
    units = list_units(unet)
    skips = _find_skips(units)
    middle = next(i for i, unit in enumerate(units) if unit.name == "mid_block")
    return [
        Cut(entry, exit_)
        for entry in range(middle)
        for exit_ in range(middle, len(units))
        if _keeps_skips_local(skips, entry, exit_)
    ]


def _block_units(name: str, block: Any) -> list[Unit]:
    units: list[Unit] = []
    attentions = getattr(block, "attentions", None)
    for j in range(len(block.resnets)):
        units.append(Unit(f"{name}.resnets.{j}", name))
        if attentions is not None:
            units.append(Unit(f"{name}.attentions.{j}", name))
    for sampler in ("downsamplers", "upsamplers"):
        units += [Unit(f"{name}.{sampler}.{j}", name) for j in range(len(getattr(block, sampler, None) or ()))]
    return units


def _find_skips(units: list[Unit]) -> _Skips:
    names = [unit.name for unit in units]
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
    outer_skips = sum(unit <= entry for unit in skips.produced)
    boundary_skip = skips.produced.get(entry)
    for unit, skip in skips.consumed.items():
        consumer_is_outer = unit > exit_
        producer_is_outer = skip < outer_skips
        if consumer_is_outer != producer_is_outer and not (skip == boundary_skip and not consumer_is_outer):
            return False
    return True
