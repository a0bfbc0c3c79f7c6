from __future__ import annotations

from collections.abc import Mapping

import pytest
import torch

from hybridiff import ParallelConfig, parallelize
from hybridiff.distributed.comm import LocalComm
from support.oracles import generated_one_part_after_another, relative_difference
from support.pipelines import build, generate

NAMES = ["sdxl", "sdxl two levels", "sd15", "sd3", "sd3.5"]


class SwappingComm(LocalComm):
    """Hands out the buffers of the ranks in the wrong order."""

    def all_gather(self, buffers: Mapping[int, torch.Tensor], out: torch.Tensor) -> None:
        super().all_gather(buffers, out)
        out.copy_(out.flip(0))


@pytest.mark.parametrize("name", NAMES)
def test_predictions_joined_in_the_wrong_order_would_be_noticed(name: str) -> None:
    expected = generated_one_part_after_another(name)
    right = generate(parallelize(build(name), ParallelConfig(simulate=True)), name)
    wrong = generate(parallelize(build(name), ParallelConfig(simulate=True), comm=SwappingComm(2)), name)
    assert torch.equal(right, expected)
    assert relative_difference(wrong, expected) > 0.05  # five hundred times the tolerance of any comparison


@pytest.mark.parametrize("name", NAMES)
def test_the_branches_of_the_tiny_pipelines_differ(name: str) -> None:
    parallel = parallelize(build(name), ParallelConfig(simulate=True))
    generate(parallel, name)
    assert parallel.report is not None
    assert all(step.discrepancy is not None and step.discrepancy > 0.01 for step in parallel.report.steps)
    assert parallel.report.steps[0].discrepancy > 0.1  # type: ignore[operator]


@pytest.mark.parametrize(("ranks", "images"), [(2, 1), (2, 3), (4, 2), (4, 1), (6, 3), (6, 2)])
def test_rows_by_rank_generate_the_same_as_rows_in_turn(ranks: int, images: int) -> None:
    """Bit for bit where parts of the batch are equal; to rounding where some rank has more rows than another."""
    changes = {"num_images_per_prompt": images}
    with parallelize(build("sd3"), ParallelConfig(simulate=True, devices=ranks)) as parallel:
        generated = generate(parallel, "sd3", **changes)
    if 2 * images % ranks == 0:
        assert torch.equal(generated, generated_one_part_after_another("sd3", parts=ranks, **changes))
    assert relative_difference(generated, generate(build("sd3"), "sd3", **changes)) < 1e-4
