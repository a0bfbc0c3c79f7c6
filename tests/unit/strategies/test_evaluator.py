"""Calls that are evaluated by rows: whatever the number of ranks, every rank has the whole prediction."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hybridiff import RankError
from hybridiff.denoiser.adapters.unet import UNetAdapter
from hybridiff.denoiser.call import DenoiserCall
from hybridiff.denoiser.evaluation import Evaluation
from hybridiff.distributed.channel import Channel
from hybridiff.distributed.comm import Comm, LocalComm
from hybridiff.distributed.status import SLOT
from hybridiff.report.speedup import RowPartition
from hybridiff.report.timeline import Timeline
from hybridiff.schedule.kinds import StepKind
from hybridiff.strategies.evaluator import BranchEvaluator

ROW = (3, 2, 2)


class Counted:
    """A denoiser of one multiplication, which counts its calls and the rows in them."""

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        self.dtype = dtype
        self.calls: list[int] = []

    def __call__(self, sample: torch.Tensor, timestep: torch.Tensor, return_dict: bool) -> tuple[torch.Tensor]:
        self.calls.append(len(sample))
        return ((2.0 * sample).to(self.dtype),)

    def call(self, images: int, branches: int = 2, seed: int = 0) -> Evaluation:
        random = torch.Generator().manual_seed(seed)
        sample = torch.randn(images * branches, *ROW, generator=random)
        arguments = {"sample": sample, "timestep": torch.tensor(3)}
        return Evaluation((DenoiserCall(UNetAdapter(), self, self, arguments),), tuple(range(branches)))


def channel_of(comm: Comm | int) -> Channel:
    comm = LocalComm(comm) if isinstance(comm, int) else comm
    channel = Channel(comm, lambda: f"step {channel.step}", Timeline())
    channel.begin_step(0, StepKind.FULL)
    return channel


def evaluator_of(comm: Comm | int, steps: int = 9) -> BranchEvaluator:
    return BranchEvaluator(channel_of(comm), Timeline(), steps)


@given(st.integers(1, 5), st.integers(1, 8), st.integers(1, 3))
def test_the_whole_prediction_whatever_the_number_of_ranks(images: int, ranks: int, branches: int) -> None:
    network, evaluator = Counted(), evaluator_of(ranks)
    evaluation = network.call(images, branches)
    assert torch.equal(evaluator.evaluate(evaluation), 2.0 * evaluation.sample)
    assert sum(network.calls) == images * branches, "no row is evaluated twice"
    assert len(network.calls) == min(ranks, images * branches)


@pytest.mark.parametrize(
    ("ranks", "images", "largest"),
    [(1, 1, 2), (1, 3, 6), (2, 1, 1), (2, 3, 3), (4, 1, 1), (4, 3, 2), (3, 1, 1), (3, 3, 2)],
)
def test_the_partition_is_that_of_guided_calls(ranks: int, images: int, largest: int) -> None:
    network, evaluator = Counted(), evaluator_of(ranks)
    assert evaluator.partition is None
    evaluator.evaluate(network.call(images))
    assert evaluator.partition == RowPartition(2 * images, largest)
    evaluator.evaluate(network.call(images, branches=1))
    assert evaluator.partition == RowPartition(2 * images, largest), "later calls without guidance do not count"


def test_what_a_rank_runs_on_its_rows() -> None:
    network, evaluator = Counted(), evaluator_of(4)
    seen: list[tuple[int, slice]] = []

    def forward(evaluation: Evaluation, rank: int, rows: slice) -> torch.Tensor:
        seen.append((rank, rows))
        return evaluation.sample[rows] + float(rank)

    evaluation = network.call(2)
    prediction = evaluator.evaluate(evaluation, forward)
    assert seen == [(rank, slice(rank, rank + 1)) for rank in range(4)]
    assert torch.equal(prediction, evaluation.sample + torch.arange(4.0).view(4, 1, 1, 1))
    assert network.calls == []


def test_predictions_are_no_views_of_each_other() -> None:
    network, evaluator = Counted(), evaluator_of(2)
    evaluation = network.call(1)
    first = evaluator.evaluate(evaluation)
    kept = first.clone()
    evaluator.evaluate(network.call(1, seed=1))
    assert torch.equal(first, kept)


def test_one_row_is_evaluated_by_every_rank() -> None:
    network = Counted()
    channel = channel_of(2)
    evaluator = BranchEvaluator(channel, Timeline(), 9)
    evaluation = network.call(1, branches=1)
    assert torch.equal(evaluator.evaluate(evaluation), 2.0 * evaluation.sample)
    assert network.calls == [1]  # this process plays both
    assert set(channel.sent) == {"control"}
    assert evaluator.partition is None


@pytest.mark.parametrize(("ranks", "images", "largest"), [(2, 4, 2), (4, 4, 1), (2, 1, None), (1, 2, 2)])
def test_extra_calls_have_the_rows_of_one_branch(ranks: int, images: int, largest: int | None) -> None:
    network, evaluator = Counted(), evaluator_of(ranks)
    evaluator.evaluate(network.call(images))
    evaluator.read_status()
    extra = network.call(images, branches=1, seed=1)
    assert torch.equal(evaluator.evaluate_extra(extra), 2.0 * extra.sample)
    assert evaluator.partition is not None
    assert evaluator.partition.largest_extra == largest


def test_an_extra_call_with_more_rows_than_messages_hold_is_evaluated_by_every_rank() -> None:
    network, evaluator = Counted(), evaluator_of(2)
    evaluator.evaluate(network.call(1))
    evaluator.read_status()
    extra = network.call(4, branches=1, seed=1)
    assert torch.equal(evaluator.evaluate_extra(extra), 2.0 * extra.sample)
    assert network.calls == [1, 1, 4]


def test_fewer_rows_fit() -> None:
    network, evaluator = Counted(), evaluator_of(2)
    for images, branches in ((3, 2), (3, 1), (2, 2), (1, 2)):
        evaluation = network.call(images, branches)
        assert torch.equal(evaluator.evaluate(evaluation), 2.0 * evaluation.sample)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize(("ranks", "images", "rank"), [(2, 1, 1), (4, 2, 2), (1, 1, 0)])
def test_a_prediction_that_is_no_number_names_its_rank(bad: float, ranks: int, images: int, rank: int) -> None:
    evaluator = evaluator_of(ranks)
    spoil = lambda evaluation, own, rows: evaluation.sample[rows] * (bad if own == rank else 1.0)  # noqa: E731
    evaluator.evaluate(Counted().call(images), spoil)
    with pytest.raises(RankError, match=f"rank {rank} predicted NaN or infinity in step 0"):
        evaluator.read_status().values()


def test_where_every_rank_evaluates_the_same_nan_is_seen_too() -> None:
    network, evaluator = Counted(), evaluator_of(2)
    evaluation = network.call(1, branches=1)
    evaluation.sample.view(-1)[5] = torch.nan
    evaluator.evaluate(evaluation)
    with pytest.raises(RankError, match="rank 0 predicted NaN or infinity"):
        evaluator.read_status().values()


@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_a_prediction_keeps_the_dtype_of_the_network(ranks: int) -> None:
    """Under autocast that is not the sample's."""
    network, evaluator = Counted(torch.bfloat16), evaluator_of(ranks)
    evaluation = network.call(1)
    for _ in range(2):
        prediction = evaluator.evaluate(evaluation)
        assert prediction.dtype == torch.bfloat16
        assert torch.equal(prediction, (2.0 * evaluation.sample).bfloat16())


class OneOfFour(LocalComm):
    """Rank 1 of four, of which ranks 0 and 2 have a row each and answer in bfloat16."""

    def __init__(self, evaluation: Evaluation) -> None:
        super().__init__(4)
        self.local_ranks = (1,)
        self.evaluation = evaluation
        self.told: list[Any] = []

    def all_gather(self, buffers: Any, out: torch.Tensor) -> None:
        for rank in range(4):
            out[rank].copy_(buffers[1])
            if rank % 2 == 0:
                prediction = (2.0 * self.evaluation.sample[rank // 2]).bfloat16()
                out[rank, :-SLOT].copy_(prediction.flatten())

    def all_gather_object(self, thing: Any) -> list[Any]:
        self.told.append(thing)
        status, own = thing
        form = torch.bfloat16, self.evaluation.sample.shape[1:]
        return [(status, form), (status, own), (status, form), (status, own)]


def test_a_rank_without_rows_learns_the_dtype_from_the_others() -> None:
    network = Counted(torch.bfloat16)
    evaluation = network.call(1)
    comm = OneOfFour(evaluation)
    evaluator = evaluator_of(comm)
    for _ in range(2):
        prediction = evaluator.evaluate(evaluation)
        assert prediction.dtype == torch.bfloat16
        assert torch.equal(prediction, (2.0 * evaluation.sample).bfloat16())
    assert network.calls == []
    assert len(comm.told) == 1, "agreed on once a run"
