"""Groups of ranks within a run: what is found out at its first step, and what is told of it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from hybridiff import ParallelConfig, UsageError, parallelize
from hybridiff.distributed.comm import LocalComm
from hybridiff.sharding import choice, ranks
from hybridiff.sharding.ranks import RankGroups
from support.oracles import relative_difference
from support.pipelines import build, denoiser_of
from zoo import ZOO, run

NAME = "FluxPipeline"


def share(**config: Any) -> tuple[torch.Tensor, Any]:
    """What four ranks make of one image, and the report."""
    with parallelize(ZOO[NAME].build(), ParallelConfig(devices=4, simulate=True, **config)) as parallel:
        result = run(ZOO[NAME], parallel)
        return result, parallel.report


def test_an_unknown_pipeline_is_shared_once_its_parts_have_proved_right(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choice, "LEAST_PIXELS", 1)
    result, report = share()
    assert report.partition.shards == 2
    assert report.notes == []
    assert relative_difference(result, run(ZOO[NAME], ZOO[NAME].build())) < 1e-5


def test_ranks_with_a_row_each_leave_the_network_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choice, "LEAST_PIXELS", 1)
    pipe = ZOO[NAME].build()
    with parallelize(pipe, ParallelConfig(devices=2, simulate=True)) as parallel:
        run(ZOO[NAME], parallel)
        hooked = [name for name, module in pipe.transformer.named_modules() if hasattr(module, "_diffusers_hook")]
    assert hooked == [""], "the hook that answers, and none inside"


def test_small_images_are_not_cut_unasked() -> None:
    _, report = share()
    assert report.partition.shards == 1
    assert report.notes[0].startswith("2 of 4 ranks have nothing to do")


def test_parts_that_differ_from_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choice, "LEAST_PIXELS", 1)
    monkeypatch.setattr(ranks, "are_close", lambda *_: False)
    result, report = share()
    assert report.partition.shards == 1
    why = "what FluxTransformer2DModel makes of parts of an image is not what it makes of the whole"
    assert report.notes[0] == f"{why}: ranks do not share images"
    assert relative_difference(result, run(ZOO[NAME], ZOO[NAME].build())) < 1e-5
    with pytest.raises(UsageError, match=f"{why}: ranks cannot share images; use shards=1"):
        share(shards=2)


def test_whether_a_network_is_compiled_is_asked_in_each_run_and_not_in_each_step(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pipe = build("sd3")
    network, call = denoiser_of(pipe), {"output_type": "latent", "max_sequence_length": 16}
    call_impl: Any = network._call_impl
    modules, walks, shards = network.modules, list[int](), list[int]()

    def walk() -> Iterator[torch.nn.Module]:
        if walks:
            walks[-1] += 1
        return modules()

    monkeypatch.setattr(choice, "LEAST_PIXELS", 1)
    monkeypatch.setattr(network, "modules", walk)
    with parallelize(pipe, ParallelConfig(strategy="cfg", devices=4, simulate=True)) as parallel:
        for compiled, steps in ((None, 3), (None, 3), (None, 9), (call_impl, 3), (None, 3)):
            network._compiled_call_impl = compiled
            walks.append(0)
            parallel("a ring", num_inference_steps=steps, generator=torch.Generator().manual_seed(0), **call)
            assert parallel.report is not None
            assert parallel.report.partition is not None
            shards.append(parallel.report.partition.shards)
    assert shards == [2, 2, 2, 1, 2]
    assert walks[1] == walks[2], "whatever the number of steps"


def test_messages_of_groups_are_aborted_after_a_failure_only() -> None:
    closed: list[bool] = []

    class Closing(LocalComm):
        def close(self, aborts: bool = False) -> None:
            closed.append(aborts)

    for end in (RankGroups.remove, RankGroups.drop):
        groups = RankGroups(LocalComm(2), None)
        groups._comms.append(Closing(2))
        end(groups)
        end(groups)
    assert closed == [False, True]
