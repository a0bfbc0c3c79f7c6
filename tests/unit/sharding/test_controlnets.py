"""ControlNets in parts: ranks that share a picture make of it what one device does, each its part of the residuals."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from diffusers import FluxControlNetModel, FluxMultiControlNetModel, MultiControlNetModel, SD3MultiControlNetModel
from torch.utils.flop_counter import FlopCounterMode

from hybridiff.denoiser.call import bind_arguments
from hybridiff.denoiser.replay import tensors_in
from hybridiff.sharding.control import by_parts, shard_controlnet
from hybridiff.sharding.group import ThreadGroup, play
from hybridiff.sharding.place import PartTensor, current_group, in_parts
from support.oracles import relative_difference
from support.pipelines import start_image
from support.schedules import split_at
from support.shards import fresh, of_dtype, ranks
from support.simulated import report_of, simulate
from zoo import ZOO, run
from zoo.networks import copied_controlnet

UNET, SDXL = "StableDiffusionControlNetPipeline", "StableDiffusionXLControlNetPipeline"
SD3, FLUX = "StableDiffusion3ControlNetPipeline", "FluxControlNetPipeline"
UNION = "StableDiffusionXLControlNetUnionPipeline"
LAYERS = {UNET: "conv_in", SDXL: "conv_in", UNION: "conv_in"} | dict.fromkeys((SD3, FLUX), "transformer_blocks.0.ff")
"""Layers whose inputs have the rows, or the tokens, of the picture."""

REUSE = {"strategy": "hybrid", "step_kind": "reuse", "full_steps": "0-1", "calibration": split_at("reuse", 0)}
TWO, SCALES = [start_image(), start_image().rotate(90)], {"controlnet_conditioning_scale": [0.8, 0.3]}
MULTI = {
    UNET: (MultiControlNetModel, {"image": TWO, **SCALES}),
    SDXL: (MultiControlNetModel, {"image": TWO, **SCALES}),
    SD3: (SD3MultiControlNetModel, {"control_image": TWO, **SCALES}),
    FLUX: (FluxMultiControlNetModel, {"control_image": TWO, "control_mode": [None, None], **SCALES}),
}
"""What several ControlNets of a pipeline are called, and how it is given their images."""


def doubled(name: str) -> Any:
    """A pipeline with two ControlNets that differ."""
    pipe, other = ZOO[name].build(), ZOO[name].build().controlnet
    with torch.no_grad():
        for weight in other.parameters():
            weight.mul_(0.9)
    pipe.register_modules(controlnet=MULTI[name][0]([pipe.controlnet, other]))
    return pipe


@contextmanager
def seen(network: Any, layer: str) -> Iterator[list[tuple[int, bool]]]:
    """Rows or tokens that a layer of a ControlNet is given at each call, and whether they are a part."""
    lengths: list[tuple[int, bool]] = []

    def see(_: Any, given: Any) -> None:
        lengths.append((given[0].shape[1 if given[0].ndim == 3 else 2], current_group() is not None))

    hook = getattr(network, "nets", [network])[0].get_submodule(layer).register_forward_pre_hook(see)
    yield lengths
    hook.remove()


def compare(
    name: str, pipe: Any = None, devices: int = 2, shards: int = 2, config: Any = None, **changes: Any
) -> tuple[float, list[tuple[int, bool]]]:
    """How far ranks that share a picture are from one that has all of it, and what their ControlNet is given."""
    pipe = pipe or ZOO[name].build()
    with simulate(pipe, **{"devices": 1} | (config or {})) as parallel:
        expected = run(ZOO[name], parallel, **changes)
    with (
        simulate(pipe, devices=devices, shards=shards, **config or {}) as parallel,
        seen(pipe.controlnet, LAYERS[name]) as lengths,
    ):
        made = run(ZOO[name], parallel, **changes)
        partition = report_of(parallel).partition
        assert partition is not None
        assert partition.shards == shards
    return relative_difference(made, expected), lengths


def parts_of(lengths: list[tuple[int, bool]]) -> set[int]:
    return {length for length, is_part in lengths if is_part}


@pytest.mark.parametrize(
    ("name", "devices", "shards", "changes", "parts"),
    [
        pytest.param(UNET, 2, 2, {}, {8}, id="rows"),
        pytest.param(UNET, 3, 3, {"height": 42}, {8, 5}, id="rows of three"),
        pytest.param(SDXL, 4, 2, {"height": 46, "width": 30}, {12, 11}, id="two groups"),
        pytest.param(SDXL, 2, 2, {"guidance_scale": 1.0, "num_images_per_prompt": 3}, {8}, id="three images"),
        pytest.param(SD3, 2, 2, {"width": 24}, {24}, id="tokens"),
        pytest.param(SD3, 6, 3, {"height": 40, "width": 56}, {46, 47}, id="tokens of three"),
        pytest.param(FLUX, 2, 2, {}, {32}, id="tokens of FLUX"),
        pytest.param(FLUX, 6, 3, {"height": 20}, {13, 14}, id="tokens of FLUX by three, for both branches"),
    ],
)
def test_ranks_make_what_one_does_and_evaluate_parts_of_the_controlnet(
    name: str, devices: int, shards: int, changes: dict[str, Any], parts: set[int]
) -> None:
    difference, lengths = compare(name, None, devices, shards, **changes)
    assert difference <= 1e-5
    assert parts_of(lengths) == parts


@pytest.mark.parametrize("name", [UNET, SDXL, SD3])
def test_the_same_in_float64(name: str) -> None:
    assert compare(name, ZOO[name].build().to(torch.float64))[0] <= 1e-10


@pytest.mark.parametrize("name", MULTI)
def test_several_controlnets(name: str) -> None:
    difference, lengths = compare(name, doubled(name), 3, 3, **MULTI[name][1])
    assert difference <= 1e-5
    assert parts_of(lengths)


@pytest.mark.parametrize(
    ("changes", "calls"),
    [
        pytest.param({"control_guidance_end": 0.5}, [False] * 4 + [True] * 4, id="end"),
        pytest.param({"control_guidance_start": 0.5}, [False] * 4 + [True] * 4, id="start"),
        pytest.param({"guidance_scale": 1.0, "control_guidance_end": 0.5}, [False] * 2 + [True] * 4, id="no guidance"),
    ],
)
def test_control_that_begins_or_ends_on_the_way(changes: dict[str, Any], calls: list[bool]) -> None:
    difference, lengths = compare(UNET, **changes)
    assert difference <= 1e-5
    assert sorted(is_part for _, is_part in lengths) == calls


@pytest.mark.parametrize("config", [REUSE, {"strategy": "hybrid", "full_steps": "0,2-3"}], ids=["reuse", "cached"])
def test_steps_between_full_ones(config: dict[str, Any]) -> None:
    difference, lengths = compare(UNET, config=config)
    assert difference <= 1e-5
    assert parts_of(lengths) == {8}


def test_displaced_messages_of_one_step_are_those_of_now() -> None:
    difference, lengths = compare(UNET, config={"displaced": True, "displaced_warm_up": 10})
    assert difference <= 1e-5
    assert parts_of(lengths) == {8}


def test_displaced_messages() -> None:
    difference, _ = compare(UNET, config={"displaced": True, "displaced_warm_up": 1})
    assert 1e-5 < difference < 0.1


def call_of(name: str, pipe: Any, **changes: Any) -> dict[str, Any]:
    """The first call that a pipeline makes of its ControlNet, in float64."""
    network, calls = pipe.controlnet, []

    def record(_: Any, args: Any, kwargs: Any) -> None:
        calls.append(fresh(bind_arguments(network.forward, args, kwargs)))

    hook = network.register_forward_pre_hook(record, with_kwargs=True)
    run(ZOO[name], pipe, steps=1, **changes)
    hook.remove()
    arguments: dict[str, Any] = of_dtype(calls[0], torch.float64)
    return arguments


@pytest.mark.parametrize("name", [UNET, SDXL, SD3, FLUX])
@pytest.mark.parametrize("several", [False, True], ids=["one", "several"])
@pytest.mark.parametrize("count", [2, 3])
def test_outputs_of_parts_are_those_of_the_whole(name: str, several: bool, count: int) -> None:
    pipe, changes = (doubled(name), MULTI[name][1]) if several else (ZOO[name].build(), {})
    arguments = call_of(name, pipe, **changes, height=40, width=24)
    network = pipe.controlnet.to(torch.float64)
    expected = tensors_in(network(**arguments))
    forward = by_parts(shard_controlnet(network), network.forward)

    def work(rank: ThreadGroup) -> list[torch.Tensor]:
        with in_parts(rank):
            return tensors_in(forward(**arguments))

    apart = play(ranks(count), work)
    assert len(apart[0]) == len(expected)
    for whole, *parts in zip(expected, *apart, strict=True):
        dim = 2 if whole.ndim == 4 else 1
        assert all(isinstance(part, PartTensor) and part.shape[dim] < whole.shape[dim] for part in parts)
        assert relative_difference(torch.cat(parts, dim).as_subclass(torch.Tensor), whole) <= 1e-12


@pytest.mark.parametrize(("name", "count"), [(UNET, 2), (SDXL, 3), (SD3, 2), (FLUX, 2)])
def test_a_rank_computes_its_share(name: str, count: int) -> None:
    pipe = ZOO[name].build()
    arguments, network = call_of(name, pipe, height=96, width=48), pipe.controlnet.to(torch.float64)
    forward = by_parts(shard_controlnet(network), network.forward)

    def operations(group: ThreadGroup | None) -> int:
        with in_parts(group), FlopCounterMode(display=False) as counter:
            forward(**arguments)
        return int(counter.get_total_flops())

    assert max(play(ranks(count), operations)) <= 1.1 / count * operations(None)


def pooled() -> Any:
    """A pipeline whose ControlNet says the same of all pixels."""
    pipe = ZOO[UNET].build()
    pipe.register_modules(controlnet=copied_controlnet(pipe, global_pool_conditions=True))
    return pipe


def compiled() -> Any:
    """A pipeline whose ControlNet has a compiled block."""
    pipe = ZOO[UNET].build()
    pipe.controlnet.down_blocks[0].compile(backend="eager")
    return pipe


@pytest.mark.parametrize(
    ("name", "build", "changes"),
    [
        pytest.param(UNET, ZOO[UNET].build, {"guess_mode": True}, id="guess mode"),
        pytest.param(UNET, pooled, {}, id="pooled"),
        pytest.param(UNET, compiled, {}, id="compiled"),
        pytest.param(UNION, ZOO[UNION].build, {}, id="union"),
    ],
)
def test_what_cannot_be_cut_is_evaluated_whole(name: str, build: Callable[[], Any], changes: dict[str, Any]) -> None:
    difference, lengths = compare(name, build(), **changes)
    assert difference <= 1e-5
    assert parts_of(lengths) == set()


@pytest.mark.parametrize("settings", [{"num_mode": 2}, {"conditioning_embedding_channels": 4}])
def test_controlnets_of_flux_that_cannot_be_cut(settings: dict[str, int]) -> None:
    config = ZOO[FLUX].build().controlnet.config
    assert shard_controlnet(FluxControlNetModel.from_config(config)) is not None
    assert shard_controlnet(FluxControlNetModel.from_config(config, **settings)) is None


def test_a_picture_of_another_size_is_not_cut() -> None:
    network, samples = ZOO[UNET].build().controlnet, torch.zeros(1, 4, 16, 8)
    sharded = shard_controlnet(network)
    assert sharded is not None
    for height, parts in ((32, 4), (31, 1), (16, 1)):
        call = {"sample": samples, "controlnet_cond": torch.zeros(1, 3, height, 16)}
        assert sharded.most_parts(call) == parts
    sharded.remove()


def hooked(network: torch.nn.Module) -> list[str]:
    return [name for name, module in network.named_modules() if hasattr(module, "_diffusers_hook")]


def test_hooks_inside_are_there_only_where_pictures_are_shared() -> None:
    pipe = ZOO[UNET].build()
    with simulate(pipe) as parallel:
        run(ZOO[UNET], parallel)
        assert hooked(pipe.controlnet) == [""]
    with simulate(pipe, shards=2) as parallel:
        run(ZOO[UNET], parallel)
        assert "conv_in" in hooked(pipe.controlnet)
    assert hooked(pipe.controlnet) == []


def test_what_is_compiled_later_is_evaluated_whole() -> None:
    pipe = ZOO[UNET].build()
    with simulate(pipe, shards=2) as parallel:
        before = run(ZOO[UNET], parallel)
        pipe.controlnet.down_blocks[0].compile(backend="eager")
        with seen(pipe.controlnet, "conv_in") as lengths:
            after = run(ZOO[UNET], parallel)
    assert relative_difference(after, before) <= 1e-5
    assert parts_of(lengths) == set()
