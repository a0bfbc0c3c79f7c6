"""Splits within each other: chosen as a search of all of them says, and on fresh boundaries the whole network."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hybridiff import UsageError
from hybridiff.denoiser.blocks import Boundary
from hybridiff.denoiser.layers import Layer, LayerCost, NetworkCost
from hybridiff.denoiser.nesting import choose_nested, nest
from hybridiff.denoiser.split import TIE, Split, SplitPoint, choose_balanced, make_split
from hybridiff.denoiser.stages import StagedDenoiser
from support.networks import NETWORKS, UNETS, adapter_of, count_layers, evaluation_of

pytestmark = pytest.mark.usefixtures("without_gradients")


@st.composite
def split_networks(draw: st.DrawFn) -> list[Split]:
    """All nested splits of a network of made-up layers."""
    works = draw(st.lists(st.integers(1, 50), min_size=5, max_size=9))
    sizes = draw(st.lists(st.integers(1, 9), min_size=len(works), max_size=len(works)))
    costs = [LayerCost(float(work), size, work) for work, size in zip(works, sizes, strict=True)]
    layers = [Layer(f"blocks.{i}", None) for i in range(len(works))]
    cost = NetworkCost(costs, other_work=draw(st.integers(0, 20)))
    points = [SplitPoint(entry, exit_) for entry, exit_ in itertools.combinations(range(len(works) - 1), 2)]
    return [make_split(point, layers, cost) for point in points]


def chains(splits: list[Split], stages: int) -> list[tuple[Split, ...]]:
    """All splits that lie within each other, by trying all."""
    return [
        chain
        for chain in itertools.permutations(splits, stages - 1)
        if all(
            outer.point.entry < inner.point.entry < inner.point.exit < outer.point.exit
            for outer, inner in itertools.pairwise(chain)
        )
    ]


@given(split_networks())
def test_two_stages_are_those_of_a_balanced_split(splits: list[Split]) -> None:
    assert choose_nested(splits, 2) == choose_balanced(splits)


@given(split_networks(), st.integers(3, 4))
def test_the_largest_stage_is_as_small_as_can_be(splits: list[Split], stages: int) -> None:
    possible = [nest(chain) for chain in chains(splits, stages)]
    if not possible:
        with pytest.raises(UsageError, match=f"too small to be cut into {stages} stages; use fewer ranks"):
            choose_nested(splits, stages)
        return
    chosen = choose_nested(splits, stages)
    assert chosen in possible
    least = min(split.larger_work for split in possible)
    assert chosen.larger_work <= least + TIE + 1e-9
    equal = [split for split in possible if split.larger_work <= least + TIE - 1e-9]
    assert all(sent_by(chosen) <= sent_by(split) for split in equal)


def sent_by(split: Split) -> int:
    return split.down_bytes + split.up_bytes


def test_the_costs_of_three_stages() -> None:
    layers = [Layer(f"blocks.{i}", None) for i in range(5)]
    cost = NetworkCost([LayerCost(float(i), i, i) for i in (1, 2, 3, 4, 10)], other_seconds=5.0, other_work=5)
    made = nest(tuple(make_split(point, layers, cost) for point in (SplitPoint(0, 3), SplitPoint(1, 2))))
    assert made.points == (SplitPoint(0, 3), SplitPoint(1, 2))
    assert [made.stage_of(layer) for layer in range(5)] == [0, 1, 2, 1, 0]
    assert [made.outer, made.outer_work] == pytest.approx([16 / 25] * 2)
    assert [made.inner, made.inner_work] == pytest.approx([11 / 25] * 2)  # 2 + 4 + 5, not 3 + 5
    assert (made.down_bytes, made.up_bytes) == (1 + 2, 4 + 3)


CUTS = [(name, stages) for name in UNETS for stages in (3, 4, 6)] + [("sd3", 3), ("sd3.5", 3)]


def cut(name: str, stages: int) -> tuple[Any, StagedDenoiser, Any]:
    network = NETWORKS[name]()
    staged = StagedDenoiser(adapter_of(network), network)
    evaluation = evaluation_of(network, 4, 16, 12)
    staged.apply(choose_nested(staged.measure(evaluation, slice(2, 4)), stages))
    return network, staged, evaluation


@pytest.mark.parametrize(("name", "stages"), CUTS)
def test_stages_on_fresh_boundaries_are_the_whole_network(name: str, stages: int) -> None:
    """Ranks in turn: inwards with results that do not matter, then outwards with those of the stage within."""
    _, staged, evaluation = cut(name, stages)
    branch = slice(2, 4)
    expected = evaluation.run(branch)
    staged.run_whole(evaluation, slice(0, 2))
    stale = dict(staged.ups)
    downs, last = {}, stages - 1
    staged.run_outer(evaluation, branch, lambda _: stale[0])
    downs[0] = staged.down
    for stage in range(1, last):
        staged.run_inner(evaluation, branch, downs[stage - 1], stage, stale[stage])
        downs[stage] = staged.downs[stage]
    up = staged.run_inner(evaluation, branch, downs[last - 1], last)
    for stage in range(last - 1, 0, -1):
        up = staged.run_inner(evaluation, branch, downs[stage - 1], stage, up)
    assert torch.equal(staged.run_outer(evaluation, branch, lambda _, up=up: up), expected)  # type: ignore[misc]

    assert torch.equal(staged.run_whole(evaluation, branch), expected)
    assert staged.downs.keys() == staged.ups.keys() == set(range(last))
    for stage, down in downs.items():
        assert all(torch.equal(ours, theirs) for ours, theirs in zip(staged.downs[stage], down, strict=True))
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(staged.up, up, strict=True))


@pytest.mark.parametrize(("name", "stages"), [("sdxl", 4), ("sd1.x", 3), ("sd3", 3)])
def test_every_layer_runs_in_one_stage(name: str, stages: int) -> None:
    network = NETWORKS[name]()
    counts = count_layers(network)
    staged = StagedDenoiser(adapter_of(network), network)
    evaluation = evaluation_of(network, 2, 16, 12)
    split = choose_nested(staged.measure(evaluation, slice(0, 1)), stages)
    staged.apply(split)
    counts.clear()
    staged.run_whole(evaluation, slice(0, 1))
    whole, downs, ups = counts.copy(), dict(staged.downs), dict(staged.ups)
    ran = []
    for stage in range(stages):
        counts.clear()
        run(staged, evaluation, stage, downs, ups)
        ran.append(counts.copy())
    names = [layer.name for layer in staged.layers]
    for module in whole:
        owner = next((name for name in names if module == name or module.startswith(name + ".")), None)
        if owner is not None:
            expected = [whole[module] * (stage == split.stage_of(names.index(owner))) for stage in range(stages)]
            assert [counted[module] for counted in ran] == expected, module


def run(
    staged: StagedDenoiser, evaluation: Any, stage: int, downs: dict[int, Boundary], ups: dict[int, Boundary]
) -> None:
    if stage == 0:
        staged.run_outer(evaluation, slice(0, 1), lambda _: ups[0])
    else:
        staged.run_inner(evaluation, slice(0, 1), downs[stage - 1], stage, ups.get(stage, ()))
