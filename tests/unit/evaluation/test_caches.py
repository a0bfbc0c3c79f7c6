"""diffusers' caches beneath partitioning: exact where they leave nothing out, and gone without a trace."""

from __future__ import annotations

import pytest

from hybridiff import ParallelConfig
from hybridiff.evaluation.caches import Cache, CachedPipeline
from hybridiff.evaluation.frontier import Setting, draw_references, simulate
from hybridiff.evaluation.grid import list_settings
from hybridiff.utils.prompts import Prompt
from support.pipelines import build, denoiser_of

CALL = {"num_inference_steps": 8, "guidance_scale": 5.0, "height": 32, "width": 32}
PROMPTS = [Prompt("a ring"), Prompt("a cross")]
CONFIG = ParallelConfig(strategy="cfg", simulate=True)


@pytest.mark.parametrize(
    ("model", "cache"),
    [
        ("sd3", Cache("first-block", 0.0)),
        ("sd3", Cache("mag", 0.0)),
        ("sd3", Cache("taylorseer", 1)),
        ("sdxl", Cache("taylorseer", 1)),
        ("sdxl", Cache("pyramid", 1)),
    ],
)
def test_a_cache_that_leaves_nothing_out_draws_the_picture_of_one_device(model: str, cache: Cache) -> None:
    pipe = build(model, "ddim" if model == "sdxl" else None)
    references = list(draw_references(pipe, PROMPTS[:1], CALL))
    (row,) = simulate(pipe, references, [Setting("cache", "all", CONFIG, cache=cache)], CALL)
    assert row.psnr > 80.0
    assert row.ideal_speedup == 2.0
    assert row.drawings[0].schedule == "f" * 8


@pytest.mark.parametrize(
    ("model", "cache", "schedule"),
    [
        ("sd3", Cache("first-block", 9.0), "fccccccc"),
        ("sd3", Cache("taylorseer", 3), "fcfccfcc"),
        ("sdxl", Cache("taylorseer", 3, order=2), "fcfccfcc"),
    ],
)
def test_cached_steps_cost_less_and_every_picture_starts_anew(model: str, cache: Cache, schedule: str) -> None:
    pipe = build(model, "ddim" if model == "sdxl" else None)
    references = list(draw_references(pipe, PROMPTS, CALL))
    setting = Setting("cache", "some", CONFIG, cache=cache)
    (row,) = simulate(pipe, references, [setting], CALL)
    assert [drawing.schedule for drawing in row.drawings] == [schedule] * 2
    assert 2.0 < row.ideal_speedup < 16 / schedule.count("f")
    assert all(10.0 < drawing.psnr < 80.0 for drawing in row.drawings)
    (alone,) = simulate(pipe, references[1:], [setting], CALL)
    assert alone.drawings == row.drawings[1:], "the picture before leaves nothing in the cache"
    assert setting.describe(pipe, 8)["config"]["cache"]["method"] == cache.method


def test_the_pipeline_is_left_as_it_was() -> None:
    pipe = build("sd3")
    network = denoiser_of(pipe)
    with CachedPipeline(pipe, Cache("first-block", 0.5), CALL) as cached:
        cached("a ring", output_type="latent", **CALL)
        assert len(cached.shares) == 8
    for module in network.modules():
        assert not hasattr(module, "_diffusers_hook")
        assert "forward" not in vars(module)
        assert not module._forward_hooks


def test_the_caches_that_a_network_cannot_have_are_left_out() -> None:
    settings = list_settings(["cache"], 50)
    transformer, unet = build("sd3"), build("sdxl")
    assert all(setting.fits(transformer) for setting in settings)
    fitting = {setting.cache.method for setting in settings if setting.fits(unet) and setting.cache is not None}
    assert fitting == {"taylorseer", "pyramid"}
    assert next(setting.label for setting in settings if setting.is_adaptive) == "first-block, threshold 0.03"
