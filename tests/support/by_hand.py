"""Networks computed by hand, layer by layer and without hooks, in the two stages of a nested split.

Nothing here goes through the code under test: the parts of a network are called one after the other, as its forward
does.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from hybridiff.denoiser.adapters.sd3 import SD3Adapter
from hybridiff.denoiser.adapters.unet import UNetAdapter
from hybridiff.denoiser.split import SplitPoint

Inputs = dict[str, torch.Tensor]
"""Everything one branch's evaluation needs: the scaled sample, the timestep, the texts."""


@dataclass
class UnetByHand:
    """A U-Net split at a level: that many of its finest levels are the outer stage.

    Attributes:
        network: The network.
        levels: Levels of the outer stage.
    """

    network: Any
    levels: int

    def __post_init__(self) -> None:
        self.deep = len(self.network.down_blocks) - self.levels

    def begin(self, inputs: Inputs) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """The outer stage up to the boundary, which is the last of the skip connections too."""
        embedding = self.embed(inputs)
        hidden = self.network.conv_in(inputs["sample"])
        skips = [hidden]
        for block in self.network.down_blocks[: self.levels]:
            hidden = self.down(block, hidden, embedding, inputs, skips)
        return hidden, skips[:-1]

    def middle(self, inputs: Inputs, hidden: torch.Tensor) -> torch.Tensor:
        """The inner stage."""
        embedding = self.embed(inputs)
        skips = [hidden]
        for block in self.network.down_blocks[self.levels :]:
            hidden = self.down(block, hidden, embedding, inputs, skips)
        hidden = self.network.mid_block(hidden, embedding, encoder_hidden_states=inputs["text"])
        for block in self.network.up_blocks[: self.deep]:
            hidden = self.up(block, hidden, embedding, inputs, skips)
        assert not skips
        return hidden

    def end(self, inputs: Inputs, hidden: torch.Tensor, skips: list[torch.Tensor]) -> torch.Tensor:
        """The outer stage from the inner one's result to the prediction."""
        embedding, skips = self.embed(inputs), list(skips)
        for block in self.network.up_blocks[self.deep :]:
            hidden = self.up(block, hidden, embedding, inputs, skips)
        assert not skips
        return self.network.conv_out(self.network.conv_act(self.network.conv_norm_out(hidden)))

    def down(self, block: Any, hidden: Any, embedding: Any, inputs: Inputs, skips: list[torch.Tensor]) -> Any:
        texts = {"encoder_hidden_states": inputs["text"]} if hasattr(block, "attentions") else {}
        hidden, made = block(hidden_states=hidden, temb=embedding, **texts)
        skips += made
        return hidden

    def up(self, block: Any, hidden: Any, embedding: Any, inputs: Inputs, skips: list[torch.Tensor]) -> Any:
        texts = {"encoder_hidden_states": inputs["text"]} if hasattr(block, "attentions") else {}
        taken = tuple(skips[-len(block.resnets) :])
        del skips[-len(block.resnets) :]
        return block(hidden_states=hidden, temb=embedding, res_hidden_states_tuple=taken, **texts)

    def embed(self, inputs: Inputs) -> torch.Tensor:
        network, rows = self.network, inputs["sample"].shape[0]
        embedding = network.time_embedding(network.time_proj(inputs["timestep"].expand(rows)))
        if "pooled" not in inputs:
            return embedding  # type: ignore[no-any-return]
        sizes = network.add_time_proj(inputs["sizes"].flatten()).reshape(rows, -1)
        return embedding + network.add_embedding(torch.cat([inputs["pooled"], sizes], dim=-1))  # type: ignore[no-any-return]


@dataclass
class TransformerByHand:
    """An SD3 transformer whose blocks from `first` to `last` are the inner stage."""

    network: Any
    first: int
    last: int

    def begin(self, inputs: Inputs) -> tuple[tuple[torch.Tensor, torch.Tensor], None]:
        image = self.network.pos_embed(inputs["sample"])
        text = self.network.context_embedder(inputs["text"])
        return self.blocks(inputs, (text, image), range(self.first)), None

    def middle(self, inputs: Inputs, streams: tuple[torch.Tensor, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        return self.blocks(inputs, streams, range(self.first, self.last + 1))

    def end(self, inputs: Inputs, streams: tuple[torch.Tensor, torch.Tensor], skips: None) -> torch.Tensor:
        blocks = range(self.last + 1, len(self.network.transformer_blocks))
        image = self.blocks(inputs, streams, blocks)[1]
        image = self.network.proj_out(self.network.norm_out(image, self.embed(inputs)))
        rows, _, height, width = inputs["sample"].shape
        patch = self.network.config.patch_size
        image = image.reshape(rows, height // patch, width // patch, patch, patch, -1)
        return image.permute(0, 5, 1, 3, 2, 4).reshape(rows, -1, height, width)

    def blocks(
        self, inputs: Inputs, streams: tuple[torch.Tensor, torch.Tensor], which: range
    ) -> tuple[torch.Tensor, torch.Tensor]:
        text, image = streams
        embedding = self.embed(inputs)
        for i in which:
            block = self.network.transformer_blocks[i]
            text, image = block(hidden_states=image, encoder_hidden_states=text, temb=embedding)
        return text, image

    def embed(self, inputs: Inputs) -> torch.Tensor:
        return self.network.time_text_embed(inputs["timestep"], inputs["pooled"])  # type: ignore[no-any-return]


def unet_inputs(
    sample: Any, timestep: Any, encoder_hidden_states: Any, added_cond_kwargs: Any = None, **_: Any
) -> tuple[Inputs, Inputs]:
    branches = []
    for branch in range(2):
        inputs = {"sample": sample.chunk(2)[branch], "timestep": timestep}
        inputs["text"] = encoder_hidden_states.chunk(2)[branch]
        if added_cond_kwargs is not None:
            inputs["pooled"] = added_cond_kwargs["text_embeds"].chunk(2)[branch]
            inputs["sizes"] = added_cond_kwargs["time_ids"].chunk(2)[branch]
        branches.append(inputs)
    return branches[0], branches[1]


def transformer_inputs(
    hidden_states: Any, timestep: Any, encoder_hidden_states: Any, pooled_projections: Any, **_: Any
) -> tuple[Inputs, Inputs]:
    both = {"sample": hidden_states, "timestep": timestep, "text": encoder_hidden_states, "pooled": pooled_projections}
    return (
        {name: tensor.chunk(2)[0] for name, tensor in both.items()},
        {name: tensor.chunk(2)[1] for name, tensor in both.items()},
    )


def level_split(network: Any, levels: int) -> int:
    """Index of the split point that has that many levels outside."""
    names = [layer.name for layer in UNetAdapter().layers(network)]
    deep = len(network.down_blocks) - levels
    entry, exit_ = f"down_blocks.{levels - 1}.downsamplers.0", f"up_blocks.{deep - 1}.upsamplers.0"
    return UNetAdapter().split_points(network).index(SplitPoint(names.index(entry), names.index(exit_)))


def block_split(network: Any, entry: int, exit_: int) -> int:
    """Index of the split point of a transformer whose blocks after `entry`, up to `exit_`, are the inner stage."""
    return SD3Adapter().split_points(network).index(SplitPoint(entry, exit_))
