"""Reuse and the guided pipeline on several ranks: their simulation in one process, bit for bit."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from support.jobs import Drawn, draw_parallel, drawn_on_ranks, told_alike

pytestmark = pytest.mark.distributed

SCHEDULE = {"tau1": 2, "tau2": 9, "full_interval": 3}
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


def test_bytes_of_a_step_by_its_kind() -> None:
    """A reuse step sends what a full one does; a pipelined step both boundaries and one prediction."""
    changes = {"num_inference_steps": 12}
    reuse = _bytes(drawn_on_ranks(2, "sd3", changes, REUSE | {"cut": 1}, runs=1))
    carry = _bytes(drawn_on_ranks(2, "sd3", changes, CARRY | {"cut": 1}, runs=1))
    assert reuse["reuse"] == reuse["full"] == carry["full"]
    assert carry["pipelined"]["prediction"] * 2 == carry["full"]["prediction"]
    assert carry["pipelined"]["boundary"] > 0
    assert "boundary" not in carry["full"]


def _bytes(drawn: Drawn) -> dict[str, dict[str, int]]:
    kinds: dict[str, dict[str, int]] = {}
    for step in drawn.report["steps"]:
        assert kinds.setdefault(step["kind"], step["bytes_by_purpose"]) == step["bytes_by_purpose"]
    return kinds
