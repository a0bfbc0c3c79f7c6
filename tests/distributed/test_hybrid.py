"""`hybrid` with steps of all kinds on several ranks: their simulation in one process, bit for bit."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from hybridiff.distributed.status import SLOT
from support.jobs import Generated, Outcome, attempt, generate_parallel, generated_on_ranks, rank, told_alike
from support.oracles import generated_one_part_after_another
from support.ranks import run_ranks
from support.schedules import split_at

pytestmark = pytest.mark.distributed

TWO = {"num_images_per_prompt": 2}
TWELVE = {"num_inference_steps": 12}
GUIDED = {"strategy": "hybrid", "tolerance": 0.3}
FIXED = {"strategy": "hybrid", "full_steps": "0-2,6,10"}


def reuse(split_point: int, **config: Any) -> dict[str, Any]:
    """Reuse steps between full ones, all given."""
    fixed = {"full_steps": "0-2,5,8,10-11"}
    return {"strategy": "hybrid", "step_kind": "reuse", "calibration": split_at("reuse", split_point)} | (
        config or fixed
    )


@pytest.mark.parametrize(
    ("ranks", "name", "scheduler", "config", "changes"),
    [
        (2, "sdxl", "ddim", reuse(12), {}),
        (2, "sd15", "unipc", reuse(20), TWO),
        (2, "sd3", "flow-euler", reuse(1), {}),
        (4, "sd3.5", "flow-euler", reuse(0), TWO),
        (4, "sd3", "flow-euler", reuse(1), {}),  # two of them without rows
        (2, "sd15", "ddim", GUIDED, {}),
        (2, "sdxl two levels", "euler", GUIDED, TWO),
        (4, "sd3", "flow-euler", GUIDED, TWO),
        (2, "sdxl inpaint", "euler-ancestral", GUIDED, {}),
        (2, "sd15", "unipc", reuse(20, tolerance=0.3), {}),
        (4, "sd3.5", "flow-euler", reuse(1, tolerance=0.3), TWO),
        (2, "sdxl two levels", "dpmsolver++", FIXED, {}),
        (2, "sd3 img2img", "flow-euler", FIXED | {"full_steps": "0-1,4,7"}, {}),  # the last step is cached
        (4, "sd3", "flow-euler", FIXED, {}),  # two of them without rows
    ],
)
def test_ranks_equal_their_simulation(
    ranks: int, name: str, scheduler: str, config: dict[str, Any], changes: dict[str, Any]
) -> None:
    changes = changes | TWELVE
    generated = generated_on_ranks(ranks, name, changes, config | {"scheduler": scheduler})
    simulated = generate_parallel(name, changes, simulate=True, devices=ranks, scheduler=scheduler, **config)[0]
    assert torch.equal(generated.latents, simulated.latents)
    assert told_alike(generated) == told_alike(simulated)
    assert len({step["kind"] for step in generated.report["steps"]}) > 1


@pytest.mark.parametrize("measures", ["drift", "sensitivity"])
@pytest.mark.parametrize("step_kind", ["cached", "reuse"])
def test_where_devices_are_not_alike_the_leader_decides(step_kind: str, measures: str) -> None:
    config = reuse(1, tolerance=0.3) if step_kind == "reuse" else GUIDED
    generated, other = run_ranks(generate_on_heterogeneous_devices, 2, config, measures, True)
    simulated = generate_parallel("sd3", TWELVE, simulate=True, **config)[0]
    assert told_schedule(generated) == told_schedule(other) == told_schedule(simulated)
    assert torch.equal(generated.latents, simulated.latents)
    assert torch.equal(other.latents, simulated.latents)
    assert len({step["kind"] for step in generated.report["steps"]}) > 1


def told_schedule(generated: Generated) -> Any:
    return (
        [(step["kind"], step["phase"]) for step in generated.report["steps"]],
        generated.report["tau1"],
        generated.report["tau2"],
    )


@pytest.mark.parametrize("measures", ["drift", "sensitivity"])
def test_ranks_that_measure_differently_on_like_devices_are_found_out(measures: str) -> None:
    """They cannot; if they do all the same, no image comes of it that differs from rank to rank."""
    for outcome in run_ranks(attempt_on_devices_that_seem_alike, 2, measures):
        assert outcome.error == "RankError"
        assert outcome.message.startswith("ranks are at different steps: rank 0 at step ")


def attempt_on_devices_that_seem_alike(measures: str) -> Outcome:
    return attempt(lambda: generate_on_heterogeneous_devices(GUIDED, measures, False))


def generate_on_heterogeneous_devices(config: dict[str, Any], measures: str, is_told: bool) -> Generated:
    """Rank 1 measures something so unlike the leader's that it would decide otherwise.

    Args:
        config: Of the run.
        measures: What it measures otherwise.
        is_told: Whether its device is another one by what it says of itself.
    """
    from hybridiff import run
    from hybridiff.numerics import guidance, sensitivity
    from hybridiff.strategies import hybrid
    from hybridiff.strategies.steps import full

    if rank() == 1:
        if is_told:
            run.device_identity = lambda device: "another"
        if measures == "drift":
            full.drift = lambda prediction, earlier: 100 * guidance.drift(prediction, earlier)
        else:
            hybrid.measure_sensitivity = lambda *arguments: _other(sensitivity.measure_sensitivity(*arguments))
    return generate_parallel("sd3", TWELVE, **config)[0]


def _other(measured: Any) -> Any:
    rows = [[0.5 * value * (1 + column) for column, value in enumerate(row)] for row in measured.on_sample]
    return replace(measured, weights=[100 * weight for weight in measured.weights], on_sample=rows)


@pytest.mark.parametrize(("name", "ranks"), [("sdxl two levels", 2), ("sd3", 4)])
def test_exact_is_one_branch_after_the_other(name: str, ranks: int) -> None:
    changes = {"num_images_per_prompt": ranks // 2}
    generated = generated_on_ranks(ranks, name, changes, {"strategy": "hybrid", "quality": "exact"})
    assert torch.equal(generated.latents, generated_one_part_after_another(name, parts=ranks, **changes))


@pytest.mark.parametrize(
    ("name", "dtype", "config"),
    [
        ("sdxl two levels", torch.float16, GUIDED),
        ("sd3", torch.bfloat16, GUIDED),
        ("sd3", torch.bfloat16, reuse(1)),
    ],
)
def test_half_precision(name: str, dtype: torch.dtype, config: dict[str, Any]) -> None:
    generated = generated_on_ranks(2, name, TWELVE, config | {"dtype": dtype})
    assert generated.latents.dtype == dtype
    assert torch.equal(
        generated.latents, generate_parallel(name, TWELVE, simulate=True, dtype=dtype, **config)[0].latents
    )


def test_bytes_of_a_step_by_its_kind() -> None:
    """A cached step sends nothing, a reuse step what a full one does."""
    reused = _bytes(generated_on_ranks(2, "sd3", TWELVE, reuse(1), runs=1))
    cached = _bytes(generated_on_ranks(2, "sd3", TWELVE, GUIDED, runs=1))
    gather = {"prediction": 2 * 4 * 16 * 16 * 4, "control": 2 * SLOT * 4}
    assert cached == {"full": gather, "cached": {}}
    assert reused == {"full": gather, "reuse": gather}


def _bytes(generated: Generated) -> dict[str, dict[str, int]]:
    kinds: dict[str, dict[str, int]] = {}
    for step in generated.report["steps"]:
        assert kinds.setdefault(step["kind"], step["bytes_by_purpose"]) == step["bytes_by_purpose"]
    return kinds
