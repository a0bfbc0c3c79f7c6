"""Where networks are cut: legal cuts against a walk of the network itself, and the choice among them by costs."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel

from hybridiff.denoiser.adapters import sd3 as dit
from hybridiff.denoiser.adapters import unet
from hybridiff.denoiser.split import Cut, StagePlan, Unit, UnitCost, choose_balanced, choose_share, plan_cut
from support.networks import NETWORKS, UNETS, evaluation_of

LAYERS = ("resnets", "attentions", "downsamplers", "upsamplers")


class Walk:
    """One forward of a U-Net, observed through plain hooks.

    Attributes:
        order: Layers in the order in which they ran.
        produced: For every layer of an up path that reads a skip connection, the layer that made it.
    """

    def __init__(self, network: Any) -> None:
        self.order: list[str] = []
        self.produced: dict[str, str] = {}
        self._made: list[tuple[str, torch.Tensor]] = []
        handles = []
        for name, module in network.named_modules():
            is_layer = len(parts := name.split(".")) == 4 and parts[2] in LAYERS  # up_blocks.0.resnets.0
            if name in ("conv_in", "mid_block") or is_layer:
                handles.append(module.register_forward_hook(self._observe(name)))
        with torch.no_grad():
            evaluation_of(network, 2, 13, 11).run()
        for handle in handles:
            handle.remove()

    def _observe(self, name: str) -> Any:
        def hook(module: torch.nn.Module, inputs: Any, output: Any) -> None:
            self.order.append(name)
            tensor = output[0] if isinstance(output, tuple) else output
            if name.startswith("up_blocks"):
                if ".resnets." in name:
                    self.produced[name] = self._maker_of_last_channels(inputs[0])
            elif name != "mid_block":
                self._made.append((name, tensor.clone()))

        return hook

    def _maker_of_last_channels(self, joined: torch.Tensor) -> str:
        """A resnet of the up path reads `cat([hidden, skip])`: whose output stands in its last channels?"""
        makers = [
            name
            for name, tensor in self._made
            if tensor.shape[2:] == joined.shape[2:]
            and tensor.shape[1] < joined.shape[1]
            and torch.equal(joined[:, -tensor.shape[1] :], tensor)
        ]
        assert len(makers) == 1
        return makers[0]


def walk_cuts(walk: Walk) -> list[Cut]:
    """All pairs of layers around the middle, between which no skip connection but the boundary's own crosses."""
    place = {name: i for i, name in enumerate(walk.order)}
    middle = place["mid_block"]
    cuts = []
    for entry in range(middle):
        for exit_ in range(middle, len(walk.order)):
            inner = range(entry + 1, exit_ + 1)
            crossing = [
                maker
                for reader, maker in walk.produced.items()
                if (place[reader] in inner) != (place[maker] in inner)
                and not (place[maker] == entry and place[reader] in inner)  # the boundary itself is such a skip
            ]
            if not crossing:
                cuts.append(Cut(entry, exit_))
    return cuts


@pytest.mark.parametrize("name", UNETS)
def test_units_and_cuts_of_a_unet_against_a_walk(name: str) -> None:
    network = NETWORKS[name]()
    walk = Walk(network)
    assert [unit_.name for unit_ in unet.list_units(network)] == walk.order
    assert len(walk.produced) == sum(len(block.resnets) for block in network.up_blocks)
    cuts = unet.list_cuts(network)
    assert cuts == walk_cuts(walk)
    assert len(set(cuts)) == len(cuts) > 10


@pytest.mark.parametrize("name", UNETS)
def test_level_cuts_are_among_the_cuts(name: str) -> None:
    """The published kind of cut: some levels outside, the others inside."""
    network = NETWORKS[name]()
    names = [unit_.name for unit_ in unet.list_units(network)]
    found = {(names[cut.entry], names[cut.exit]) for cut in unet.list_cuts(network)}
    levels = len(network.down_blocks)
    for outside in range(1, levels):
        ends = (f"down_blocks.{outside - 1}.downsamplers.0", f"up_blocks.{levels - 1 - outside}.upsamplers.0")
        assert ends in found


@pytest.mark.parametrize("name", ["sd3", "sd3.5"])
def test_cuts_of_a_transformer(name: str) -> None:
    network = NETWORKS[name]()
    assert [unit_.name for unit_ in dit.list_units(network)] == [f"transformer_blocks.{i}" for i in range(5)]
    # The first and the last block stay outside, and at least one is inside.
    assert dit.list_cuts(network) == [Cut(0, 1), Cut(0, 2), Cut(0, 3), Cut(1, 2), Cut(1, 3), Cut(2, 3)]


def test_a_unet_with_other_blocks_is_refused() -> None:
    network = UNet2DConditionModel(
        block_out_channels=(8, 8),
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        layers_per_block=1,
        norm_num_groups=4,
        cross_attention_dim=8,
        attention_head_dim=2,
    )
    with pytest.raises(ValueError, match="a U-Net with AttnDownBlock2D blocks cannot be cut; known: "):
        unet.list_units(network)


UNITS = [Unit(f"blocks.{i}", None) for i in range(5)]
COSTS = [
    UnitCost(seconds, size, int(10 * seconds))
    for seconds, size in [(1.0, 10), (2.0, 20), (3.0, 30), (4.0, 40), (6.0, 50)]
]


def test_a_plan_without_anything_around_the_units() -> None:
    plan = plan_cut(Cut(0, 2), UNITS, COSTS, 0.0)
    assert (plan.entry, plan.exit) == ("blocks.0", "blocks.2")
    assert plan.inner == pytest.approx(5 / 16)
    assert plan.outer == pytest.approx(11 / 16)
    assert plan.larger == plan.outer_work
    assert (plan.down_bytes, plan.up_bytes) == (10, 30)
    assert plan.seconds == 16.0


def test_what_lies_around_the_units_counts_in_both_stages() -> None:
    plan = plan_cut(Cut(1, 3), UNITS, COSTS, 4.0)
    assert plan.seconds == 20.0
    assert plan.inner == pytest.approx((7 + 4) / 20)
    assert plan.outer == pytest.approx((9 + 4) / 20)


def make_plan(outer: float, inner: float, size: int, entry: int = 0) -> StagePlan:
    return StagePlan(Cut(entry, entry + 1), "", "", outer, inner, 1.0, size, size, outer, inner)


def test_the_faster_of_the_slower_stages_is_chosen() -> None:
    plans = [make_plan(0.7, 0.3, 1), make_plan(0.45, 0.55, 9), make_plan(0.35, 0.65, 1)]
    assert choose_balanced(plans) is plans[1]


def test_of_equally_balanced_cuts_the_one_with_fewest_bytes() -> None:
    plans = [make_plan(0.5, 0.5, 9), make_plan(0.49, 0.51, 8), make_plan(0.485, 0.515, 3), make_plan(0.47, 0.53, 1)]
    assert choose_balanced(plans) is plans[2]


def test_of_equal_bytes_the_better_balanced() -> None:
    plans = [make_plan(0.51, 0.49, 3), make_plan(0.5, 0.5, 3)]
    assert choose_balanced(plans) is plans[1]


def test_a_network_without_a_cut() -> None:
    with pytest.raises(ValueError, match="too small to be cut"):
        choose_balanced([])
    with pytest.raises(ValueError, match="too small to be cut"):
        choose_share([], 0.3)


def test_the_cut_nearest_to_a_share_and_of_those_the_fewest_bytes() -> None:
    plans = [make_plan(0.2, 0.8, 1), make_plan(0.29, 0.71, 5), make_plan(0.315, 0.685, 3), make_plan(0.5, 0.5, 1)]
    assert choose_share(plans, 0.3) is plans[2]
    assert choose_share(plans, 0.26) is plans[1]
