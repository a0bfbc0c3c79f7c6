"""Text encoders that only rank 0 has: every rank hears what they say, bit for bit."""

from __future__ import annotations

import os
import signal
from typing import Any

import pytest
import torch

from hybridiff import Engine, ParallelConfig, load_pipeline, parallelize
from hybridiff.models.lazy import is_unread
from support.engines import PROMPT, start
from support.failing import GROUP_TIMEOUT, QUICK, SOON, Planted
from support.jobs import Outcome, attempt, rank
from support.loras import save_lora
from support.ranks import run_ranks
from support.schedules import callback_at

pytestmark = pytest.mark.distributed

MODELS = {"tiny-sdxl": {}, "tiny-sd3": {"max_sequence_length": 16}}
BOTH = ["text_encoder", "text_encoder_2"]
TWO = [PROMPT, "a blue square"]


def load(name: str, encodes: bool) -> Any:
    pipe = load_pipeline(name, encodes=encodes)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def draw(
    name: str, first_only: bool, calls: list[dict[str, Any]], offload: bool = False
) -> tuple[list[Any], list[str]]:
    """Latents of some calls, and the encoders that are without weights after them."""
    pipe, latents = load(name, not first_only or rank() == 0), []
    if offload:
        pipe.enable_model_cpu_offload(device="cpu")
    with parallelize(pipe, ParallelConfig(outputs="all")) as parallel:
        for call in calls:
            generator = torch.Generator().manual_seed(0)
            options = {"prompt": TWO, "num_inference_steps": 2, "output_type": "latent"} | MODELS[name] | call
            latents.append(parallel(generator=generator, **options).images)
    assert offload or not any("_diffusers_hook" in vars(getattr(pipe, part)) for part in BOTH)
    return latents, [part for part in BOTH if is_unread(getattr(pipe, part))]


@pytest.mark.parametrize("offload", [False, True], ids=["", "offload"])
@pytest.mark.parametrize("name", MODELS)
def test_latents_are_those_of_ranks_that_all_have_encoders(name: str, offload: bool) -> None:
    calls = [{}, {"negative_prompt": ["blue", "red"]}, {"prompt": PROMPT, "guidance_scale": 1.0}, {}]
    (mine, none), (other, unread) = run_ranks(draw, 2, name, True, calls, offload)
    assert (none, unread) == ([], BOTH)
    ((expected, _), _) = run_ranks(draw, 2, name, False, calls)
    for latents in zip(mine, other, expected, strict=True):
        assert torch.equal(latents[0], latents[1])
        assert torch.equal(latents[0], latents[2])


def test_a_layer_that_is_called_by_itself_is_read() -> None:
    """Of the embedded models' pipelines none does so; Stable Diffusion applies the last norm to skipped layers."""
    for latents, unread in run_ranks(draw, 2, "tiny-sdxl", True, [{"clip_skip": 1}]):
        assert latents[0].isfinite().all()
        assert unread in ([], BOTH)


def embeddings(pipe: Any) -> dict[str, torch.Tensor]:
    names = "prompt_embeds", "negative_prompt_embeds", "pooled_prompt_embeds", "negative_pooled_prompt_embeds"
    return dict(zip(names, pipe.encode_prompt(TWO[0], do_classifier_free_guidance=True), strict=True))


def test_embeddings_in_place_of_prompts_need_no_encoder() -> None:
    given = embeddings(load("tiny-sdxl", True))
    (_, (other, unread)) = run_ranks(draw, 2, "tiny-sdxl", True, [{"prompt": None} | given, {"prompt": TWO[0]}])
    assert unread == BOTH
    assert torch.equal(*other)


def encode_in_a_callback() -> tuple[torch.Tensor, bool]:
    """What a callback on rank 1 alone hears of a prompt, and whether the weights are read then."""
    pipe, heard = load("tiny-sdxl", rank() == 0), []

    def encode(pipe: Any) -> None:
        if rank() == 1:
            heard.append(pipe.encode_prompt(TWO[0])[0])

    with parallelize(pipe) as parallel:
        parallel(TWO[0], num_inference_steps=2, callback_on_step_end=callback_at(0, encode))
    return heard[0] if heard else torch.empty(0), is_unread(pipe.text_encoder)


def test_a_callback_may_encode_on_one_rank_only() -> None:
    _, (heard, unread) = run_ranks(encode_in_a_callback, 2)
    assert not unread
    assert torch.equal(heard, load("tiny-sdxl", True).encode_prompt(TWO[0])[0])


def encode_until_a_rank_fails(faulty: int, way: str, timeout: float) -> tuple[Outcome, Outcome]:
    """How a call ends in which a rank leaves when the second encoder is called, and the call after it."""
    pipe = load("tiny-sd3", rank() == 0)

    def leave(*_: Any) -> None:
        handle.remove()
        if rank() == faulty:
            if way == "raise":
                raise Planted("encoder")
            os.kill(os.getpid(), signal.SIGKILL)

    handle = pipe.text_encoder_2.register_forward_pre_hook(leave)
    parallel = parallelize(pipe, ParallelConfig(timeout=timeout))
    call = {"prompt": PROMPT, "num_inference_steps": 2, "output_type": "latent"} | MODELS["tiny-sd3"]
    outcome = attempt(lambda: parallel(**call) and None)
    return outcome, attempt(lambda: parallel(**call) and None)


@pytest.mark.parametrize("faulty", [0, 1])
def test_an_error_in_an_encoder_is_raised_on_all(faulty: int) -> None:
    outcomes, again = zip(*run_ranks(encode_until_a_rank_fails, 2, faulty, "raise", GROUP_TIMEOUT), strict=True)
    assert (outcomes[faulty].error, outcomes[faulty].message) == ("Planted", "encoder")
    message = f"rank {faulty} failed in the start of the run: Planted: encoder"
    assert (outcomes[1 - faulty].error, outcomes[1 - faulty].message) == ("RankError", message)
    assert all(outcome.seconds < QUICK for outcome in outcomes)
    assert [outcome.error for outcome in again] == [None, None]


@pytest.mark.parametrize("faulty", [0, 1])
def test_a_rank_that_dies_in_an_encoder(faulty: int) -> None:
    outcome, again = run_ranks(encode_until_a_rank_fails, 2, faulty, "die", SOON, may_die=[faulty])[1 - faulty]
    assert outcome.error == again.error == "RankError"
    assert "no answer from the other ranks within 5 s, or one died" in outcome.message
    assert outcome.seconds < QUICK


def test_an_engine_reads_encoders_on_rank_0_only_and_takes_loras(tmp_path: Any) -> None:
    lora = save_lora(load("tiny-sdxl", True), tmp_path, seed=1)
    call = {"num_inference_steps": 2, "seed": 0, "output_type": "latent"}
    with start() as engine:
        plain = engine.generate(PROMPT, **call).images
        engine.set_loras([lora])
        changed = engine.generate(PROMPT, **call).images
        engine.set_loras([])
        again = engine.generate(PROMPT, **call).images
    with Engine("tiny-sdxl", 2, ParallelConfig("cfg"), device="cpu", loras=[lora]) as engine:
        from_the_start = engine.generate(PROMPT, **call).images
    assert torch.equal(plain, again)
    assert torch.equal(changed, from_the_start)
    assert not torch.equal(plain, changed)
