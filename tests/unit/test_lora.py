"""LoRA before and after `parallelize`, swapped, scaled, fused and taken off: the stock pipeline's images."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from hybridiff.distributed.consistency import describe_call
from support.oracles import relative_difference
from support.pipelines import denoiser_of
from support.simulated import simulate
from zoo import ZOO, run

peft = pytest.importorskip("peft")

SCALE = {
    "StableDiffusionPipeline": "cross_attention_kwargs",
    "StableDiffusion3Pipeline": "joint_attention_kwargs",
    "FluxPipeline": "joint_attention_kwargs",
    "QwenImagePipeline": "attention_kwargs",
    "WanPipeline": "attention_kwargs",
}
"""Pipelines, and their argument for the scale of a LoRA."""

ROUNDING = 1e-4
CACHED: dict[str, Any] = {"strategy": "hybrid", "full_steps": "0-1,3"}


def add_lora(pipe: Any, name: str, seed: int) -> None:
    """One of random weights, put into force."""
    network: Any = denoiser_of(pipe)
    config = peft.LoraConfig(r=2, lora_alpha=2, target_modules=["to_k", "to_q", "to_v"])
    network.add_adapter(config, adapter_name=name)
    random = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for layer, weight in network.named_parameters():
            if f".{name}." in layer:
                weight.copy_(0.3 * torch.randn(weight.shape, generator=random))


@pytest.mark.parametrize("layer", ["conv_in", "conv1", "conv2", "downsamplers.0.conv", "proj_in"])
def test_convolutions_of_a_lora_that_came_later_are_cut_too(layer: str) -> None:
    specimen = ZOO["StableDiffusionPipeline"]

    def adapt(pipe: Any) -> None:
        torch.manual_seed(0)
        pipe.unet.add_adapter(peft.LoraConfig(r=4, lora_alpha=4, init_lora_weights=False, target_modules=[layer]), "a")

    stock, pipe = specimen.build(), specimen.build()
    plain = run(specimen, stock)
    adapt(stock)
    adapted = run(specimen, stock)
    with simulate(pipe, shards=2) as parallel:
        require_alike(run(specimen, parallel), plain, adapted)
        adapt(pipe)
        require_alike(run(specimen, parallel), adapted, plain)
        pipe.unload_lora_weights()
        require_alike(run(specimen, parallel), plain, adapted)


def with_lora(name: str, seed: int) -> Any:
    pipe = ZOO[name].build()
    add_lora(pipe, "a", seed)
    return pipe


def require_alike(result: torch.Tensor, expected: torch.Tensor, other: torch.Tensor) -> None:
    """The result is what was expected, which what another LoRA makes is not."""
    assert relative_difference(result, expected) < ROUNDING
    assert relative_difference(other, expected) > 100 * ROUNDING


@pytest.mark.parametrize("name", SCALE)
def test_loaded_before_and_scaled(name: str) -> None:
    specimen = ZOO[name]
    half: dict[str, Any] = {SCALE[name]: {"scale": 0.5}}
    stock, pipe = with_lora(name, 9), with_lora(name, 9)
    plain, adapted, halved = run(specimen, specimen.build()), run(specimen, stock), run(specimen, stock, **half)
    with simulate(pipe) as parallel:
        require_alike(run(specimen, parallel), adapted, plain)
        require_alike(run(specimen, parallel, **half), halved, adapted)
        require_alike(run(specimen, parallel), adapted, halved)


@pytest.mark.parametrize("name", SCALE)
def test_loaded_after_and_swapped(name: str) -> None:
    specimen, pipe = ZOO[name], ZOO[name].build()
    plain = run(specimen, pipe)
    one, other = run(specimen, with_lora(name, 9)), run(specimen, with_lora(name, 10))
    with simulate(pipe) as parallel:
        run(specimen, parallel)
        add_lora(pipe, "a", 9)
        require_alike(run(specimen, parallel), one, plain)
        add_lora(pipe, "b", 10)
        denoiser_of(pipe).set_adapter("b")  # type: ignore[operator]
        require_alike(run(specimen, parallel), other, one)
        pipe.disable_lora()
        require_alike(run(specimen, parallel), plain, other)
        pipe.enable_lora()
        denoiser_of(pipe).set_adapter("a")  # type: ignore[operator]
        pipe.fuse_lora(adapter_names=["a"])
        require_alike(run(specimen, parallel), one, other)
        pipe.unfuse_lora()
        pipe.delete_adapters(["a", "b"])
        require_alike(run(specimen, parallel), plain, one)
    assert relative_difference(run(specimen, pipe), plain) < ROUNDING


@pytest.mark.parametrize("name", ["StableDiffusion3Pipeline", "WanPipeline"])
def test_cached_steps_use_nothing_of_before(name: str) -> None:
    specimen, pipe = ZOO[name], with_lora(name, 9)
    with simulate(pipe, **CACHED) as parallel, simulate(with_lora(name, 10), **CACHED) as fresh:
        before = run(specimen, parallel)
        add_lora(pipe, "b", 10)
        denoiser_of(pipe).set_adapter("b")  # type: ignore[operator]
        require_alike(run(specimen, parallel), run(specimen, fresh), before)


def test_ranks_with_other_adapters_in_force_are_told_apart() -> None:
    pipe = ZOO["FluxPipeline"].build()

    def described() -> str:
        return describe_call(pipe, [pipe.transformer], {})["LoRA"]

    seen = [described()]
    add_lora(pipe, "a", 9)
    seen.append(described())
    add_lora(pipe, "b", 10)
    seen.append(described())
    pipe.transformer.set_adapter("a")
    seen.append(described())
    pipe.disable_lora()
    seen.append(described())
    pipe.enable_lora()
    pipe.set_adapters(["a"], adapter_weights=[0.5])
    seen.append(described())
    pipe.fuse_lora(adapter_names=["a"])
    seen.append(described())
    assert len(set(seen)) == len(seen) - 2
    assert seen[3] == seen[1], "one that is loaded and not in force does not act"
    assert seen[4] == seen[0], "nor does what is disabled"
    pipe.unfuse_lora()
    pipe.delete_adapters(["a", "b"])
    assert described() == seen[0] == "none"
