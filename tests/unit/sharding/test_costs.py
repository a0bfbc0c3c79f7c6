"""What it costs that ranks share an evaluation."""

from __future__ import annotations

import time
from collections.abc import Sequence

import pytest
import torch

from hybridiff.distributed.comm import Heard
from hybridiff.sharding.costs import Link, PartAlone, ShardCosts, measure_part, measure_shards
from hybridiff.sharding.group import ShardGroup
from support.shards import ranks

CPU = torch.device("cpu")


class Alone(ShardGroup):
    """A rank whose messages take a while."""

    def __init__(self, seconds: float) -> None:
        super().__init__(0, 2)
        self.seconds = seconds

    def _start_gather(self, tensor: torch.Tensor, shapes: Sequence[torch.Size]) -> Heard:
        time.sleep(self.seconds)
        return lambda: [tensor] * 2

    def _all_to_all(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor


def test_messages_take_a_latency_each_and_their_bytes() -> None:
    assert Link(latency=0.25, rate=8.0).seconds(messages=4, received=16) == 3.0
    assert Link().seconds(messages=4, received=16) == 0.0


def test_a_link_is_measured_by_its_messages() -> None:
    link = Link.measure(Alone(2e-3), CPU)
    assert link.latency >= 1e-3
    assert link.rate > 0


def test_a_share_counts_the_slowest_part_and_the_messages() -> None:
    costs = ShardCosts(whole=2.0, part=1.0, messages=5, received=100, link=Link(latency=0.02, rate=1000.0))
    assert costs.share == pytest.approx((1.0 + 0.1 + 0.1) / 2.0)
    assert costs.to_dict()["share"] == costs.share


def test_costs_without_messages_are_plain_data() -> None:
    described = ShardCosts(whole=2.0, part=1.0, messages=5, received=100, link=Link()).to_dict()
    assert (described["share"], described["link"]) == (0.5, {"latency": 0.0})


def test_a_part_alone_says_what_others_would_and_counts() -> None:
    first = ranks(3)[0]
    first._lengths["here"] = (2, 1, 4)
    part = PartAlone(first)
    part.begin("form")
    assert part.concatenate("here", torch.ones(2, 5), 0).shape == (7, 5)
    assert (part.messages, part.sent) == (1, 2 * (2 + 1 + 4) * 5 * 4)
    part.begin("form")
    assert (part.messages, part.received) == (0, 0)


def test_played_ranks_are_timed_one_by_one() -> None:
    costs = measure_shards(
        ranks(2), lambda: time.sleep(4e-3), lambda part: time.sleep(2e-3 * (1 + part.index)), torch.device("cpu")
    )
    assert costs.whole >= 4e-3
    assert costs.part >= 4e-3, "that of the second rank"
    assert costs.link == Link()


def test_a_stage_is_a_share_of_the_whole_evaluation() -> None:
    costs = ShardCosts(whole=1.0, part=0.5, messages=5, received=100, link=Link(latency=0.5))

    def stage(part: ShardGroup) -> None:
        part.begin("form")
        part.all_gather(torch.ones(3))

    measured = measure_part(costs, ranks(2), stage, CPU)
    assert (measured.whole, measured.link, measured.messages, measured.received) == (1.0, costs.link, 1, 12)
    assert measured.share == pytest.approx(measured.part + 0.5)
