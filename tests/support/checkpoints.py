"""Pipelines written as one file, in the layout of Stable Diffusion's authors (`ldm`)."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

UNET = {
    r"time_embedding\.linear_1": "time_embed.0",
    r"time_embedding\.linear_2": "time_embed.2",
    r"add_embedding\.linear_1": "label_emb.0.0",
    r"add_embedding\.linear_2": "label_emb.0.2",
    r"conv_in\.": "input_blocks.0.0.",
    r"conv_norm_out": "out.0",
    r"conv_out": "out.2",
    r"mid_block\.resnets\.0": "middle_block.0",
    r"mid_block\.attentions\.0": "middle_block.1",
    r"mid_block\.resnets\.1": "middle_block.2",
}
RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
VAE = {
    r"mid_block\.resnets\.0": "mid.block_1",
    r"mid_block\.resnets\.1": "mid.block_2",
    r"mid_block\.attentions\.0": "mid.attn_1",
    r"down_blocks\.(\d+)\.resnets\.": r"down.\1.block.",
    r"down_blocks\.(\d+)\.downsamplers\.0": r"down.\1.downsample",
    r"conv_norm_out": "norm_out",
    r"conv_shortcut": "nin_shortcut",
    r"group_norm": "norm",
    r"to_out\.0": "proj_out",
    r"to_([qkv])": r"\1",
}


def save_checkpoint(pipe: Any, path: Path, parts: Sequence[str], further: Mapping[str, torch.Tensor] = {}) -> str:
    """Write components of a Stable Diffusion, 1 or XL, as one file; its name."""
    names: dict[str, Callable[[str], str]] = {
        "unet": lambda name: "model.diffusion_model." + _unet(name, pipe.unet),
        "vae": lambda name: "first_stage_model." + _vae(name, len(pipe.vae.config.block_out_channels)),
        "text_encoder": lambda name: "cond_stage_model.transformer.text_model." + name.removeprefix("text_model."),
    }
    weights = {
        names[part](name): weight.contiguous()
        for part in parts
        for name, weight in getattr(pipe, part).state_dict().items()
    }
    save_file(weights | dict(further), path)
    return str(path)


def _unet(name: str, unet: Any) -> str:
    layers = unet.config.layers_per_block
    if found := re.match(r"(down|up)_blocks\.(\d+)\.(\w+)\.(\d+)\.(.*)", name):
        side, block, kind, layer, rest = found[1], int(found[2]), found[3], int(found[4]), found[5]
        if kind == "downsamplers":
            return f"input_blocks.{(layers + 1) * (block + 1)}.0.op.{rest.removeprefix('conv.')}"
        if kind == "upsamplers":
            place = 2 if hasattr(unet.up_blocks[block], "attentions") else 1
            return f"output_blocks.{(layers + 1) * block + layers}.{place}.{rest}"
        number = (layers + 1) * block + layer + (side == "down")
        outer = f"{'input' if side == 'down' else 'output'}_blocks.{number}.{int(kind == 'attentions')}"
        return f"{outer}.{_inside(rest) if kind == 'resnets' else rest}"
    changed = _renamed(name, UNET)
    return _inside(changed) if name.startswith("mid_block.resnets") else changed


def _inside(name: str) -> str:
    for new, old in RESNET.items():
        name = re.sub(rf"\b{new}\.", f"{old}.", name)
    return name


def _vae(name: str, levels: int) -> str:
    if found := re.match(r"decoder\.up_blocks\.(\d+)\.(\w+)\.(\d+)\.(.*)", name):
        kind = "upsample" if found[2] == "upsamplers" else f"block.{found[3]}"
        name = f"decoder.up.{levels - 1 - int(found[1])}.{kind}.{found[4]}"
    return _renamed(name, VAE)


def _renamed(name: str, table: Mapping[str, str]) -> str:
    for new, old in table.items():
        name = re.sub(rf"\b{new}", old, name)
    return name
