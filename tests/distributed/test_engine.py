"""What an Engine answers."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from hybridiff import Engine, UsageError, load_pipeline
from hybridiff.evaluation.metrics import psnr
from support.engines import PROMPT, start

pytestmark = pytest.mark.distributed


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    with start() as engine:
        yield engine


def test_generates_what_the_stock_pipeline_generates(engine: Engine) -> None:
    import torch

    pipe = load_pipeline("tiny-sdxl")
    pipe.set_progress_bar_config(disable=True)
    stock = pipe(PROMPT, num_inference_steps=4, generator=torch.Generator().manual_seed(3)).images[0]
    steps: list[tuple[int, int]] = []
    ours = engine.generate(PROMPT, seed=3, num_inference_steps=4, on_step=lambda *step: steps.append(step))
    assert psnr(ours.images[0], stock) > 50.0
    assert steps == [(1, 4), (2, 4), (3, 4), (4, 4)]
    assert (ours.report.strategy, ours.report.devices, len(ours.report.steps)) == ("cfg", 2, 4)
    assert len(ours.report.peak_memory) == 2
    assert all(10**8 < most < 10**11 for most in ours.report.peak_memory)


def test_seed_decides_the_image_and_is_told(engine: Engine) -> None:
    generated = engine.generate(PROMPT, num_inference_steps=2)
    again = engine.generate(PROMPT, seed=np.int64(generated.seed), num_inference_steps=2)
    other = engine.generate(PROMPT, seed=generated.seed + 1, num_inference_steps=2)
    assert np.array_equal(generated.images[0], again.images[0])
    assert type(again.seed) is int
    assert not np.array_equal(generated.images[0], other.images[0])


def test_several_images_and_tensors_travel(engine: Engine) -> None:
    assert len(engine.generate(PROMPT, seed=0, num_inference_steps=2, num_images_per_prompt=3).images) == 3
    latents = engine.generate(PROMPT, seed=0, num_inference_steps=2, output_type="latent").images
    assert latents.shape[0] == 1
    assert latents.device.type == "cpu"


def test_bad_input_on_all_ranks_is_one_value_error_and_the_engine_goes_on(engine: Engine) -> None:
    before = engine.pids
    with pytest.raises(ValueError, match="Cannot leave both"):
        engine.generate(None, num_inference_steps=2)
    with pytest.raises(ValueError, match="height must be a positive multiple of 8"):
        engine.generate(PROMPT, height=100)
    assert engine.generate(PROMPT, num_inference_steps=2).images
    assert engine.pids == before


def test_a_misspelt_argument_is_refused_where_stock_ignores_it(engine: Engine) -> None:
    message = r"unknown argument of StableDiffusionXLPipeline 'guidence_scale'; choose one of .*guidance_scale"
    with pytest.raises(UsageError, match=message):
        engine.generate(PROMPT, guidence_scale=7.0, num_inference_steps=2)


def test_each_of_many_threads_gets_its_own_answer(engine: Engine) -> None:
    def ask(seed: int, answers: dict[int, Any]) -> None:
        steps: list[int] = []
        generation = engine.generate(
            PROMPT, seed=seed, num_inference_steps=3, on_step=lambda done, total: steps.append(done)
        )
        answers[seed] = (generation.seed, steps, np.asarray(generation.images[0]))

    alone: dict[int, Any] = {}
    for seed in range(3):
        ask(seed, alone)
    together: dict[int, Any] = {}
    threads = [threading.Thread(target=ask, args=(seed, together)) for seed in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for seed in range(3):
        assert together[seed][:2] == alone[seed][:2] == (seed, [1, 2, 3])
        assert np.array_equal(together[seed][2], alone[seed][2])
