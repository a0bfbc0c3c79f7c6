"""Stable Diffusion 3: a transformer whose middle blocks are the inner stage."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..layers import Layer
from ..split import SplitPoint
from .base import DenoiserAdapter, argument


class SD3Adapter(DenoiserAdapter):
    """`SD3Transformer2DModel`: SD3 and SD3.5."""

    class_name = "SD3Transformer2DModel"
    attribute = "transformer"
    sample = "hidden_states"
    repeated_blocks = ("JointTransformerBlock",)

    def layers(self, network: Any) -> list[Layer]:
        return [Layer(f"transformer_blocks.{i}", None) for i in range(len(network.transformer_blocks))]

    def split_points(self, network: Any) -> list[SplitPoint]:
        """All nested ones; the outer stage keeps at least the first and the last block.

        The last block drops the text stream, so it cannot hand a boundary back.
        """
        blocks = len(network.transformer_blocks)
        return [SplitPoint(entry, exit_) for entry in range(blocks - 2) for exit_ in range(entry + 1, blocks - 1)]

    def extra_steps(self, pipe: Any, arguments: Mapping[str, Any], steps: int) -> frozenset[int]:
        """The steps of skip-layer guidance, as `StableDiffusion3Pipeline` chooses them."""
        if arguments.get("skip_guidance_layers") is None:
            return frozenset()
        start = steps * argument(pipe, arguments, "skip_layer_guidance_start")
        stop = steps * argument(pipe, arguments, "skip_layer_guidance_stop")
        return frozenset(step for step in range(steps) if start < step < stop)

    def largest_size(self, network: Any) -> int | None:
        return int(network.config.pos_embed_max_size * network.config.patch_size)
