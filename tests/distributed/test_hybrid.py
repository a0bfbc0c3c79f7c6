"""Steps of all kinds on several ranks: their simulation in one process, bit for bit."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from support.jobs import Drawn, draw_parallel, drawn_on_ranks, rank, told_alike
from support.oracles import drawn_one_part_after_another
from support.ranks import run_ranks

pytestmark = pytest.mark.distributed

SCHEDULE = {"tau1": 2, "tau2": 9, "full_interval": 3}
GUIDED = {"strategy": "hybrid", "tolerance": 0.15, "settled": 0.5, "longest_interval": 4}
FIXED = {"strategy": "hybrid", "switching": "fixed", "full_steps": "0-2,6,10"}
REUSE = {"strategy": "reuse", **SCHEDULE}
CARRY = {"strategy": "hybrid", "switching": "fixed", "between": "pipelined", **SCHEDULE}


@pytest.mark.parametrize(
    ("ranks", "name", "scheduler", "config", "changes"),
    [
        (2, "sdxl", "ddim", REUSE | {"cut": 12}, {}),
        (2, "sd15", "unipc", REUSE | {"cut": 20, "forecast": "hold"}, {"num_images_per_prompt": 2}),
        (2, "sd3", "flow-euler", REUSE | {"cut": 1, "forecast": "quadratic"}, {}),
        (4, "sd3.5", "flow-euler", REUSE | {"cut": 0}, {"num_images_per_prompt": 2}),
        (2, "sdxl", "ddim", CARRY | {"cut": 12}, {}),
        (2, "sd15", "euler-ancestral", CARRY | {"cut": 20, "carry": "hold"}, {}),
        (2, "sd3", "flow-euler", CARRY | {"cut": 1, "forecast": "hold"}, {"num_images_per_prompt": 2}),
        (2, "sd3.5", "flow-euler", CARRY | {"cut": 0, "full_interval": 0}, {}),
        (2, "sd15", "ddim", GUIDED, {}),
        (2, "sdxl two levels", "euler", GUIDED | {"forecast": "linear"}, {"num_images_per_prompt": 2}),
        (4, "sd3", "flow-euler", GUIDED, {"num_images_per_prompt": 2}),
        (2, "sdxl inpaint", "euler-ancestral", GUIDED, {}),
        (2, "sd15", "unipc", GUIDED | {"between": "reuse", "cut": 20}, {}),
        (4, "sd3.5", "flow-euler", GUIDED | {"between": "reuse", "cut": 1}, {"num_images_per_prompt": 2}),
        (2, "sd3", "flow-euler", GUIDED | {"between": "mixed", "cut": 1}, {}),
        (2, "sdxl two levels", "dpmsolver++", FIXED, {}),
        (2, "sd3 img2img", "flow-euler", FIXED | {"full_steps": "0-1,4,7"}, {}),  # the last step is skipped
        (2, "sd15", "unipc", FIXED | {"between": "mixed", "cut": 20}, {}),
        (4, "sd3", "flow-euler", FIXED, {}),  # two of them without a share
    ],
)
def test_ranks_equal_their_simulation(
    ranks: int, name: str, scheduler: str, config: dict[str, Any], changes: dict[str, Any]
) -> None:
    changes = changes | {"num_inference_steps": 12}
    drawn = drawn_on_ranks(ranks, name, changes, config | {"scheduler": scheduler})
    simulated = draw_parallel(name, changes, simulate=True, devices=ranks, scheduler=scheduler, **config)[0]
    assert torch.equal(drawn.latents, simulated.latents)
    assert [told_alike(drawn)[i] for i in (0, 1, 2, 4)] == [told_alike(simulated)[i] for i in (0, 1, 2, 4)]
    assert len({step["kind"] for step in drawn.report["steps"]}) > 1


def test_where_devices_are_of_unlike_kinds_the_leader_decides() -> None:
    changes = {"num_inference_steps": 12}
    drawn, other = run_ranks(draw_with_a_device_of_another_kind, 2, changes)
    simulated = draw_parallel("sd3", changes, simulate=True, **GUIDED)[0]
    assert told_alike(drawn) == told_alike(other) == told_alike(simulated)
    assert torch.equal(other.latents, simulated.latents)
    assert len({step["kind"] for step in drawn.report["steps"]}) > 1


def draw_with_a_device_of_another_kind(changes: dict[str, Any]) -> Drawn:
    """Rank 1 measures a drift so unlike the leader's that it would decide otherwise."""
    from hybridiff import run
    from hybridiff.numerics import guidance
    from hybridiff.strategies import hybrid

    if rank() == 1:
        run.device_kind = lambda device: "another"
        hybrid.drift = lambda prediction, earlier: 100 * guidance.drift(prediction, earlier)
    return draw_parallel("sd3", changes, **GUIDED)[0]


@pytest.mark.parametrize(("name", "ranks"), [("sdxl two levels", 2), ("sd3", 4)])
def test_exact_is_one_branch_after_the_other(name: str, ranks: int) -> None:
    changes = {"num_images_per_prompt": ranks // 2}
    drawn = drawn_on_ranks(ranks, name, changes, {"strategy": "hybrid", "quality": "exact"})
    assert torch.equal(drawn.latents, drawn_one_part_after_another(name, parts=ranks, **changes))


@pytest.mark.parametrize(
    ("name", "dtype", "config"),
    [
        ("sdxl two levels", torch.float16, GUIDED),
        ("sd3", torch.bfloat16, GUIDED | {"between": "mixed", "cut": 1}),
    ],
)
def test_half_precision(name: str, dtype: torch.dtype, config: dict[str, Any]) -> None:
    changes = {"num_inference_steps": 10}
    drawn = drawn_on_ranks(2, name, changes, config | {"dtype": dtype})
    assert drawn.latents.dtype == dtype
    assert torch.equal(drawn.latents, draw_parallel(name, changes, simulate=True, dtype=dtype, **config)[0].latents)


def test_bytes_of_a_step_by_its_kind() -> None:
    """A skipped step sends nothing, a reuse step what a full one does; a pipelined step both boundaries and one
    prediction.
    """
    changes = {"num_inference_steps": 12}
    reuse = _bytes(drawn_on_ranks(2, "sd3", changes, REUSE | {"cut": 1}, runs=1))
    carry = _bytes(drawn_on_ranks(2, "sd3", changes, CARRY | {"cut": 1}, runs=1))
    skipped = _bytes(drawn_on_ranks(2, "sd3", changes, GUIDED, runs=1))
    assert skipped == {"full": carry["full"], "skipped": {}}
    assert reuse["reuse"] == reuse["full"] == carry["full"]
    assert carry["pipelined"]["prediction"] * 2 == carry["full"]["prediction"]
    assert carry["pipelined"]["boundary"] > 0
    assert "boundary" not in carry["full"]


def _bytes(drawn: Drawn) -> dict[str, dict[str, int]]:
    kinds: dict[str, dict[str, int]] = {}
    for step in drawn.report["steps"]:
        assert kinds.setdefault(step["kind"], step["bytes_by_purpose"]) == step["bytes_by_purpose"]
    return kinds
