"""Where networks are split: legal points against a walk of the network itself, and the choice among them by work."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel

from hybridiff.denoiser.adapters.sd3 import SD3Adapter
from hybridiff.denoiser.adapters.unet import UNetAdapter
from hybridiff.denoiser.layers import Layer, LayerCost, NetworkCost
from hybridiff.denoiser.split import TIE, Split, SplitPoint, choose_balanced, choose_outer, make_split
from hybridiff.errors import UsageError
from support.networks import NETWORKS, UNETS, evaluation_of

UNET, SD3 = UNetAdapter(), SD3Adapter()
PARTS = ("resnets", "attentions", "downsamplers", "upsamplers")


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
            is_layer = len(parts := name.split(".")) == 4 and parts[2] in PARTS  # up_blocks.0.resnets.0
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


def walk_splits(walk: Walk) -> list[SplitPoint]:
    """All pairs of layers around the middle, between which no skip connection but the boundary's own crosses."""
    place = {name: i for i, name in enumerate(walk.order)}
    middle = place["mid_block"]
    points = []
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
                points.append(SplitPoint(entry, exit_))
    return points


@pytest.mark.parametrize("name", UNETS)
def test_layers_and_split_points_of_a_unet_against_a_walk(name: str) -> None:
    network = NETWORKS[name]()
    walk = Walk(network)
    assert [layer.name for layer in UNET.layers(network)] == walk.order
    assert len(walk.produced) == sum(len(block.resnets) for block in network.up_blocks)
    points = UNET.split_points(network)
    assert points == walk_splits(walk)
    assert len(set(points)) == len(points) > 10


@pytest.mark.parametrize("name", UNETS)
def test_levels_are_among_the_split_points(name: str) -> None:
    """The published kind of split: some levels outside, the others inside."""
    network = NETWORKS[name]()
    names = [layer.name for layer in UNET.layers(network)]
    found = {(names[point.entry], names[point.exit]) for point in UNET.split_points(network)}
    levels = len(network.down_blocks)
    for outside in range(1, levels):
        ends = (f"down_blocks.{outside - 1}.downsamplers.0", f"up_blocks.{levels - 1 - outside}.upsamplers.0")
        assert ends in found


@pytest.mark.parametrize("name", ["sd3", "sd3.5"])
def test_split_points_of_a_transformer(name: str) -> None:
    network = NETWORKS[name]()
    assert [layer.name for layer in SD3.layers(network)] == [f"transformer_blocks.{i}" for i in range(5)]
    # The first and the last block stay outside, and at least one is inside.
    ends = [(point.entry, point.exit) for point in SD3.split_points(network)]
    assert ends == [(0, 1), (0, 2), (0, 3), (1, 2), (1, 3), (2, 3)]


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
    with pytest.raises(UsageError, match="a U-Net with AttnDownBlock2D blocks cannot be split; known: "):
        UNET.layers(network)


LAYERS = [Layer(f"blocks.{i}", None) for i in range(5)]
COSTS = [
    LayerCost(seconds, size, work)
    for seconds, size, work in [(1.0, 10, 5), (2.0, 20, 1), (3.0, 30, 1), (4.0, 40, 1), (6.0, 50, 2)]
]


def test_costs_of_a_split_without_anything_around_the_layers() -> None:
    split = make_split(SplitPoint(0, 2), LAYERS, NetworkCost(COSTS))
    assert (split.entry, split.exit) == ("blocks.0", "blocks.2")
    assert split.inner == pytest.approx(5 / 16)
    assert split.outer == pytest.approx(11 / 16)
    assert split.inner_work == pytest.approx(2 / 10)
    assert split.outer_work == pytest.approx(8 / 10)
    assert split.larger_work == split.outer_work
    assert (split.down_bytes, split.up_bytes) == (10, 30)
    assert split.seconds == 16.0


def test_what_lies_around_the_layers_counts_in_both_stages() -> None:
    split = make_split(SplitPoint(1, 3), LAYERS, NetworkCost(COSTS, other_seconds=4.0, other_work=10))
    assert split.seconds == 20.0
    assert split.inner == pytest.approx((7 + 4) / 20)
    assert split.outer == pytest.approx((9 + 4) / 20)
    assert split.inner_work == pytest.approx((2 + 10) / 20)
    assert split.outer_work == pytest.approx((8 + 10) / 20)


def split_of(outer: float, inner: float, size: int, times: tuple[float, float] = (0.5, 0.5)) -> Split:
    return Split(SplitPoint(0, 1), "", "", *times, 1.0, size, size, outer_work=outer, inner_work=inner)


def test_the_split_whose_larger_stage_is_smallest_is_chosen() -> None:
    splits = [split_of(0.7, 0.3, 1), split_of(0.45, 0.55, 9), split_of(0.35, 0.65, 1)]
    assert choose_balanced(splits) is splits[1]


def test_measured_times_choose_nothing() -> None:
    """They differ from run to run, and with them the image would."""
    splits = [split_of(0.7, 0.3, 1, (0.5, 0.5)), split_of(0.5, 0.5, 1, (0.9, 0.1)), split_of(0.2, 0.8, 1, (0.5, 0.5))]
    assert choose_balanced(splits) is splits[1]
    assert choose_outer(splits, 0.2) is splits[2]


def test_of_equally_balanced_splits_the_one_with_fewest_bytes() -> None:
    splits = [split_of(0.5, 0.5, 9), split_of(0.49, 0.51, 8), split_of(0.485, 0.515, 3), split_of(0.47, 0.53, 1)]
    assert splits[2].larger_work - 0.5 < TIE < splits[3].larger_work - 0.5
    assert choose_balanced(splits) is splits[2]


def test_of_equal_bytes_the_better_balanced() -> None:
    splits = [split_of(0.51, 0.49, 3), split_of(0.5, 0.5, 3)]
    assert choose_balanced(splits) is splits[1]


def test_of_splits_that_are_equal_in_everything_the_first() -> None:
    splits = [split_of(0.5, 0.5, 3), split_of(0.5, 0.5, 3)]
    assert choose_balanced(splits) is splits[0]


def test_a_network_without_a_split_point() -> None:
    with pytest.raises(UsageError, match="too small to be split"):
        choose_balanced([])
    with pytest.raises(UsageError, match="too small to be split"):
        choose_outer([], 0.3)


def test_the_split_nearest_to_a_share_and_of_those_the_fewest_bytes() -> None:
    splits = [split_of(0.2, 0.8, 1), split_of(0.29, 0.71, 5), split_of(0.315, 0.685, 3), split_of(0.5, 0.5, 1)]
    assert choose_outer(splits, 0.3) is splits[2]
    assert choose_outer(splits, 0.26) is splits[1]
