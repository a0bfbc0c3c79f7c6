"""Networks that are loaded for a call and put away after it: rows are evaluated where the network is."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from accelerate import cpu_offload

from hybridiff import ParallelConfig, ParallelPipeline, parallelize
from support.oracles import relative_difference
from support.pipelines import denoiser_of
from zoo import ZOO, run

NAMES = ["StableDiffusionPipeline", "PixArtSigmaPipeline", "WanPipeline:two-transformers"]
"""Known, watched, and a call for each branch of two networks, with weights of their own outside of all layers."""


def by_model(pipe: Any) -> None:
    pipe.enable_model_cpu_offload(device="cpu")


def by_layer(pipe: Any) -> None:
    """What `enable_sequential_cpu_offload` does, which wants a GPU; between calls weights are nowhere."""
    for network in networks(pipe):
        cpu_offload(network, execution_device=torch.device("cpu"))


def by_group(pipe: Any) -> None:
    cpu = torch.device("cpu")
    for network in networks(pipe):
        network.enable_group_offload(cpu, cpu, "block_level", num_blocks_per_group=1)  # type: ignore[operator]


def networks(pipe: Any) -> list[torch.nn.Module]:
    second = getattr(pipe, "transformer_2", None)
    return [denoiser_of(pipe), *([second] if second is not None else [])]


def simulate(pipe: Any) -> ParallelPipeline:
    return parallelize(pipe, ParallelConfig("cfg", devices=2, simulate=True))


@pytest.mark.parametrize("is_first", [True, False], ids=["before", "after"])
@pytest.mark.parametrize("offload", [by_model, by_layer, by_group])
@pytest.mark.parametrize("name", NAMES)
def test_offload_in_either_order(name: str, offload: Callable[[Any], None], is_first: bool) -> None:
    pipe, alone = ZOO[name].build(), run(ZOO[name], ZOO[name].build())
    if is_first:
        offload(pipe)
    parallel = simulate(pipe)
    if not is_first:
        offload(pipe)
    for _ in range(3):  # model offload takes its hooks off and puts new ones on after every call
        assert relative_difference(run(ZOO[name], parallel), alone) < 1e-5
        assert parallel.report is not None
        assert all(step.discrepancy is not None for step in parallel.report.steps)  # we were not passed by
    parallel.detach()
    assert torch.equal(run(ZOO[name], pipe), alone)
    assert not any("hybridiff" in registry.hooks for registry in registries(pipe))


def registries(pipe: Any) -> list[Any]:
    return [network._diffusers_hook for network in networks(pipe) if hasattr(network, "_diffusers_hook")]


@pytest.mark.parametrize("is_first", [True, False], ids=["before", "after"])
def test_offload_stays_in_force_after_detaching(is_first: bool) -> None:
    pipe = ZOO["PixArtSigmaPipeline"].build()
    if is_first:
        by_layer(pipe)
    parallel = simulate(pipe)
    if not is_first:
        by_layer(pipe)
    parallel.detach()
    assert all(weight.is_meta for weight in pipe.transformer.parameters())
    assert run(ZOO["PixArtSigmaPipeline"], pipe).isfinite().all()
    pipe.remove_all_hooks()
    assert not any(weight.is_meta for weight in pipe.transformer.parameters())
    assert "forward" not in vars(pipe.transformer) or vars(pipe.transformer)["forward"] == pipe.transformer.forward
