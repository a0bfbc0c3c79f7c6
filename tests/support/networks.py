"""Tiny random denoisers by themselves, with the structure of each published family, and arguments to call them with."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import diffusers
import torch
from diffusers import SD3Transformer2DModel, UNet2DConditionModel

from hybridiff.denoiser.adapters import ADAPTERS, DenoiserAdapter
from hybridiff.denoiser.call import DenoiserCall
from hybridiff.denoiser.evaluation import Evaluation

diffusers.utils.logging.set_verbosity_error()

TEXT_WIDTH = 16
ATTENTION, PLAIN = "CrossAttn{}Block2D", "{}Block2D"


def unet(blocks: list[str], **config: Any) -> UNet2DConditionModel:
    """A U-Net with the given blocks from the finest level to the coarsest."""
    torch.manual_seed(0)
    return UNet2DConditionModel(
        sample_size=16,
        block_out_channels=(8, 8, 16, 16)[: len(blocks)],
        down_block_types=tuple(block.format("Down") for block in blocks),
        up_block_types=tuple(block.format("Up") for block in reversed(blocks)),
        norm_num_groups=4,
        cross_attention_dim=TEXT_WIDTH,
        **{"layers_per_block": 2, "attention_head_dim": 2, **config},
    ).eval()


def sdxl_unet() -> UNet2DConditionModel:
    """Three levels, none of them with attention at the finest, and micro-conditioning."""
    return unet(
        [PLAIN, ATTENTION, ATTENTION],
        transformer_layers_per_block=(1, 1, 2),
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=4,
        projection_class_embeddings_input_dim=TEXT_WIDTH + 6 * 4,
    )


def sd1_unet() -> UNet2DConditionModel:
    """Four levels, attention in the three finest, projected by convolutions."""
    return unet([ATTENTION, ATTENTION, ATTENTION, PLAIN])


def sd2_unet() -> UNet2DConditionModel:
    """Four levels as in SD1.x, projected linearly, with more heads at coarser levels; one layer a level to be quick."""
    heads = (1, 2, 4, 4)
    blocks = [ATTENTION, ATTENTION, ATTENTION, PLAIN]
    return unet(blocks, use_linear_projection=True, attention_head_dim=heads, layers_per_block=1)


def sd3_transformer(dual_attention: bool = False) -> SD3Transformer2DModel:
    """Five joint blocks, of which SD3.5 attends to the image a second time in the first three."""
    torch.manual_seed(0)
    return SD3Transformer2DModel(
        sample_size=16,
        patch_size=2,
        in_channels=4,
        out_channels=4,
        num_layers=5,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=TEXT_WIDTH,
        caption_projection_dim=16,
        pooled_projection_dim=TEXT_WIDTH,
        pos_embed_max_size=24,
        qk_norm="rms_norm" if dual_attention else None,
        dual_attention_layers=(0, 1, 2) if dual_attention else (),
    ).eval()


NETWORKS: dict[str, Callable[[], Any]] = {
    "sdxl": sdxl_unet,
    "sd1.x": sd1_unet,
    "sd2.x": sd2_unet,
    "sd3": sd3_transformer,
    "sd3.5": lambda: sd3_transformer(dual_attention=True),
}
UNETS = ("sdxl", "sd1.x", "sd2.x")


def adapter_of(network: Any) -> DenoiserAdapter:
    """What the code under test knows of a network's family."""
    return next(adapter for adapter in ADAPTERS if adapter.class_name == type(network).__name__)


def evaluation_of(network: Any, rows: int, height: int, width: int, *, extras: bool = False) -> Evaluation:
    """A call of a network as the guided pipelines make it; `extras` adds what a ControlNet and a LoRA scale add."""
    make = _unet_arguments if isinstance(network, UNet2DConditionModel) else _transformer_arguments
    arguments = make(network, rows, height, width, torch.Generator().manual_seed(5), extras)
    return Evaluation((DenoiserCall(adapter_of(network), network, network.forward, arguments),))


def _unet_arguments(
    network: Any, rows: int, height: int, width: int, random: torch.Generator, extras: bool
) -> dict[str, Any]:
    arguments: dict[str, Any] = {
        "sample": torch.randn(rows, 4, height, width, generator=random),
        "timestep": torch.tensor(421),
        "encoder_hidden_states": torch.randn(rows, 7, TEXT_WIDTH, generator=random),
    }
    if network.config.addition_embed_type == "text_time":
        arguments["added_cond_kwargs"] = {
            "text_embeds": torch.randn(rows, TEXT_WIDTH, generator=random),
            "time_ids": torch.tensor([[64.0, 64.0, 0.0, 0.0, 64.0, 64.0]]).repeat(rows, 1),
        }
    if extras:
        residuals = [torch.randn(shape, generator=random) for shape in _skip_shapes(network, rows, height, width)]
        arguments["down_block_additional_residuals"] = tuple(residuals)
        arguments["mid_block_additional_residual"] = torch.randn(residuals[-1].shape, generator=random)
        arguments["cross_attention_kwargs"] = {"scale": 0.5}
    return arguments


def _skip_shapes(network: Any, rows: int, height: int, width: int) -> list[tuple[int, int, int, int]]:
    """Shapes of all skip connections, from the configuration alone."""
    channels, layers = network.config.block_out_channels, network.config.layers_per_block
    shapes = [(rows, channels[0], height, width)]
    for level, width_of_level in enumerate(channels):
        shapes += [(rows, width_of_level, height, width)] * layers
        if level < len(channels) - 1:
            height, width = (height + 1) // 2, (width + 1) // 2
            shapes.append((rows, width_of_level, height, width))
    return shapes


def _transformer_arguments(
    network: Any, rows: int, height: int, width: int, random: torch.Generator, extras: bool
) -> dict[str, Any]:
    arguments: dict[str, Any] = {
        "hidden_states": torch.randn(rows, 4, height, width, generator=random),
        "timestep": torch.full((rows,), 421.0),
        "encoder_hidden_states": torch.randn(rows, 7, TEXT_WIDTH, generator=random),
        "pooled_projections": torch.randn(rows, TEXT_WIDTH, generator=random),
    }
    if extras:
        tokens = (height // 2) * (width // 2)
        states = [torch.randn(rows, tokens, network.inner_dim, generator=random) for _ in range(3)]  # for five blocks
        arguments["block_controlnet_hidden_states"] = states
        arguments["joint_attention_kwargs"] = {"scale": 0.5}
    return arguments


def count_layers(network: torch.nn.Module) -> Counter[str]:
    """Count the computations of all layers without parts, below their `forward`, which a stage may have replaced."""
    counts: Counter[str] = Counter()

    def counting(name: str, compute: Any) -> Any:
        def counted(*args: Any, **kwargs: Any) -> Any:
            counts[name] += 1
            return compute(*args, **kwargs)

        return counted

    for name, module in network.named_modules():
        if isinstance(module, torch.nn.Conv2d):
            module._conv_forward = counting(name, module._conv_forward)  # type: ignore[method-assign]
        elif isinstance(module, torch.nn.Linear):
            module.forward = counting(name, module.forward)  # type: ignore[method-assign]
    return counts
