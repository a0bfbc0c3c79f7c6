"""Networks that are loaded for a call and put away after it: rows are evaluated where the network is."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from accelerate import cpu_offload

from hybridiff import ParallelConfig, parallelize
from support.oracles import relative_difference
from support.pipelines import build, denoiser_of, generate
from support.schedules import capped
from support.simulated import simulate
from zoo import ZOO, run

NAMES = ["StableDiffusionPipeline", "PixArtSigmaPipeline", "WanPipeline:two-transformers"]
"""Known, watched, and a call for each branch of two networks, with weights of their own outside of all layers."""


def by_model(pipe: Any) -> None:
    pipe.enable_model_cpu_offload(device="cpu")


def by_layer(pipe: Any) -> None:
    """What `enable_sequential_cpu_offload` does, which wants a GPU; between calls weights are nowhere."""
    pipe.remove_all_hooks()
    for part in pipe.components.values():
        if isinstance(part, torch.nn.Module):
            cpu_offload(part, execution_device=torch.device("cpu"), offload_buffers=len(part._parameters) > 0)


def by_group(pipe: Any) -> None:
    cpu = torch.device("cpu")
    for network in networks(pipe):
        network.enable_group_offload(cpu, cpu, "block_level", num_blocks_per_group=1)  # type: ignore[operator]


def networks(pipe: Any) -> list[torch.nn.Module]:
    second = getattr(pipe, "transformer_2", None)
    return [denoiser_of(pipe), *([second] if second is not None else [])]


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
        assert parallel.report.partition is not None
        assert (parallel.report.partition.largest, parallel.report.notes) == (1, [])  # nor was everything left to all
    parallel.detach()
    assert torch.equal(run(ZOO[name], pipe), alone)
    assert not any("hybridiff" in registry.hooks for registry in registries(pipe))


@pytest.mark.parametrize("is_first", [True, False], ids=["before", "after"])
@pytest.mark.parametrize("offload", [by_model, by_layer, by_group])
@pytest.mark.parametrize(
    "config", [{"strategy": "hybrid", "step_kind": "reuse", "full_steps": "0-1,3"}, capped(10, 3, 2)]
)
def test_a_network_that_is_split(config: dict[str, Any], offload: Callable[[Any], None], is_first: bool) -> None:
    made = []
    for is_offloaded in (False, True):
        pipe = build("sd3")
        if is_offloaded and is_first:
            offload(pipe)
        with parallelize(pipe, ParallelConfig(devices=2, simulate=True, **config)) as parallel:
            if is_offloaded and not is_first:
                offload(pipe)
            made.append(generate(parallel, "sd3", num_inference_steps=10))
            assert parallel.report is not None
            assert len(parallel.report.kinds) > 1
    assert torch.equal(*made)


@pytest.mark.parametrize("offload", [by_model, by_layer, by_group])
def test_ranks_are_joined_by_the_device_on_which_networks_run(
    offload: Callable[[Any], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not by where weights are meanwhile: gloo would be chosen for a GPU."""
    joined: list[torch.device] = []

    def join(device: torch.device, timeout: float) -> bool:
        joined.append(device)
        return False

    monkeypatch.setattr("hybridiff.pipeline.join_torchrun", join)
    pipe = ZOO["StableDiffusionPipeline"].build()
    offload(pipe)
    parallelize(pipe).detach()
    assert joined == [pipe._execution_device]
    assert joined[0].type == "cpu"


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
