"""Contract 2: stages on fresh boundaries are the whole network, bit for bit, at every split point."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from hybridiff.denoiser.blocks import Boundary
from hybridiff.denoiser.layers import LayerCost, NetworkCost
from hybridiff.denoiser.split import SplitPoint, make_split
from hybridiff.denoiser.stages import StagedDenoiser
from support.networks import NETWORKS, adapter_of, count_layers, evaluation_of

SIZES = {"sdxl": (13, 10), "sd1.x": (11, 13), "sd2.x": (13, 14), "sd3": (10, 14), "sd3.5": (14, 6)}
"""Height and width of the sample: no multiple of the upsampling factor; multiples of the patch alone."""


pytestmark = pytest.mark.usefixtures("without_gradients")


def staged_of(network: Any) -> StagedDenoiser:
    return StagedDenoiser(adapter_of(network), network)


def apply_split(staged: StagedDenoiser, point: SplitPoint) -> None:
    """Split without measuring: the costs are made up."""
    costs = NetworkCost([LayerCost(1.0, 0, 1)] * len(staged.layers))
    staged.apply(make_split(point, staged.layers, costs))


def giving(up: Boundary) -> Callable[[Boundary], Boundary]:
    """Stands in for the inner stage, whatever the boundary."""
    return lambda _: up


@pytest.mark.parametrize(("extras", "every"), [(True, 1), (False, 4)], ids=["two images and a ControlNet", "one image"])
@pytest.mark.parametrize("name", NETWORKS)
def test_stages_on_fresh_boundaries_are_the_whole_network(name: str, extras: bool, every: int) -> None:
    network = NETWORKS[name]()
    staged = staged_of(network)
    evaluation = evaluation_of(network, 4 if extras else 2, *SIZES[name], extras=extras)
    branch = slice(2, 4) if extras else slice(1, 2)
    expected = evaluation.run(branch)
    assert len(staged.split_points) > 5
    for point in staged.split_points[::every]:
        apply_split(staged, point)
        assert torch.equal(staged.run_whole(evaluation, branch), expected), point
        down, up = staged.down, staged.up
        kept = [tensor.clone() for tensor in (*down, *up)]

        assert torch.equal(staged.run_outer(evaluation, branch, giving(up)), expected), point
        assert_same(staged.down, down, point)
        assert_same(staged.run_inner(evaluation, branch, down), up, point)
        assert_same((*down, *up), tuple(kept), point)  # nobody writes to what was handed over


@pytest.mark.parametrize("name", ["sdxl", "sd3.5"])
def test_what_stands_in_for_the_inner_stage_is_given_the_fresh_boundary(name: str) -> None:
    network = NETWORKS[name]()
    staged = staged_of(network)
    evaluation = evaluation_of(network, 2, *SIZES[name])
    branch = slice(0, 1)
    expected = evaluation.run(branch)
    handed: list[Boundary] = []
    for point in staged.split_points[::3]:
        apply_split(staged, point)
        staged.run_whole(evaluation, branch)
        down, up = staged.down, staged.up

        def swap(fresh: Boundary, result: Boundary = up) -> Boundary:
            handed.append(fresh)
            return result

        assert torch.equal(staged.run_outer(evaluation, branch, swap), expected), point
        assert_same(handed.pop(), down, point)
    assert not handed


def assert_same(tensors: Boundary, expected: Boundary, point: SplitPoint) -> None:
    assert len(tensors) == len(expected) > 0, point
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(tensors, expected, strict=True)), point


@pytest.mark.parametrize("name", ["sd1.x", "sd3"])
def test_stale_boundaries_matter(name: str) -> None:
    """Otherwise the tests above would pass for stages that ignore what they are given."""
    network = NETWORKS[name]()
    staged = staged_of(network)
    evaluation = evaluation_of(network, 2, *SIZES[name])
    for point in staged.split_points[:: 1 if name == "sd3" else 4]:
        apply_split(staged, point)
        staged.run_whole(evaluation, slice(0, 1))
        other_down, other_up = staged.down, staged.up
        fresh = staged.run_whole(evaluation, slice(1, 2))
        up = staged.up
        mixed = staged.run_outer(evaluation, slice(1, 2), giving(other_up))
        assert not torch.equal(mixed, fresh), point
        mixed_up = staged.run_inner(evaluation, slice(1, 2), other_down)
        assert not all(torch.equal(ours, theirs) for ours, theirs in zip(mixed_up, up, strict=True)), point


@pytest.mark.parametrize("name", NETWORKS)
def test_every_layer_runs_in_one_stage(name: str) -> None:
    """Counted at the layers inside the blocks, as a skipped block is still called, though nothing in it is."""
    network = NETWORKS[name]()
    counts = count_layers(network)
    staged = staged_of(network)
    evaluation = evaluation_of(network, 2, *SIZES[name])
    branch = slice(0, 1)
    for point in staged.split_points[:: 1 if name.startswith("sd3") else 4]:
        apply_split(staged, point)
        counts.clear()
        staged.run_whole(evaluation, branch)
        whole, down, up = counts.copy(), staged.down, staged.up

        counts.clear()
        staged.run_outer(evaluation, branch, giving(up))
        outer = counts.copy()
        counts.clear()
        staged.run_inner(evaluation, branch, down)
        inner = counts.copy()

        names = [layer.name for layer in staged.layers]
        owners = {module: next((name for name in names if is_in(module, name)), None) for module in whole}
        assert None in owners.values(), "embeddings and the like belong to no layer"
        assert {owner for owner in owners.values() if owner} == set(names)
        for module, owner in owners.items():
            runs = (outer[module], inner[module])
            if owner is None:
                assert runs in ((whole[module], whole[module]), (whole[module], 0)), module
            else:
                is_inner = point.is_inner(names.index(owner))
                assert runs == ((0, whole[module]) if is_inner else (whole[module], 0)), (point, module)


def is_in(module: str, layer: str) -> bool:
    return module == layer or module.startswith(layer + ".")


@pytest.mark.parametrize("name", NETWORKS)
def test_removing_leaves_nothing_behind(name: str) -> None:
    network = NETWORKS[name]()
    before = vars_of(network)
    staged = staged_of(network)
    evaluation = evaluation_of(network, 2, *SIZES[name])
    expected = evaluation.run(slice(0, 1))
    staged.measure(evaluation, slice(0, 1))
    assert vars_of(network) == before
    for point in staged.split_points[::7]:
        apply_split(staged, point)
        assert vars_of(network) != before
        staged.run_whole(evaluation, slice(0, 1))
        staged.run_inner(evaluation, slice(0, 1), staged.down)
    staged.remove()
    assert vars_of(network) == before
    assert (staged.split, staged.made_for, staged.down, staged.up) == (None, None, (), ())
    assert torch.equal(network(**evaluation.calls[0].arguments, return_dict=False)[0][:1], evaluation.run()[:1])
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
    """The split stays in force between steps, and not every call of the network goes through it."""
    network = NETWORKS[name]()
    staged = staged_of(network)
    evaluation = evaluation_of(network, 2, *SIZES[name])
    expected = evaluation.run()
    apply_split(staged, staged.split_points[len(staged.split_points) // 2])
    staged.run_whole(evaluation, slice(0, 1))
    up = staged.up
    if stage == "outer":
        staged.run_outer(evaluation, slice(0, 1), giving(up))
    else:
        staged.run_inner(evaluation, slice(0, 1), staged.down)
    assert torch.equal(network(**evaluation.calls[0].arguments, return_dict=False)[0], expected)


@pytest.mark.parametrize("stage", ["outer", "inner"])
def test_a_call_after_a_stage_that_failed_runs_the_whole_network(stage: str) -> None:
    network = NETWORKS["sd3"]()
    staged = staged_of(network)
    evaluation = evaluation_of(network, 2, 8, 8)
    expected = evaluation.run()
    apply_split(staged, SplitPoint(entry=0, exit=3))
    staged.run_whole(evaluation, slice(0, 1))
    down, up = staged.down, staged.up
    block = network.transformer_blocks[4 if stage == "outer" else 1].attn
    handle = block.register_forward_pre_hook(fail)
    with pytest.raises(RuntimeError, match="planted"):
        staged.run_outer(evaluation, slice(0, 1), giving(up)) if stage == "outer" else staged.run_inner(
            evaluation, slice(0, 1), down
        )
    handle.remove()
    assert torch.equal(network(**evaluation.calls[0].arguments, return_dict=False)[0], expected)


def fail(*_: Any) -> None:
    raise RuntimeError("planted")


@pytest.mark.parametrize("name", NETWORKS)
def test_measured_costs_cover_the_whole_network(name: str) -> None:
    network = NETWORKS[name]()
    staged = staged_of(network)
    evaluation = evaluation_of(network, 2, *SIZES[name])
    splits = staged.measure(evaluation, slice(1, 2))
    assert [split.point for split in splits] == staged.split_points
    for split in splits:
        assert split.entry == staged.layers[split.point.entry].name
        assert split.exit == staged.layers[split.point.exit].name
        assert 0 < split.outer < 1
        assert 0 < split.inner < 1
        assert split.outer + split.inner >= 1 - 1e-9
        assert 0 < split.outer_work < 1
        assert 0 < split.inner_work < 1
        assert split.outer_work + split.inner_work >= 1 - 1e-9
        assert split.seconds == splits[0].seconds > 0
    for split in splits[::5]:
        apply_split(staged, split.point)
        staged.run_whole(evaluation, slice(1, 2))
        assert split.down_bytes == sum(tensor.nbytes for tensor in staged.down)
        assert split.up_bytes == sum(tensor.nbytes for tensor in staged.up)


def test_a_wider_inner_stage_costs_more() -> None:
    network = NETWORKS["sd3"]()
    staged = staged_of(network)
    splits = staged.measure(evaluation_of(network, 2, 8, 8), slice(0, 1))
    inner = {split.point: (split.inner, split.inner_work) for split in splits}
    for point, (seconds, work) in inner.items():
        for other, (other_seconds, other_work) in inner.items():
            if other.entry <= point.entry and point.exit <= other.exit and other != point:
                assert other_seconds > seconds
                assert other_work > work


@pytest.mark.parametrize("name", NETWORKS)
def test_two_measurements_count_the_same_work(name: str) -> None:
    """Times differ from one to the next, so nothing that decides an image may rest on them."""
    counts = []
    for _ in range(2):
        network = NETWORKS[name]()
        splits = staged_of(network).measure(evaluation_of(network, 2, *SIZES[name]), slice(1, 2))
        counts.append([(split.outer_work, split.inner_work, split.down_bytes, split.up_bytes) for split in splits])
    assert counts[0] == counts[1]


@pytest.mark.parametrize("name", ["sdxl", "sd3"])
def test_a_feature_stands_for_the_inner_result(name: str) -> None:
    """U-Nets keep the result itself; transformers what their inner blocks add to their input."""
    network = NETWORKS[name]()
    staged = staged_of(network)
    evaluation = evaluation_of(network, 2, *SIZES[name])
    apply_split(staged, staged.split_points[1])
    staged.run_whole(evaluation, slice(0, 1))
    down, up = staged.down, staged.up
    feature = staged.feature(down, up)
    if name == "sdxl":
        assert_same(feature, up, staged.split_points[1])
    else:
        expected = tuple(result - given for result, given in zip(up, down, strict=True))
        assert_same(feature, expected, staged.split_points[1])
    again = staged.result(down, feature)
    assert all(torch.allclose(ours, theirs, atol=1e-6) for ours, theirs in zip(again, up, strict=True))


def test_boundaries_are_let_go_at_the_end_of_a_call() -> None:
    network = NETWORKS["sd3"]()
    staged = staged_of(network)
    apply_split(staged, staged.split_points[0])
    staged.run_whole(evaluation_of(network, 2, 8, 8), slice(0, 1))
    assert staged.down
    assert staged.up
    split = staged.split
    staged.release()
    assert (staged.down, staged.up) == ((), ())
    assert staged.split is split  # stays in force
