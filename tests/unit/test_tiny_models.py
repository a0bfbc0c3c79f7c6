"""The embedded models: they load into stock pipelines, and their training used what the pipelines compute."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DPMSolverMultistepScheduler, EulerDiscreteScheduler, UniPCMultistepScheduler

from hybridiff.models import tiny
from hybridiff.models.loading import load_pipeline
from hybridiff.models.tiny.checking import check
from hybridiff.models.tiny.scenes import captions, parse_caption, vocabulary

TOOLS = Path(__file__).parents[2] / "tools"


@pytest.fixture(scope="module", params=tiny.EMBEDDED)
def pipeline(request: pytest.FixtureRequest) -> Any:
    loaded = load_pipeline(request.param)
    loaded.set_progress_bar_config(disable=True)
    return loaded


@pytest.mark.parametrize("name", tiny.EMBEDDED)
def test_a_model_stays_below_sixteen_megabytes(name: str) -> None:
    assert sum(file.stat().st_size for file in tiny.folder(name).rglob("*") if file.is_file()) < 16e6


def test_everything_loads_in_single_precision(pipeline: Any) -> None:
    modules = [part for part in pipeline.components.values() if isinstance(part, torch.nn.Module)]
    assert {parameter.dtype for module in modules for parameter in module.parameters()} == {torch.float32}


def test_each_word_is_one_token_and_other_text_still_encodes(pipeline: Any) -> None:
    for tokenizer in (pipeline.tokenizer, pipeline.tokenizer_2):
        assert all(len(tokenizer.tokenize(word)) == 1 for word in vocabulary())
        assert tokenizer.decode(tokenizer("grüne Katze 42!").input_ids, skip_special_tokens=True) == "grüne katze 4 2 !"
        longest = "a small purple triangle right of a large orange square on an orange background"
        assert len(tokenizer(longest).input_ids) <= tokenizer.model_max_length


def test_the_first_end_mark_is_pooled(pipeline: Any) -> None:
    encoder = pipeline.text_encoder_2
    tokens = pipeline.tokenizer_2(["a red ring"], padding="max_length", return_tensors="pt").input_ids
    short = pipeline.tokenizer_2(["a red ring"], return_tensors="pt").input_ids
    with torch.no_grad():
        torch.testing.assert_close(encoder(tokens).text_embeds, encoder(short).text_embeds)


@pytest.mark.slow
def test_held_out_captions_are_drawn(pipeline: Any) -> None:
    texts = captions("evaluation", 12)
    fewer_empty_tokens = {"max_sequence_length": 16} if hasattr(pipeline, "transformer") else {}  # quicker
    pictures = _draw(pipeline, texts, **fewer_empty_tokens)
    rights = [check(picture, parse_caption(text)).core for picture, text in zip(pictures, texts, strict=True)]
    assert sum(rights) >= 7


@pytest.mark.slow
@pytest.mark.parametrize("solver", [EulerDiscreteScheduler, DPMSolverMultistepScheduler, UniPCMultistepScheduler])
def test_other_solvers_of_tiny_sdxl_draw_the_same_pictures(solver: Any) -> None:
    pipeline = load_pipeline("tiny-sdxl")
    pipeline.set_progress_bar_config(disable=True)
    texts = captions("calibration", 3)
    pictures = _draw(pipeline, texts)
    pipeline.scheduler = solver.from_config(pipeline.scheduler.config)
    others = _draw(pipeline, texts)
    assert np.abs(others - pictures).mean() < 0.03


@pytest.mark.parametrize("count", [256, 3])
def test_one_raised_token_stands_for_many_zero_tokens(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    monkeypatch.syspath_prepend(str(TOOLS))
    from tiny_denoisers import RepeatedTokenProcessor, with_zero_token

    transformer = load_pipeline("tiny-sd3").transformer
    torch.manual_seed(0)
    latents, text, pooled = torch.randn(2, 4, 16, 16), torch.randn(2, 20, 128), torch.randn(2, 128)
    times = torch.tensor([300.0, 900.0])
    with torch.no_grad():
        stock = transformer(latents, torch.nn.functional.pad(text, (0, 0, 0, count)), pooled, times).sample
        transformer.set_attn_processor(RepeatedTokenProcessor())
        shorter, bias = with_zero_token(text, torch.full((2,), float(count)), pictures=64)
        short = transformer(latents, shorter, pooled, times, joint_attention_kwargs={"key_bias": bias}).sample
    torch.testing.assert_close(short, stock, atol=2e-5, rtol=1e-4)


def _draw(pipeline: Any, texts: list[str], **arguments: Any) -> np.ndarray:
    generators = [torch.Generator().manual_seed(index) for index in range(len(texts))]
    scale = tiny.GUIDANCE["tiny-sd3" if hasattr(pipeline, "transformer") else "tiny-sdxl"]
    return pipeline(
        texts, num_inference_steps=20, guidance_scale=scale, generator=generators, output_type="np", **arguments
    ).images
