"""The embedded models: they load into stock pipelines, and their training used what the pipelines compute."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DPMSolverMultistepScheduler, EulerDiscreteScheduler, UniPCMultistepScheduler

from hybridiff.models import tiny
from hybridiff.models.loading import load_pipeline
from hybridiff.models.tiny.checking import check
from hybridiff.models.tiny.scenes import captions, parse_caption
from tools.tiny_models import denoisers, scenes
from tools.tiny_models.losses import RepeatedTokenProcessor, with_zero_token
from tools.tiny_models.pipelines import vocabulary

ROOT = Path(__file__).parents[3]


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
def test_held_out_captions_are_generated(pipeline: Any) -> None:
    texts = captions("evaluation", 12)
    fewer_empty_tokens = {"max_sequence_length": 16} if hasattr(pipeline, "transformer") else {}  # quicker
    images = _generate(pipeline, texts, **fewer_empty_tokens)
    rights = [check(image, parse_caption(text)).core for image, text in zip(images, texts, strict=True)]
    assert sum(rights) >= 7


@pytest.mark.slow
@pytest.mark.parametrize("solver", [EulerDiscreteScheduler, DPMSolverMultistepScheduler, UniPCMultistepScheduler])
def test_other_solvers_of_tiny_sdxl_generate_the_same_images(solver: Any) -> None:
    pipeline = load_pipeline("tiny-sdxl")
    pipeline.set_progress_bar_config(disable=True)
    texts = captions("calibration", 3)
    images = _generate(pipeline, texts)
    pipeline.scheduler = solver.from_config(pipeline.scheduler.config)
    others = _generate(pipeline, texts)
    assert np.abs(others - images).mean() < 0.03


@pytest.mark.parametrize("count", [256, 3])
def test_one_raised_token_stands_for_many_zero_tokens(count: int) -> None:
    transformer = load_pipeline("tiny-sd3").transformer
    torch.manual_seed(0)
    latents, text, pooled = torch.randn(2, 4, 16, 16), torch.randn(2, 20, 128), torch.randn(2, 128)
    times = torch.tensor([300.0, 900.0])
    with torch.no_grad():
        stock = transformer(latents, torch.nn.functional.pad(text, (0, 0, 0, count)), pooled, times).sample
        transformer.set_attn_processor(RepeatedTokenProcessor())
        shorter, bias = with_zero_token(text, torch.full((2,), float(count)), image_tokens=64)
        short = transformer(latents, shorter, pooled, times, joint_attention_kwargs={"key_bias": bias}).sample
    torch.testing.assert_close(short, stock, atol=2e-5, rtol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("name", tiny.EMBEDDED)
def test_a_training_goes_on_where_it_stopped(tmp_path: Path, name: str) -> None:
    scenes.encode_scenes(tmp_path, count=32, seed=0)
    steps = []
    for minutes in (0.02, 0.05):
        denoisers.train(tmp_path, name, minutes, batch=4, peak=1e-4, seed=0)
        steps.append(torch.load(tmp_path / f"{name}.pt", weights_only=False)["step"])
    assert 0 < steps[0] < steps[1]


def test_the_tools_command_says_what_it_does() -> None:
    command = [sys.executable, "-m", "tools.tiny_models", "--help"]
    printed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert "usage: python -m tools.tiny_models" in printed
    for name in ("vae", "scenes", "train", "export", "evaluate", "check", "discrepancy", "plots"):
        assert f"    {name} " in printed


def _generate(pipeline: Any, texts: list[str], **arguments: Any) -> np.ndarray:
    generators = [torch.Generator().manual_seed(index) for index in range(len(texts))]
    scale = tiny.GUIDANCE["tiny-sd3" if hasattr(pipeline, "transformer") else "tiny-sdxl"]
    return pipeline(
        texts, num_inference_steps=20, guidance_scale=scale, generator=generators, output_type="np", **arguments
    ).images
