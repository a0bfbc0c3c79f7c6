"""A promised fidelity on several ranks: their simulation in one process, bit for bit; what is measured is agreed on."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from support.failing import GROUP_TIMEOUT, QUICK, Planted, check_fault, run_with_fault
from support.jobs import Generated, Outcome, attempt, generate_parallel, generated_on_ranks, rank, told_alike
from support.oracles import generated_one_part_after_another
from support.ranks import run_ranks

pytestmark = pytest.mark.distributed

TWO = {"num_images_per_prompt": 2}
STEPS = {"num_inference_steps": 20}


def promise(fidelity: float) -> dict[str, Any]:
    return {"strategy": "hybrid", "fidelity": fidelity}


@pytest.mark.parametrize(
    ("ranks", "name", "scheduler", "fidelity", "changes"),
    [
        (2, "sdxl two levels", "euler", 50, {}),
        (2, "sd15", "ddim", 55, TWO),
        (2, "sd3", "flow-euler", 65, {}),
        (2, "sd3 img2img", "flow-euler", 60, {}),
        (4, "sd3", "flow-euler", 65, TWO),
        (4, "sdxl two levels", "unipc", 45, TWO),
        (4, "sd3", "flow-euler", 65, {}),  # two of them without rows
    ],
)
def test_ranks_equal_their_simulation(
    ranks: int, name: str, scheduler: str, fidelity: float, changes: dict[str, Any]
) -> None:
    changes, config = changes | STEPS, promise(fidelity)
    generated = generated_on_ranks(ranks, name, changes, config | {"scheduler": scheduler})
    simulated = generate_parallel(name, changes, simulate=True, devices=ranks, scheduler=scheduler, **config)[0]
    assert torch.equal(generated.latents, simulated.latents)
    assert told_alike(generated) == told_alike(simulated)
    assert generated.report["fidelity"] == simulated.report["fidelity"]
    assert set(generated.kinds) == {"f", "c"}


@pytest.mark.parametrize(("name", "ranks"), [("sdxl two levels", 2), ("sd3", 4)])
def test_the_most_that_can_be_promised_is_one_branch_after_the_other(name: str, ranks: int) -> None:
    changes = {"num_images_per_prompt": ranks // 2, "num_inference_steps": 8}
    generated = generated_on_ranks(ranks, name, changes, promise(100))
    assert torch.equal(generated.latents, generated_one_part_after_another(name, parts=ranks, **changes))
    assert generated.report["fidelity"] == {"promised": 100, "estimated": 100.0}


@pytest.mark.parametrize("measures", ["speeds", "errors", "sensitivity", "gain"])
def test_where_devices_are_not_alike_the_leaders_numbers_hold(measures: str) -> None:
    """Whatever another rank measures otherwise."""
    results = run_ranks(generate_on_devices, 2, measures, True)
    simulated = generate_parallel("sd15", STEPS, scheduler="ddim", simulate=True, **promise(55))[0]
    for generated in results:
        assert torch.equal(generated.latents, simulated.latents)
        assert told_alike(generated) == told_alike(simulated)
        assert generated.report["fidelity"] == simulated.report["fidelity"]
    assert set(simulated.kinds) == {"f", "c"}


def generate_on_devices(measures: str, is_told: bool) -> Generated:
    """Rank 1 measures something so unlike the leader's that it would decide otherwise.

    Args:
        measures: What it measures otherwise.
        is_told: Whether its device is another one by what it says of itself.
    """
    from hybridiff import agreement, run
    from hybridiff.denoiser import decoder
    from hybridiff.numerics import estimate, sensitivity
    from hybridiff.strategies import hybrid

    if rank() == 1:
        if is_told:
            run.device_identity = lambda device: "another"
        if measures == "gain":
            agreement.decoder_gain = lambda pipe: 1e3 * decoder.decoder_gain(pipe)
        elif measures == "sensitivity":
            hybrid.measure_sensitivity = lambda *arguments: _other(sensitivity.measure_sensitivity(*arguments))
        else:
            _falsify(estimate.ErrorEstimate, measures)
    return generate_parallel("sd15", STEPS, scheduler="ddim", **promise(55))[0]


def _falsify(owner: Any, name: str) -> None:
    honest = getattr(owner, name)
    setattr(owner, name, lambda *arguments: 1e3 * honest(*arguments) + 1.0)


def _other(measured: Any) -> Any:
    rows = [[1e3 * value * (1 + column) for column, value in enumerate(row)] for row in measured.on_sample]
    return replace(measured, on_sample=rows)


@pytest.mark.parametrize("measures", ["speeds", "gain"])
def test_ranks_that_measure_differently_on_like_devices(measures: str) -> None:
    """The leader's gain holds in any case; speeds cannot differ, and if they do it is found out."""
    for outcome in run_ranks(attempt_on_devices_that_seem_alike, 2, measures):
        if measures == "gain":
            assert outcome.error is None, outcome
        else:
            assert outcome.error == "RankError"
            assert outcome.message.startswith("ranks are at different steps: rank 0 at step ")


def attempt_on_devices_that_seem_alike(measures: str) -> Outcome:
    return attempt(lambda: generate_on_devices(measures, is_told=False))


def test_ranks_that_promise_otherwise_are_refused() -> None:
    for outcome in run_ranks(attempt_two_promises, 2):
        assert outcome.error == "UsageError"
        assert "fidelity" in outcome.message


def attempt_two_promises() -> Outcome:
    return attempt(lambda: generate_parallel("sd3", STEPS, **promise(50 + rank())))


def test_a_decoder_that_fails_on_one_rank_leaves_none_waiting() -> None:
    leader, faulty = run_ranks(attempt_with_a_faulty_decoder, 2)
    assert (faulty.error, faulty.message) == ("Planted", "decoder")
    assert (leader.error, leader.message) == ("RankError", "rank 1 cannot start: decoder")
    assert max(leader.seconds, faulty.seconds) < QUICK


def attempt_with_a_faulty_decoder() -> Outcome:
    from hybridiff import agreement

    def fail(pipe: Any) -> float:
        raise Planted("decoder")

    if rank() == 1:
        agreement.decoder_gain = fail
    return attempt(lambda: generate_parallel("sd3", STEPS, timeout=GROUP_TIMEOUT, **promise(50)))


@pytest.mark.parametrize(
    ("ranks", "faulty", "place", "step"),
    [
        pytest.param(2, 1, "callback", 3, id="in a cached step"),
        pytest.param(2, 0, "scheduler", 5, id="scheduler in a cached step"),
        pytest.param(2, 1, "embedding", 6, id="network in the full step after one"),
        pytest.param(4, 2, "callback", 3, id="one of four"),
    ],
)
def test_an_error_on_one_rank_reaches_the_others(ranks: int, faulty: int, place: str, step: int) -> None:
    changes = {"num_inference_steps": 10} | (TWO if ranks == 4 else {})
    simulated = generate_parallel("sd3", changes, simulate=True, devices=ranks, **promise(30))[0]
    assert simulated.kinds == "fffcfcfcff", "the places are chosen for this schedule"
    results = run_ranks(fail_in_a_run, ranks, faulty, place, step, changes)
    check_fault(results, faulty, place, f"parallel, step {step}", simulated.latents)


def fail_in_a_run(faulty: int, place: str, step: int, changes: dict[str, Any]) -> tuple[Outcome, Outcome]:
    return run_with_fault("sd3", faulty, place, step, promise(30), **changes)
