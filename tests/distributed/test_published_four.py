"""`published` on four ranks: their simulation in one process, bit for bit; layers and bytes; one error everywhere."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch

from hybridiff import ParallelConfig, parallelize
from hybridiff.distributed.status import SLOT
from support.failing import GROUP_TIMEOUT, QUICK, check_fault, run_with_fault
from support.jobs import Generated, Outcome, attempt, generate_parallel, rank, told_alike
from support.pipelines import build, denoiser_of, generate
from support.ranks import run_ranks
from support.schedules import callback_at, capped, guidance_until

from .test_messages import BLOCKS, FLOAT, watch

pytestmark = pytest.mark.distributed

STEPS = {"num_inference_steps": 10}
TWO_PROMPTS = {"prompt": ["a red ring", "two blue cubes"], "negative_prompt": ["blurred", "dark"]}
TAU1, PARALLEL_STEPS = 3, 4


def config_of(extension: str | None = None) -> dict[str, Any]:
    return capped(10, TAU1, PARALLEL_STEPS, rule={"extension": extension})


@pytest.mark.parametrize(
    ("name", "extension", "changes", "ends"),
    [
        pytest.param("sd15", None, TWO_PROMPTS, None, id="a pair an image, U-Net"),
        pytest.param("sd3", "batch", TWO_PROMPTS | {"num_images_per_prompt": 2}, None, id="two images a pair"),
        pytest.param("sdxl", None, {}, None, id="four stages, U-Net"),
        pytest.param("sd3 deep", "layers", TWO_PROMPTS, None, id="four stages, two images, transformer"),
        pytest.param("sd15", None, {}, 5, id="guidance ends within the phase"),
    ],
)
def test_four_ranks_equal_their_simulation(
    name: str, extension: str | None, changes: dict[str, Any], ends: int | None
) -> None:
    results = run_ranks(generate_here, 4, name, extension, changes, ends)
    simulated = generate_here(name, extension, changes, ends, simulate=True, devices=4)
    for generated in results:
        assert torch.equal(generated.latents, simulated.latents)
        assert told_alike(generated) == told_alike(simulated)
        assert generated.report["partition"] == simulated.report["partition"]
        assert generated.report["stages"]["deeper"] == simulated.report["stages"]["deeper"]
        assert bytes_of(generated) == bytes_of(simulated)
    assert simulated.report["kinds"]["pipelined"] == (4 if ends is None else 2)


def generate_here(
    name: str, extension: str | None, changes: dict[str, Any], ends: int | None, **rest: Any
) -> Generated:
    """The second of two runs: the first one measures the network."""
    changes = STEPS | changes | ({} if ends is None else guidance_until(name, ends))
    return generate_parallel(name, changes, runs=2, **config_of(extension), **rest)[1]


def bytes_of(generated: Generated) -> list[dict[str, int]]:
    return [step["bytes_by_purpose"] for step in generated.report["steps"]]


def test_six_ranks_equal_their_simulation() -> None:
    three = {"num_images_per_prompt": 3}
    simulated = generate_here("sd3", None, three, None, simulate=True, devices=6)
    for generated in run_ranks(generate_here, 6, "sd3", None, three, None):
        assert torch.equal(generated.latents, simulated.latents)
        assert bytes_of(generated) == bytes_of(simulated)


@pytest.mark.parametrize(
    ("name", "images"), [pytest.param("sd3", 2, id="a pair an image"), pytest.param("sd3 deep", 1, id="four stages")]
)
def test_layers_messages_and_bytes(name: str, images: int) -> None:
    ranks = run_ranks(watch, 4, name, config_of(), images)
    blocks = {layer for layer in ranks[0][TAU1]["layers"] if layer.startswith(BLOCKS)}
    slot, prediction, boundary = SLOT * FLOAT, 4 * 16 * 16 * FLOAT, (64 + 24) * 16 * FLOAT  # of one image
    for number, steps in enumerate(zip(*ranks, strict=True)):
        is_pipelined = TAU1 < number <= TAU1 + PARALLEL_STEPS
        whole = ranks[0][TAU1]["layers"]

        # Every layer runs once a step for each image, on one rank; in a full step on all.
        for layer in blocks:
            times = Counter(step["layers"][layer] for step in steps)
            expected = {whole[layer]: images, 0: 4 - images} if is_pipelined else {whole[layer]: 4}
            assert times == expected, (number, layer)

        # The same messages in the same order on all ranks, and what was counted is what was sent.
        kinds = [[kind for kind, _ in step["messages"] if kind != "objects"] for step in steps]
        assert kinds == [["sendrecv", "broadcast"] if is_pipelined else ["gather"]] * 4
        bytes_sent = sum(size for step in steps for _, size in step["messages"])
        assert all(sum(step["bytes"].values()) == bytes_sent for step in steps)

        purposes = {"prediction": 3 * images * prediction * 2, "control": 4 * 3 * slot}
        if is_pipelined:  # boundaries both ways, of two pipelines with one each, or of one with three
            boundaries = 2 * boundary * (2 if images == 2 else 3)
            control = 4 * 3 * (slot + FLOAT) + 3 * images * slot
            purposes = {"boundary": boundaries, "prediction": 3 * images * prediction, "control": control}
        assert steps[0]["bytes"] == purposes, number


def fail_in_a_run(name: str, changes: dict[str, Any], faulty: int, place: str, step: int) -> tuple[Outcome, Outcome]:
    return run_with_fault(name, faulty, place, step, config_of(), **STEPS, **changes)


@pytest.mark.parametrize(
    ("name", "faulty", "place", "step"),
    [
        pytest.param("sd15", 0, "embedding", 5, id="innermost of four stages"),
        pytest.param("sd15", 1, "embedding", 4, id="a stage in the middle, first pipelined step"),
        pytest.param("sd15", 2, "embedding", 7, id="a stage in the middle, last pipelined step"),
        pytest.param("sd15", 3, "outer", 5, id="outer of four stages"),
        pytest.param("sd15", 1, "callback", 5, id="callback"),
        pytest.param("sd3", 0, "inner", 5, id="inner stage of one of two pairs"),
        pytest.param("sd3", 2, "outer", 5, id="outer stage of one of two pairs"),
        pytest.param("sd3", 3, "scheduler", 6, id="scheduler, one of two pairs"),
        pytest.param("sd3", 1, "embedding", 8, id="full step after the phase"),
    ],
)
def test_an_error_on_one_rank(name: str, faulty: int, place: str, step: int, expected: dict[str, torch.Tensor]) -> None:
    changes = TWO_PROMPTS if name == "sd3" else {}
    phase = "parallel" if step <= TAU1 + PARALLEL_STEPS else "connect"
    results = run_ranks(fail_in_a_run, 4, name, changes, faulty, place, step)
    check_fault(results, faulty, place, f"{phase}, step {step}", expected[name])


@pytest.fixture(scope="module")
def expected() -> dict[str, torch.Tensor]:
    cases: list[tuple[str, dict[str, Any]]] = [("sd15", {}), ("sd3", TWO_PROMPTS)]
    return {name: generate_here(name, None, changes, None, simulate=True, devices=4).latents for name, changes in cases}


def test_errors_on_two_ranks_that_do_not_talk_to_each_other() -> None:
    """The innermost stage and the one around its neighbour, in one step."""
    results = run_ranks(fail_on_two, 4)
    for number, (outcome, again) in enumerate(results):
        if number in (0, 2):
            assert (outcome.error, outcome.message) == ("Planted", "embedding")
        else:
            assert outcome.error == "RankError"
            assert outcome.message == "; ".join(
                f"rank {faulty} failed in parallel, step 5: Planted: embedding" for faulty in (0, 2)
            )
        assert outcome.seconds < QUICK
        assert again.error is None


def fail_on_two() -> tuple[Outcome, Outcome]:
    return fail_in_a_run("sd15", {}, rank() if rank() in (0, 2) else 0, "embedding", 5)


@pytest.mark.parametrize("asking", [0, 3])
def test_an_interrupt_on_one_rank_stops_all_after_the_same_step(asking: int) -> None:
    assert run_ranks(run_with_interrupt, 4, asking) == [8] * 4


def run_with_interrupt(asking: int) -> int:
    def interrupt(pipe: Any) -> None:
        pipe._interrupt = pipe._interrupt or rank() == asking

    with parallelize(build("sdxl"), ParallelConfig(outputs="all", timeout=GROUP_TIMEOUT, **config_of())) as parallel:
        generate(parallel, "sdxl", **STEPS, callback_on_step_end=callback_at(5, interrupt))
        assert parallel.report is not None
        return len(parallel.report.steps)


@pytest.mark.parametrize("faulty", [0, 1, 3])
def test_a_rank_whose_stage_makes_nan_is_named(faulty: int) -> None:
    """Told to those, too, that are not its neighbours."""
    for outcome in run_ranks(run_with_nan, 4, faulty):
        assert outcome.error == "RankError"
        assert f"rank {faulty} " in outcome.message
        assert outcome.seconds < QUICK


def run_with_nan(faulty: int) -> Outcome:
    pipe = build("sdxl")

    def spoil(_: Any) -> None:
        if rank() == faulty:
            for parameter in denoiser_of(pipe).parameters():
                parameter.data.fill_(float("nan"))

    parallel = parallelize(pipe, ParallelConfig(outputs="all", timeout=GROUP_TIMEOUT, **config_of()))
    return attempt(lambda: generate(parallel, "sdxl", **STEPS, callback_on_step_end=callback_at(4, spoil)))


def test_images_that_cannot_be_dealt_out_are_refused_on_all_ranks() -> None:
    for outcome in run_ranks(attempt_with_three_images, 4):
        assert outcome.error == "UsageError"
        assert outcome.message.startswith(
            "3 images cannot be dealt out evenly to 2 pairs of ranks; generate a multiple"
        )


def attempt_with_three_images() -> Outcome:
    parallel = parallelize(build("sd3"), ParallelConfig(**config_of("batch")))
    return attempt(lambda: generate(parallel, "sd3", num_images_per_prompt=3, **STEPS))
