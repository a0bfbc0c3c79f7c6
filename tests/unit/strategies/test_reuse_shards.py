"""Reuse steps of ranks that share an image: each runs the outer stage on its part, as one device does on the whole."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from hybridiff import ParallelConfig, parallelize
from hybridiff.denoiser.blocks import Boundary
from hybridiff.denoiser.evaluation import Evaluation
from hybridiff.denoiser.layers import LayerCost, NetworkCost
from hybridiff.denoiser.split import SplitPoint, make_split
from hybridiff.denoiser.stages import StagedDenoiser
from hybridiff.distributed.comm import LocalComm
from hybridiff.sharding import choice
from hybridiff.sharding.ranks import Forward, RankGroups
from hybridiff.strategies.steps.reuse import ReuseStep
from support.jobs import generate_parallel
from support.networks import NETWORKS, adapter_of, count_layers, evaluation_of
from support.oracles import differences, relative_difference, state_of
from support.pipelines import build, generate
from support.schedules import guidance_until, split_at
from support.shards import of_dtype

SIZES = {"sdxl": (29, 10), "sd1.x": (31, 13), "sd2.x": (35, 14), "sd3": (10, 14), "sd3.5": (14, 6)}
"""Height and width of samples whose parts differ."""

REUSE: dict[str, Any] = {"strategy": "hybrid", "step_kind": "reuse", "full_steps": "0-1,4", "simulate": True}
STEPS: dict[str, Any] = {"num_inference_steps": 7}


@pytest.fixture(autouse=True)
def _no_gradients() -> Iterator[None]:
    with torch.no_grad():
        yield


def in_float64(network: Any, evaluation: Evaluation) -> Evaluation:
    """The same call in float64, of its network."""
    network.double()
    call = evaluation.calls[0]
    call.arguments.update(of_dtype(call.arguments, torch.float64))
    return evaluation


class Parts:
    """A network whose stages ranks run on their parts; the inner result is the one that the whole network had."""

    def __init__(self, network: Any, evaluation: Evaluation, parts: int) -> None:
        self.groups = RankGroups(LocalComm(parts), wanted=parts)
        self.groups.prepare(evaluation)
        self.staged = StagedDenoiser(adapter_of(network), network)
        self._parts, self._evaluation, self._kept = parts, evaluation, dict[int, Boundary]()

    def split(self, point: SplitPoint) -> None:
        layers = self.staged.layers
        self.staged.apply(make_split(point, layers, NetworkCost([LayerCost(1.0, 0, 1)] * len(layers))))

    def evaluate(self, rows: slice, forward: Forward) -> list[torch.Tensor]:
        """What each rank makes of the parts of all."""
        return list(self.groups.evaluate(self._evaluation, [rows], self._parts, forward).values())

    def whole(self, evaluation: Evaluation, rank: int, rows: slice) -> torch.Tensor:
        prediction = self.staged.run_whole(evaluation, rows, rank)
        self._kept[rank] = self.staged.up
        return prediction

    def outer(self, evaluation: Evaluation, rank: int, rows: slice) -> torch.Tensor:
        return self.staged.run_outer(evaluation, rows, lambda _: self._kept[rank], rank)


@pytest.mark.parametrize("parts", [2, 3])
@pytest.mark.parametrize("name", NETWORKS)
def test_stages_of_parts_on_fresh_boundaries_are_the_whole_network(name: str, parts: int) -> None:
    network = NETWORKS[name]()
    evaluation = in_float64(network, evaluation_of(network, 4, *SIZES[name], extras=True))
    branch = slice(2, 4)
    expected = evaluation.run(branch)
    shared = Parts(network, evaluation, parts)
    for point in shared.staged.split_points[:: 1 if name.startswith("sd3") else 4]:
        shared.split(point)
        for forward in (shared.whole, shared.outer):
            for prediction in shared.evaluate(branch, forward):
                assert relative_difference(prediction, expected) <= 1e-10, (point, forward)


def test_a_part_runs_the_layers_of_the_outer_stage_only() -> None:
    network = NETWORKS["sd3"]()
    counts = count_layers(network)
    shared, branch = Parts(network, evaluation_of(network, 2, 8, 8), 2), slice(0, 1)
    point = shared.staged.split_points[0]
    shared.split(point)
    shared.evaluate(branch, shared.whole)
    counts.clear()
    shared.evaluate(branch, shared.outer)
    ran = {name.split(".")[1] for name in counts if name.startswith("transformer_blocks.")}
    assert ran == {str(layer) for layer in range(len(shared.staged.layers)) if not point.is_inner(layer)}


def test_hooks_of_parts_lie_around_compiled_blocks_and_not_within() -> None:
    """They would break the graphs."""
    network = NETWORKS["sd3"]()
    block = network.transformer_blocks[0]
    block.compile()
    Parts(network, evaluation_of(network, 2, 8, 8), 2)
    hooked = {module for module in network.modules() if hasattr(module, "_diffusers_hook")}
    assert block in hooked
    assert hooked.isdisjoint(set(block.modules()) - {block})
    assert set(network.transformer_blocks[1].modules()) & hooked


@pytest.mark.parametrize(
    ("name", "ranks", "shards", "split", "changes"),
    [
        pytest.param("sdxl two levels", 4, 2, 0, {"height": 40}, id="a split behind the first convolution"),
        pytest.param("sdxl two levels", 3, 3, 12, {"num_images_per_prompt": 2}, id="all rows by three"),
        pytest.param("sd15", 4, 2, 20, {"height": 40}, id="uneven parts"),
        pytest.param("sdxl inpaint", 2, 2, 5, {}, id="inpainting"),
        pytest.param("sd3", 4, 2, 1, {"height": 36, "width": 20}, id="a transformer, uneven parts"),
        pytest.param("sd3.5", 6, 3, 0, {}, id="branches of three shards each"),
        pytest.param("sd3", 2, 2, 1, {"guidance_scale": 1.0}, id="one branch"),
    ],
)
@pytest.mark.parametrize(("dtype", "tolerated"), [(torch.float64, 1e-10), (torch.float32, 1e-5)], ids=str)
def test_an_image_is_that_of_one_device(
    name: str, ranks: int, shards: int, split: int, changes: dict[str, Any], dtype: torch.dtype, tolerated: float
) -> None:
    config = REUSE | {"calibration": split_at("reuse", split), "dtype": dtype}
    shared = generate_parallel(name, STEPS | changes, devices=ranks, shards=shards, **config)[0]
    alone = generate_parallel(name, STEPS | changes, devices=1, **config)[0]
    assert relative_difference(shared.latents, alone.latents) <= tolerated
    assert shared.report["kinds"] == alone.report["kinds"]
    assert shared.report["kinds"]["reuse"] >= 2
    assert shared.report["partition"]["shards"] == shards


def test_hooks_of_stages_lie_around_those_of_parts_whichever_run_needs_them_first(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The first convolution has both where the network is split behind it."""
    monkeypatch.setattr(choice, "LEAST_PIXELS", 1)
    config = REUSE | {"calibration": split_at("reuse", 0)}
    name, shards = "sd15", []
    pipe = build(name)
    before = state_of(pipe)
    calls = [{"num_images_per_prompt": 2} | guidance_until(name, 4), {}, {"num_images_per_prompt": 2}, {}]
    with parallelize(pipe, ParallelConfig(devices=4, **config)) as parallel:
        for changes in calls:
            made = generate(parallel, name, **STEPS, **changes)
            assert parallel.report is not None
            assert parallel.report.partition is not None
            shards.append(parallel.report.partition.shards)
            with parallelize(build(name), ParallelConfig(devices=1, **config)) as alone:
                assert relative_difference(made, generate(alone, name, **STEPS, **changes)) <= 1e-5
    assert shards == [1, 2, 1, 2]
    assert {part for part in differences(before, state_of(pipe)) if part.startswith("unet")} == set()


@pytest.mark.parametrize("name", ["sdxl two levels", "sd3"])
def test_what_a_reuse_step_costs_is_that_of_its_part(name: str) -> None:
    config = REUSE | {"calibration": split_at("reuse", 0), "devices": 4, "shards": 2, "trace": True}
    report = generate_parallel(name, STEPS, **config)[0].report
    costs = report["shards"]
    outer = costs["outer"]
    assert 0 < outer["messages"] < costs["messages"]
    assert 0 < outer["received"] < costs["received"]
    assert outer["share"] == pytest.approx(outer["part"] / costs["whole"])
    critical = 3 * costs["share"] + 4 * outer["share"]
    assert report["ideal_speedup"] == pytest.approx(2 * 7 / critical)
    sent = {step["kind"]: step["bytes_by_purpose"]["shards"] for step in report["steps"][1:]}
    assert 0 < sent["reuse"] < sent["full"]


def test_a_trace_measures_again_without_a_trace_of_it() -> None:
    pipe = build("sd3")
    config = REUSE | {"calibration": split_at("reuse", 0), "devices": 4, "shards": 2}
    with parallelize(pipe, ParallelConfig(**config, trace=True)) as parallel:
        traced = generate(parallel, "sd3", **STEPS)
        assert parallel.report is not None
        names = [(span.rank, span.name) for span in parallel.report.spans if span.category == "stage"]
        assert {name: names.count(name) for name in names} == {
            (rank, name): times
            for rank in range(4)
            for name, times in (("whole network, own branch", 3), ("outer stage, own branch", 4))
        }
    with parallelize(pipe, ParallelConfig(**config)) as parallel:
        assert torch.equal(traced, generate(parallel, "sd3", **STEPS))


def test_a_part_that_goes_on_with_another_ones_features_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise the tests above would pass where ranks in one process share what they keep."""
    expected = generate_parallel("sd3", STEPS, devices=2, shards=2, **REUSE)[0].latents
    begin = ReuseStep.__init__

    def share(step: ReuseStep, *args: Any) -> None:
        begin(step, *args)
        step._features = dict.fromkeys(step._features, step._features[0])

    monkeypatch.setattr(ReuseStep, "__init__", share)
    other = generate_parallel("sd3", STEPS, devices=2, shards=2, **REUSE)[0].latents
    assert relative_difference(other, expected) > 1e-4
