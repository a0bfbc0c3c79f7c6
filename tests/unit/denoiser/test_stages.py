"""Contract 2: stages on fresh boundaries are the uncut network, bit for bit, at every cut."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from hybridiff.denoiser.blocks import Boundary
from hybridiff.denoiser.split import Cut, UnitCost, plan_cut
from hybridiff.denoiser.stages import StagedDenoiser
from support.networks import NETWORKS, count_layers, evaluation_of, family_of

SIZES = {"sdxl": (13, 10), "sd1.x": (11, 13), "sd2.x": (13, 14), "sd3": (10, 14), "sd3.5": (14, 6)}
"""Height and width of the sample: no multiple of the upsampling factor; multiples of the patch alone."""


@pytest.fixture(autouse=True)
def _no_gradients() -> Iterator[None]:
    with torch.no_grad():
        yield


def staged_of(network: Any) -> StagedDenoiser:
    return StagedDenoiser(family_of(network), network)


def put_cut(staged: StagedDenoiser, cut: Cut, shape: torch.Size) -> None:
    """Cut without measuring: the costs are made up."""
    costs = [UnitCost(1.0, 0, 1)] * len(staged.units)
    staged.cut(plan_cut(cut, staged.units, costs, 0.0), shape)


@pytest.mark.parametrize(
    ("extras", "every"), [(True, 1), (False, 4)], ids=["two pictures and a ControlNet", "one picture"]
)
@pytest.mark.parametrize("name", NETWORKS)
def test_stages_on_fresh_boundaries_are_the_uncut_network(name: str, extras: bool, every: int) -> None:
    network = NETWORKS[name]()
    staged = staged_of(network)
    evaluation = evaluation_of(network, 4 if extras else 2, *SIZES[name], extras=extras)
    branch = slice(2, 4) if extras else slice(1, 2)
    expected = evaluation.run(branch)
    assert len(staged.cuts) > 5
    for cut in staged.cuts[::every]:
        put_cut(staged, cut, evaluation.sample.shape)
        assert torch.equal(staged.run_whole(evaluation, branch, capture=True), expected), cut
        down, up = staged.down, staged.up
        kept = [tensor.clone() for tensor in (*down, *up)]

        assert torch.equal(staged.run_outer(evaluation, branch, up=up), expected), cut
        assert_same(staged.down, down, cut)
        assert_same(staged.run_inner(evaluation, branch, down), up, cut)
        assert_same((*down, *up), tuple(kept), cut)  # nobody writes to what was handed over


@pytest.mark.parametrize("name", ["sdxl", "sd3.5"])
def test_an_exchange_in_the_middle_of_the_outer_stage(name: str) -> None:
    network = NETWORKS[name]()
    staged = staged_of(network)
    evaluation = evaluation_of(network, 2, *SIZES[name])
    branch = slice(0, 1)
    expected = evaluation.run(branch)
    handed: list[Boundary] = []
    for cut in staged.cuts[::3]:
        put_cut(staged, cut, evaluation.sample.shape)
        staged.run_whole(evaluation, branch, capture=True)
        down, up = staged.down, staged.up

        def swap(fresh: Boundary, result: Boundary = up) -> Boundary:
            handed.append(fresh)
            return result

        assert torch.equal(staged.run_outer(evaluation, branch, exchange=swap), expected), cut
        assert_same(handed.pop(), down, cut)
    assert not handed


def assert_same(tensors: Boundary, expected: Boundary, cut: Cut) -> None:
    assert len(tensors) == len(expected) > 0, cut
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(tensors, expected, strict=True)), cut


@pytest.mark.parametrize("name", ["sd1.x", "sd3"])
def test_stale_boundaries_matter(name: str) -> None:
    """Otherwise the tests above would pass for stages that ignore what they are given."""
    network = NETWORKS[name]()
    staged = staged_of(network)
    evaluation = evaluation_of(network, 2, *SIZES[name])
    for cut in staged.cuts[:: 1 if name == "sd3" else 4]:
        put_cut(staged, cut, evaluation.sample.shape)
        staged.run_whole(evaluation, slice(0, 1), capture=True)
        other_down, other_up = staged.down, staged.up
        fresh = staged.run_whole(evaluation, slice(1, 2), capture=True)
        up = staged.up
        mixed = staged.run_outer(evaluation, slice(1, 2), up=other_up)
        assert not torch.equal(mixed, fresh), cut
        mixed_up = staged.run_inner(evaluation, slice(1, 2), other_down)
        assert not all(torch.equal(ours, theirs) for ours, theirs in zip(mixed_up, up, strict=True)), cut


@pytest.mark.parametrize("name", NETWORKS)
def test_every_layer_runs_in_one_stage(name: str) -> None:
    """Counted at the layers inside the blocks, as a skipped block is still called, though nothing in it is."""
    network = NETWORKS[name]()
    counts = count_layers(network)
    staged = staged_of(network)
    evaluation = evaluation_of(network, 2, *SIZES[name])
    branch = slice(0, 1)
    for cut in staged.cuts[:: 1 if name.startswith("sd3") else 4]:
        put_cut(staged, cut, evaluation.sample.shape)
        counts.clear()
        staged.run_whole(evaluation, branch, capture=True)
        whole, down, up = counts.copy(), staged.down, staged.up

        counts.clear()
        staged.run_outer(evaluation, branch, up=up)
        outer = counts.copy()
        counts.clear()
        staged.run_inner(evaluation, branch, down)
        inner = counts.copy()

        in_units = {
            layer: next((unit.name for unit in staged.units if is_in(layer, unit.name)), None) for layer in whole
        }
        assert None in in_units.values(), "embeddings and the like belong to no unit"
        assert {unit for unit in in_units.values() if unit} == {unit.name for unit in staged.units}
        for layer, unit in in_units.items():
            runs = (outer[layer], inner[layer])
            if unit is None:
                assert runs in ((whole[layer], whole[layer]), (whole[layer], 0)), layer
            else:
                is_inner = cut.is_inner([other.name for other in staged.units].index(unit))
                assert runs == ((0, whole[layer]) if is_inner else (whole[layer], 0)), (cut, layer)


def is_in(layer: str, unit: str) -> bool:
    return layer == unit or layer.startswith(unit + ".")


@pytest.mark.parametrize("name", NETWORKS)
def test_uncut_leaves_nothing_behind(name: str) -> None:
    network = NETWORKS[name]()
    before = vars_of(network)
    staged = staged_of(network)
    evaluation = evaluation_of(network, 2, *SIZES[name])
    expected = evaluation.run(slice(0, 1))
    staged.measure(evaluation, slice(0, 1))
    assert vars_of(network) == before
    for cut in staged.cuts[::7]:
        put_cut(staged, cut, evaluation.sample.shape)
        assert vars_of(network) != before
        staged.run_whole(evaluation, slice(0, 1), capture=True)
        staged.run_inner(evaluation, slice(0, 1), staged.down)
    staged.uncut()
    assert vars_of(network) == before
    assert (staged.plan, staged.shape, staged.down, staged.up) == (None, None, (), ())
    assert torch.equal(network(**evaluation.arguments, return_dict=False)[0][:1], evaluation.run()[:1])
    assert torch.equal(evaluation.run(slice(0, 1)), expected)


def vars_of(network: torch.nn.Module) -> dict[str, Any]:
    """What every module carries, by identity, with a look into its dicts of hooks, parts and parameters."""
    return {
        f"{name}.{attribute}": {key: id(item) for key, item in value.items()} if isinstance(value, dict) else id(value)
        for name, module in network.named_modules()
        for attribute, value in vars(module).items()
    }


@pytest.mark.parametrize("name", ["sdxl", "sd3"])
@pytest.mark.parametrize("stage", ["outer", "inner"])
def test_a_call_after_a_stage_runs_the_whole_network(name: str, stage: str) -> None:
    """The cut stays in force between steps, and not every call of the network goes through it."""
    network = NETWORKS[name]()
    staged = staged_of(network)
    evaluation = evaluation_of(network, 2, *SIZES[name])
    expected = evaluation.run()
    put_cut(staged, staged.cuts[len(staged.cuts) // 2], evaluation.sample.shape)
    staged.run_whole(evaluation, slice(0, 1), capture=True)
    if stage == "outer":
        staged.run_outer(evaluation, slice(0, 1), up=staged.up)
    else:
        staged.run_inner(evaluation, slice(0, 1), staged.down)
    assert torch.equal(network(**evaluation.arguments, return_dict=False)[0], expected)


@pytest.mark.parametrize("stage", ["outer", "inner"])
def test_a_call_after_a_stage_that_failed_runs_the_whole_network(stage: str) -> None:
    network = NETWORKS["sd3"]()
    staged = staged_of(network)
    evaluation = evaluation_of(network, 2, 8, 8)
    expected = evaluation.run()
    put_cut(staged, Cut(entry=0, exit=3), evaluation.sample.shape)
    staged.run_whole(evaluation, slice(0, 1), capture=True)
    down, up = staged.down, staged.up
    block = network.transformer_blocks[4 if stage == "outer" else 1].attn
    handle = block.register_forward_pre_hook(fail)
    with pytest.raises(RuntimeError, match="planted"):
        staged.run_outer(evaluation, slice(0, 1), up=up) if stage == "outer" else staged.run_inner(
            evaluation, slice(0, 1), down
        )
    handle.remove()
    assert torch.equal(network(**evaluation.arguments, return_dict=False)[0], expected)


def fail(*_: Any) -> None:
    raise RuntimeError("planted")


@pytest.mark.parametrize("name", NETWORKS)
def test_measured_costs_cover_the_whole_network(name: str) -> None:
    network = NETWORKS[name]()
    staged = staged_of(network)
    evaluation = evaluation_of(network, 2, *SIZES[name])
    plans = staged.measure(evaluation, slice(1, 2))
    assert [plan.cut for plan in plans] == staged.cuts
    for plan in plans:
        assert plan.entry == staged.units[plan.cut.entry].name
        assert plan.exit == staged.units[plan.cut.exit].name
        assert 0 < plan.outer < 1
        assert 0 < plan.inner < 1
        assert plan.outer + plan.inner >= 1 - 1e-9
        assert plan.seconds == plans[0].seconds > 0
    for plan in plans[::5]:
        put_cut(staged, plan.cut, evaluation.sample.shape)
        staged.run_whole(evaluation, slice(1, 2), capture=True)
        assert plan.down_bytes == sum(tensor.nbytes for tensor in staged.down)
        assert plan.up_bytes == sum(tensor.nbytes for tensor in staged.up)


def test_a_wider_inner_stage_costs_more() -> None:
    network = NETWORKS["sd3"]()
    staged = staged_of(network)
    plans = staged.measure(evaluation_of(network, 2, 8, 8), slice(0, 1))
    inner = {plan.cut: plan.inner for plan in plans}
    for cut, cost in inner.items():
        for other, other_cost in inner.items():
            if other.entry <= cut.entry and cut.exit <= other.exit and other != cut:
                assert other_cost > cost
