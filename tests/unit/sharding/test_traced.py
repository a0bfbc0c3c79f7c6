"""Parts in compiled blocks: what ranks make of them together is what the uncompiled whole makes, by few graphs."""

from __future__ import annotations

import copy
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from diffusers.models.attention_processor import AttnProcessor

from hybridiff import ParallelConfig, UsageError, parallelize
from hybridiff.models.compiling import compile_denoisers
from hybridiff.sharding import choice
from hybridiff.sharding.group import ThreadGroup
from hybridiff.sharding.network import ShardedNetwork, shard_network
from support.compiled import Graphs
from support.oracles import relative_difference
from support.shards import Arguments, ranks, recorded, shared, whole
from zoo import ZOO, run

SPECIMENS = (
    "StableDiffusionXLPipeline",
    "StableDiffusion3Pipeline",
    "StableDiffusion3Pipeline:3.5",
    "FluxPipeline",
    "Flux2Pipeline",
    "QwenImagePipeline",
    "WanPipeline",
    "LTXPipeline",
)
SDXL = SPECIMENS[0]


@pytest.fixture(autouse=True)
def _forget_graphs() -> None:
    torch.compiler.reset()


@pytest.fixture
def graphs(monkeypatch: pytest.MonkeyPatch) -> Graphs:
    """The backend of whatever is compiled; graphs that break are an error."""
    made, compile = Graphs(), torch.nn.Module.compile
    monkeypatch.setattr(torch.nn.Module, "compile", lambda module: compile(module, backend=made, fullgraph=True))
    return made


def in_blocks(name: str, **changes: Any) -> tuple[ShardedNetwork, Arguments]:
    """A network with compiled blocks, ready to be shared, and a call."""
    network, arguments = recorded(name, **changes)
    network = copy.deepcopy(network)
    compile_denoisers(SimpleNamespace(transformer=network), "blocks")
    sharded = shard_network(network)
    assert sharded is not None
    return sharded, arguments


@pytest.mark.parametrize("name", SPECIMENS)
def test_parts_are_the_whole_by_few_graphs(name: str, graphs: Graphs) -> None:
    sharded, arguments = in_blocks(name)
    expected, parts = whole(recorded(name)[0], arguments), min(3, sharded.most_parts(arguments))
    group = ranks(parts)
    assert parts > 1
    assert relative_difference(shared(sharded, arguments, group), expected) <= 1e-5
    assert relative_difference(whole(sharded.network, arguments), expected) <= 1e-5
    made = graphs.made
    for _ in range(2):
        assert relative_difference(shared(sharded, arguments, group), expected) <= 1e-5
        assert relative_difference(whole(sharded.network, arguments), expected) <= 1e-5
    assert graphs.made == made
    assert 0 < made <= 8  # of up to three kinds of blocks: one more for each length that proved to vary


@pytest.mark.parametrize("name", ["StableDiffusion3Pipeline", "FluxPipeline"])
def test_autocast_goes_through_the_operator(name: str, graphs: Graphs) -> None:
    sharded, arguments = in_blocks(name)
    plain = shard_network(copy.deepcopy(recorded(name)[0]))
    assert plain is not None
    with torch.autocast("cpu", torch.bfloat16):
        expected = shared(plain, arguments, 2)
        made = shared(sharded, arguments, 2)
    assert made.dtype is expected.dtype
    assert relative_difference(made.float(), expected.float()) < 2e-2
    assert graphs.made > 0


def test_layers_that_attend_in_another_way_are_found_out(graphs: Graphs) -> None:
    sharded, arguments = in_blocks(SDXL)
    sharded.network.set_attn_processor(AttnProcessor())  # type: ignore[operator]
    assert relative_difference(whole(sharded.network, arguments), whole(recorded(SDXL)[0], arguments)) <= 1e-5
    with pytest.raises(UsageError, match=r"attention 1 does not attend by scaled_dot_product_attention, so it cannot"):
        shared(sharded, arguments, 2)


def test_a_rank_that_raises_within_a_graph_ends_them_all(graphs: Graphs, monkeypatch: pytest.MonkeyPatch) -> None:
    sharded, arguments = in_blocks("FluxPipeline")
    expected, gather = shared(sharded, arguments, 2), ThreadGroup.start_concatenate

    def fail(group: ThreadGroup, place: str, *rest: Any) -> Callable[[], torch.Tensor]:
        if group.index and "single_transformer_blocks.0" in place:
            raise ArithmeticError("planted")
        return gather(group, place, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(ThreadGroup, "start_concatenate", fail)
        with pytest.raises(ArithmeticError, match="planted"):
            shared(sharded, arguments, 2)
    assert torch.equal(shared(sharded, arguments, 2), expected)


def test_hooks_come_off(graphs: Graphs) -> None:
    network, arguments = recorded(SDXL)
    network = copy.deepcopy(network)
    compile_denoisers(SimpleNamespace(unet=network), "blocks")
    before = [(module._compiled_call_impl, set(vars(module))) for module in network.modules()]
    sharded = shard_network(network)
    assert sharded is not None
    shared(sharded, arguments, 2)
    assert not sharded.is_outdated
    sharded.remove()
    assert before == [(module._compiled_call_impl, set(vars(module))) for module in network.modules()]


def test_what_lies_deeper_in_a_graph_is_not_cut() -> None:
    sharded, _ = in_blocks("HeliosPipeline")  # which cuts its streams within blocks
    assert sharded.why_whole == "HeliosAttention of HeliosTransformer3DModel is compiled as a part of a larger module"
    network = copy.deepcopy(recorded(SDXL)[0])
    assert not shard_network(network).why_whole  # type: ignore[union-attr]


@pytest.mark.parametrize("compile", ["whole", "blocks"])
def test_shards_that_are_not_asked_for(compile: str, graphs: Graphs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choice, "LEAST_PIXELS", 1)
    pipe = compile_denoisers(ZOO["FluxPipeline"].build(), compile)
    with parallelize(pipe, ParallelConfig(devices=4, simulate=True)) as parallel:
        result, report = run(ZOO["FluxPipeline"], parallel), parallel.report
    assert relative_difference(result, run(ZOO["FluxPipeline"], ZOO["FluxPipeline"].build())) < 1e-5
    assert report is not None
    assert report.partition is not None
    assert report.partition.shards == (2 if compile == "blocks" else 1)
    why = "the network is compiled as a whole, not by its blocks: ranks do not share images"
    assert (why in report.notes) == (compile == "whole")


def test_an_image_that_cannot_be_cut_as_it_is_compiled(graphs: Graphs) -> None:
    pipe = ZOO["FluxPipeline"].build()
    pipe.transformer.transformer_blocks.compile()
    assert not shard_network(pipe.transformer).why_whole  # type: ignore[union-attr]
    helios = compile_denoisers(ZOO["HeliosPipeline"].build(), "blocks")
    with (
        parallelize(helios, ParallelConfig(devices=2, shards=2, simulate=True)) as parallel,
        pytest.raises(UsageError, match="as a part of a larger module: ranks cannot share images; use shards=1"),
    ):
        run(ZOO["HeliosPipeline"], parallel)


@pytest.mark.slow
@pytest.mark.parametrize("name", [SDXL, "StableDiffusion3Pipeline:3.5"])
def test_inductor_makes_the_same_to_rounding(name: str) -> None:
    sharded, arguments = in_blocks(name)
    group, expected = ranks(2), whole(recorded(name)[0], arguments)
    for _ in range(2):
        assert relative_difference(shared(sharded, arguments, group), expected) <= 1e-4
