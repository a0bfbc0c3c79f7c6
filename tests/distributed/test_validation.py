"""Bad input is refused on every rank with one clear sentence, before any network runs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import diffusers
import pytest
import torch
from diffusers.models.attention_processor import AttnProcessor

from hybridiff import ParallelConfig, UsageError, parallelize
from support.failing import SOON, Planted
from support.jobs import Outcome, attempt, rank
from support.pipelines import SCHEDULERS, build, call_arguments, generate, start_image
from support.ranks import run_ranks

pytestmark = pytest.mark.distributed

NAME = "sdxl two levels"


def count_networks(pipe: Any) -> Callable[[], int]:
    """Says how often networks of the pipeline were run since."""
    calls = 0

    def count(*_: Any) -> None:
        nonlocal calls
        calls += 1

    for part in pipe.components.values():
        if isinstance(part, torch.nn.Module):
            part.register_forward_pre_hook(count)
    return lambda: calls


# What rank 1 does otherwise than rank 0, and what the error must say of it.
CALLS: dict[str, tuple[dict[str, Any], str]] = {
    "prompt": ({"prompt": "a blue cube"}, "prompt: rank 0 has 'a red ring', rank 1 has 'a blue cube'"),
    "one prompt of two": ({"prompt": ["a red ring", "a blue cube"]}, "prompt: rank 0 has 'a red ring', rank 1 has"),
    "long prompt": ({"prompt": "a red ring" * 40 + "!"}, "prompt: "),
    "negative prompt": ({"negative_prompt": "dark"}, "negative_prompt: rank 0 has 'blurred', rank 1 has 'dark'"),
    "steps": ({"num_inference_steps": 5}, "num_inference_steps: rank 0 has 4, rank 1 has 5"),
    "guidance": ({"guidance_scale": 4.0}, "guidance_scale: rank 0 has 5.0, rank 1 has 4.0"),
    "height": ({"height": 64}, "height: rank 0 has 32, rank 1 has 64"),
    "images": ({"num_images_per_prompt": 2}, "num_images_per_prompt: rank 0 has nothing, rank 1 has 2"),
    "seed": ({"seed": 4}, "generator: rank 0 has generator with seed 3"),
    "no generator": ({"generator": None}, "generator: rank 0 has generator with seed 3"),
    "latents": (
        {"latents": torch.zeros(1, 4, 16, 16)},
        "latents: rank 0 has nothing, rank 1 has tensor (1, 4, 16, 16)",
    ),
    "unknown argument": ({"promt": "a"}, "promt: rank 0 has nothing, rank 1 has 'a'"),
    "NaN": ({"guidance_scale": float("nan")}, "rank 1 cannot start: guidance_scale must be a finite number, got nan"),
    "no steps": ({"num_inference_steps": 0}, "rank 1 cannot start: num_inference_steps must be an integer from 1 to "),
    "huge height": ({"height": 10**7}, "rank 1 cannot start: height must be at most "),
}


@pytest.mark.parametrize("case", CALLS)
def test_different_calls(case: str) -> None:
    changes, sentence = CALLS[case]
    check_refusals(run_ranks(call_differently, 2, changes), sentence)


def call_differently(changes: dict[str, Any]) -> tuple[Outcome, int]:
    pipe = build(NAME)
    networks_run = count_networks(pipe)
    parallel = parallelize(pipe, ParallelConfig(outputs="all"))
    outcome = attempt(lambda: generate(parallel, NAME, **(changes if rank() == 1 else {})))
    before = networks_run()
    generate(parallel, NAME)  # the refusal broke nothing
    return outcome, before


def test_an_argument_that_the_pipeline_does_not_know() -> None:
    sentence = (
        "rank 1 cannot start: StableDiffusion3Pipeline cannot be called that way: "
        "got an unexpected keyword argument 'promt'"
    )
    check_refusals(run_ranks(call_sd3_with_unknown_argument, 2), sentence)


def call_sd3_with_unknown_argument() -> tuple[Outcome, int]:
    pipe = build("sd3")
    networks_run = count_networks(pipe)
    changes = {"promt": "a"} if rank() == 1 else {}
    return attempt(lambda: generate(parallelize(pipe), "sd3", **changes)), networks_run()


def check_refusals(results: list[tuple[Outcome, int]], sentence: str) -> None:
    """Every rank refused, in the same words, and ran no network."""
    outcomes = [outcome for outcome, _ in results]
    for outcome, networks_run in results:
        assert outcome.error == "UsageError", outcome
        assert sentence in outcome.message
        assert outcome.message == outcomes[0].message
        assert networks_run == 0


# What rank 1 has otherwise than rank 0.
PIPES: dict[str, tuple[Callable[[Any], Any], str]] = {
    "scheduler": (lambda pipe: setattr(pipe, "scheduler", SCHEDULERS["ddim"]()), "ranks disagree on scheduler"),
    "scheduler's settings": (
        lambda pipe: setattr(
            pipe, "scheduler", type(pipe.scheduler).from_config(pipe.scheduler.config, timestep_spacing="trailing")
        ),
        "timestep_spacing",
    ),
    "precision": (lambda pipe: pipe.to(torch.float16), "torch.float16"),
    "FreeU": (lambda pipe: pipe.enable_freeu(s1=0.9, s2=0.2, b1=1.2, b2=1.4), "ranks disagree on FreeU"),
    "attention": (
        lambda pipe: pipe.unet.set_attn_processor(AttnProcessor()),
        "ranks disagree on processors of attention",
    ),
    "network": (lambda pipe: setattr(pipe, "unet", build("sdxl").unet), "ranks disagree on denoiser"),
}


@pytest.mark.parametrize("case", PIPES)
def test_different_pipelines(case: str) -> None:
    check_refusals(run_ranks(call_different_pipelines, 2, case), PIPES[case][1])


def call_different_pipelines(case: str) -> tuple[Outcome, int]:
    pipe = build(NAME)
    if rank() == 1:
        PIPES[case][0](pipe)
    networks_run = count_networks(pipe)
    return attempt(lambda: generate(parallelize(pipe), NAME)), networks_run()


def test_the_same_image_passes_and_another_does_not() -> None:
    results = run_ranks(call_with_images, 2)
    assert [same.error for same, _ in results] == [None, None]
    assert all(other.error == "UsageError" and "ranks disagree on image" in other.message for _, other in results)


def call_with_images() -> tuple[Outcome, Outcome]:
    name = "sdxl img2img"
    parallel = parallelize(build(name), ParallelConfig(outputs="all"))
    other = start_image().rotate(90 * rank())
    return attempt(lambda: generate(parallel, name)), attempt(lambda: generate(parallel, name, image=other))


class Thing:
    """An object that says where it lies in memory."""

    def __repr__(self) -> str:
        return f"<Thing object at {hex(0x7F00 + rank())}>"


def test_the_same_object_elsewhere_in_memory_passes() -> None:
    first, second = run_ranks(call_with_thing, 2)
    assert torch.equal(first, second)


def call_with_thing() -> torch.Tensor:
    parallel = parallelize(build("sd3"), ParallelConfig(outputs="all"))
    return generate(parallel, "sd3", joint_attention_kwargs={"thing": Thing()})


# (ranks, config of rank 0, what rank 1 has otherwise, sentence)
CONFIGS: dict[str, tuple[int, dict[str, Any], dict[str, Any], str]] = {
    "strategy": (2, {}, {"strategy": "serial"}, "ranks disagree on strategy: rank 0 has 'cfg', rank 1 has 'serial'"),
    "outputs": (2, {}, {"outputs": "all"}, "ranks disagree on outputs"),
    "timeout": (2, {}, {"timeout": 30.0}, "ranks disagree on timeout"),
    "devices of one rank": (2, {}, {"devices": 4}, "rank 1 cannot start: 4 ranks requested, 2 started"),
    "devices": (2, {"devices": 4}, {}, "4 ranks requested, 2 started; use devices=2, or start 4"),
    "three ranks": (
        3,
        {"strategy": "published"},
        {},
        "strategy 'published' needs an even number of ranks, 2 at least, got 3",
    ),
    "one rank": (
        1,
        {"strategy": "published"},
        {},
        "strategy 'published' needs an even number of ranks, 2 at least, got 1",
    ),
}


@pytest.mark.parametrize("case", CONFIGS)
def test_configs_that_do_not_fit(case: str) -> None:
    ranks, config, other, sentence = CONFIGS[case]
    outcomes = run_ranks(parallelize_with, ranks, config, other)
    assert len(outcomes) == ranks
    for outcome in outcomes:
        assert outcome.error == "UsageError", outcome
        assert sentence in outcome.message
        assert outcome.message == outcomes[0].message


def parallelize_with(config: dict[str, Any], other: dict[str, Any]) -> Outcome:
    changed = ParallelConfig(**(config | other if rank() == 1 else config))
    outcome = attempt(lambda: parallelize(build(NAME), changed))
    parallelize(build(NAME), ParallelConfig(strategy="serial"))  # the ranks still understand each other
    return outcome


def test_a_pipeline_without_a_denoiser_on_one_rank() -> None:
    for outcome in run_ranks(parallelize_without_denoiser, 2):
        assert outcome.error == "UsageError"
        assert outcome.message == (
            "rank 1 cannot start: StableDiffusionXLPipeline has no denoiser: neither a unet nor a transformer"
        )


def parallelize_without_denoiser() -> Outcome:
    pipe = build(NAME)
    if rank() == 1:
        pipe.unet = None
    return attempt(lambda: parallelize(pipe))


@pytest.mark.parametrize("moment", ["parallelize", "call"])
def test_an_error_that_is_nobodys_mistake_stays_what_it_is(moment: str) -> None:
    """The rank that has it raises it with its traceback; the other one, that it cannot start."""
    other, mine = run_ranks(fail_before_the_start, 2, moment)
    assert (mine.error, mine.message) == ("Planted", moment)
    assert (other.error, other.message) == ("RankError", f"rank 1 cannot start: {moment}")


def fail_before_the_start(moment: str) -> Outcome:
    from hybridiff import agreement

    def fail(*_: Any) -> None:
        raise Planted(moment)

    pipe = build(NAME)
    if rank() == 1 and moment == "parallelize":
        agreement.find_denoisers = fail
    parallel = None if moment == "parallelize" else parallelize(pipe)
    if rank() == 1:
        agreement.describe_call = fail
    return attempt(lambda: parallelize(pipe) if parallel is None else generate(parallel, NAME))


def test_a_detached_pipeline() -> None:
    for outcome, networks_run in run_ranks(call_detached, 2):
        assert outcome.error == "UsageError"
        assert outcome.message == "this pipeline was detached; call parallelize(pipe) again"
        assert networks_run == 0


def call_detached() -> tuple[Outcome, int]:
    pipe = build(NAME)
    networks_run = count_networks(pipe)
    parallel = parallelize(pipe)
    parallel.detach()
    return attempt(lambda: generate(parallel, NAME)), networks_run()


def test_a_rank_that_does_not_come() -> None:
    outcome = run_ranks(call_on_rank_0_only, 2, may_die=[1])[0]
    assert outcome.error == "RankError"
    assert f"no answer from the other ranks within {SOON:g} s" in outcome.message


def call_on_rank_0_only() -> Outcome:
    parallel = parallelize(build(NAME), ParallelConfig(timeout=SOON))
    if rank() == 1:
        return attempt(lambda: torch.distributed.recv(torch.zeros(1), 0))  # waits for something else
    return attempt(lambda: parallel(**call_arguments(NAME)))


@pytest.mark.parametrize(
    ("pipeline", "sentence"),
    [
        (pipeline, "does guidance is found out at its first step, so its network cannot be split")
        for pipeline in (
            "StableDiffusionXLPAGPipeline",
            "StableDiffusionInstructPix2PixPipeline",
            "LEditsPPPipelineStableDiffusionXL",
            "StableDiffusionXLAdapterPipeline",
        )
    ],
)
def test_pipelines_whose_layout_is_found_out_cannot_be_split(pipeline: str, sentence: str) -> None:
    donor = build("sd15" if "Instruct" in pipeline else "sdxl two levels")
    parts = {"adapter": diffusers.T2IAdapter(channels=[8, 8], num_res_blocks=1), "image_encoder": None}
    wanted = getattr(diffusers, pipeline)._get_signature_keys(getattr(diffusers, pipeline))[0]
    components = donor.components | parts
    pipe = getattr(diffusers, pipeline)(**{name: components[name] for name in wanted if name in components})
    with pytest.raises(UsageError, match=sentence):
        parallelize(pipe, ParallelConfig("published", simulate=True))


def test_a_denoiser_of_an_unknown_family_cannot_be_split() -> None:
    pipe = build(NAME)
    pipe.unet = pipe.vae
    with pytest.raises(UsageError, match=r"the layers of AutoencoderKL are not known, so it cannot be split; use"):
        parallelize(pipe, ParallelConfig("published", simulate=True))


def test_a_pipeline_without_a_scheduler() -> None:
    pipe = build(NAME)
    pipe.scheduler = None
    with pytest.raises(UsageError, match="has no scheduler, by whose steps its own are counted"):
        parallelize(pipe, ParallelConfig(simulate=True))
