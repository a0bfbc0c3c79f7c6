"""What strategies have in common that put cheaper steps between full ones: the split, and what full steps teach."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch

from hybridiff import ParallelConfig, parallelize
from hybridiff.denoiser.evaluation import Evaluation
from hybridiff.denoiser.split import Split
from hybridiff.denoiser.stages import StagedDenoiser
from hybridiff.distributed.channel import Channel
from hybridiff.distributed.comm import LocalComm
from hybridiff.report.timeline import Timeline
from hybridiff.schedule.calibration import Calibration
from hybridiff.schedule.kinds import StepKind
from hybridiff.schedule.presets import ModelSettings
from hybridiff.strategies.base import RunContext
from hybridiff.strategies.splitting import split_network
from support.networks import adapter_of, evaluation_of, sd3_transformer
from support.pipelines import build, generate
from support.schedules import capped, split_at


class Splitting:
    """A network that may be split for runs of several kinds, one after the other."""

    def __init__(self, calibration: Calibration | None = None) -> None:
        self.network = sd3_transformer()
        adapter = adapter_of(self.network)
        self.staged = StagedDenoiser(adapter, self.network)
        settings = ModelSettings("", calibration, adapter.published, adapter.reuse_share)
        channel = Channel(LocalComm(2), lambda: "here", Timeline())
        self.context = RunContext(ParallelConfig(), settings, channel, Timeline(), 9, None, self.staged)
        self.asked: list[StepKind] = []

    def split(self, kind: StepKind, first: Evaluation, index: int = 0) -> Any:
        """Split for a run; where it is asked, choose by index."""

        def choose(splits: Sequence[Split]) -> Split:
            self.asked.append(kind)
            return splits[index]

        split_network(self.context, first, kind, choose)
        assert self.staged.split is not None
        return self.staged.split

    def call(self, height: int = 16) -> Evaluation:
        return evaluation_of(self.network, 2, height, 16)


def test_the_split_of_a_kind_and_a_shape_is_made_once() -> None:
    splitting = Splitting()
    first = splitting.split(StepKind.REUSE, splitting.call())
    assert splitting.split(StepKind.REUSE, splitting.call()) is first
    assert splitting.asked == [StepKind.REUSE]


def test_another_shape_is_another_split() -> None:
    splitting = Splitting()
    small = splitting.split(StepKind.REUSE, splitting.call())
    large = splitting.split(StepKind.REUSE, splitting.call(height=32))
    assert splitting.asked == [StepKind.REUSE] * 2
    assert large.down_bytes > small.down_bytes


def test_another_kind_is_another_split_of_the_same_shape() -> None:
    """What suits one kind does not suit another: reuse wants a small outer stage, pipelining two equal ones."""
    splitting = Splitting()
    points = splitting.staged.split_points
    assert splitting.split(StepKind.REUSE, splitting.call(), 0).point == points[0]
    assert splitting.split(StepKind.PIPELINED, splitting.call(), 2).point == points[2]
    assert splitting.split(StepKind.REUSE, splitting.call(), 0).point == points[0]
    assert splitting.asked == [StepKind.REUSE, StepKind.PIPELINED, StepKind.REUSE]


def test_a_calibration_is_not_asked_about_other_kinds() -> None:
    splitting = Splitting(Calibration("m", (), {"reuse": 3}))
    points = splitting.staged.split_points
    assert splitting.split(StepKind.REUSE, splitting.call()).point == points[3]
    assert splitting.asked == []
    assert splitting.split(StepKind.PIPELINED, splitting.call(), 1).point == points[1]
    assert splitting.asked == [StepKind.PIPELINED]


def test_a_split_point_that_the_network_does_not_have_is_none() -> None:
    splitting = Splitting(Calibration("m", (), {"reuse": 99}))
    assert splitting.split(StepKind.REUSE, splitting.call(), 1).point == splitting.staged.split_points[1]


@pytest.mark.parametrize(
    "config",
    [
        {"strategy": "hybrid", "step_kind": "reuse", "full_steps": "0-1", "calibration": split_at("reuse", 1)},
        capped(4, 1, 2, split_point=1),
    ],
    ids=["reuse", "published"],
)
def test_a_pipeline_is_measured_once_a_shape(config: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    measured: list[torch.Size] = []
    measure = StagedDenoiser.measure

    def counted(self: StagedDenoiser, evaluation: Evaluation, rows: slice | None = None) -> list[Split]:
        measured.append(evaluation.sample.shape)
        return measure(self, evaluation, rows)

    monkeypatch.setattr(StagedDenoiser, "measure", counted)
    with parallelize(build("sd3"), ParallelConfig(simulate=True, **config)) as parallel:
        for height in (32, 32, 48, 32):
            generate(parallel, "sd3", height=height)
    assert [shape[2] for shape in measured] == [16, 24, 16]


class UnlikeComm(LocalComm):
    """Two ranks with heterogeneous devices: what rank 1 measures is another thing."""

    def __init__(self) -> None:
        super().__init__(2)
        self.agreed: list[Any] = []

    def all_gather_object(self, thing: Any) -> list[Any]:
        match thing:
            case (status, (str() as shape, str())):
                return [thing, (status, (shape, "another device"))]
            case (status, (float(), float())):
                self.agreed.append(thing[1])
                return [thing, (status, (1e9, 1e9))]
        return super().all_gather_object(thing)


@pytest.mark.parametrize(
    "config",
    [
        {"strategy": "hybrid", "tolerance": 0.2},
        {"strategy": "published"},
        {"strategy": "hybrid", "full_steps": "0-3,6"},
    ],
    ids=["guided", "published", "fixed"],
)
def test_where_devices_are_unlike_what_the_leader_measured_holds(config: dict[str, Any]) -> None:
    comm = UnlikeComm()
    with parallelize(build("sd3"), ParallelConfig(simulate=True, **config)) as parallel:
        expected = generate(parallel, "sd3", num_inference_steps=10)
        assert parallel.report is not None
        kinds = [step.kind for step in parallel.report.steps]
    with parallelize(build("sd3"), ParallelConfig(**config), comm=comm) as parallel:
        assert torch.equal(generate(parallel, "sd3", num_inference_steps=10), expected)
        assert parallel.report is not None
        assert [step.kind for step in parallel.report.steps] == kinds
        told = [step.discrepancy for step in parallel.report.steps if step.kind is StepKind.FULL]
    assert [discrepancy for discrepancy, _ in comm.agreed] == told
