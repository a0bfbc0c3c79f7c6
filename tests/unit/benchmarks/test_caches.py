"""diffusers' caches beneath partitioning: exact where they leave nothing out, and gone without a trace."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from benchmarks.cached_pipeline import Cache, CachedPipeline
from benchmarks.caches import CacheSetting, list_caches, main
from hybridiff.evaluation.frontier.generation import generate_references, simulate
from hybridiff.utils.prompts import Prompt
from support.pipelines import build, denoiser_of

CALL = {"num_inference_steps": 8, "guidance_scale": 5.0, "height": 32, "width": 32}
PROMPTS = [Prompt("a ring"), Prompt("a cross")]


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
def test_a_cache_that_leaves_nothing_out_gives_the_image_of_one_device(model: str, cache: Cache) -> None:
    pipe = build(model, "ddim" if model == "sdxl" else None)
    references = list(generate_references(pipe, PROMPTS[:1], CALL))
    (row,) = simulate(pipe, references, [CacheSetting.make(cache, "all")], CALL)
    (result,) = row.results
    assert result.psnr > 80.0
    assert (result.run.ideal_speedup, result.run.schedule) == (2.0, "f" * 8)


@pytest.mark.parametrize(
    ("model", "cache", "schedule"),
    [
        ("sd3", Cache("first-block", 9.0), "fccccccc"),
        ("sd3", Cache("taylorseer", 3), "fcfccfcc"),
        ("sdxl", Cache("taylorseer", 3, order=2), "fcfccfcc"),
    ],
)
def test_cached_steps_cost_less_and_every_image_starts_anew(model: str, cache: Cache, schedule: str) -> None:
    pipe = build(model, "ddim" if model == "sdxl" else None)
    references = list(generate_references(pipe, PROMPTS, CALL))
    setting = CacheSetting.make(cache, "some")
    (row,) = simulate(pipe, references, [setting], CALL)
    assert [result.run.schedule for result in row.results] == [schedule] * 2
    assert 2.0 < row.ideal_speedup < 16 / schedule.count("f")
    assert all(10.0 < result.psnr < 80.0 for result in row.results)
    (alone,) = simulate(pipe, references[1:], [setting], CALL)
    assert alone.results == row.results[1:], "the image before leaves nothing in the cache"
    assert setting.describe(pipe, 8)["config"]["cache"]["kind"] == cache.kind


def test_one_device_has_the_work_of_both_branches_which_skip_different_steps() -> None:
    ran: list[None] = []
    with CachedPipeline(build("sd3"), Cache("first-block", 0.15), CALL) as cached:
        for network in cached._branches:
            network.transformer_blocks[1].attn.register_forward_hook(lambda *_: ran.append(None))
        cached("a ring", generator=torch.Generator().manual_seed(1), output_type="latent", **CALL)
        skipped = min(cached.shares)
        assert cached.one_device == pytest.approx(16 / (len(ran) + (16 - len(ran)) * skipped))
        assert cached.one_device > cached.summary.ideal_speedup / 2


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
    labels = [setting.label for setting in list_caches(build("sd3"))]
    assert labels[0] == "first-block, threshold 0.03"
    assert labels[-1] == "taylorseer, 1 of 3, order 2"
    assert {setting.label.partition(",")[0] for setting in list_caches(build("sdxl"))} == {"taylorseer", "pyramid"}


def test_the_benchmark_writes_a_study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "caches.json"
    few = [CacheSetting.make(Cache("taylorseer", 2), "1 of")]
    monkeypatch.setattr("benchmarks.caches.list_caches", lambda pipe: few)
    flags = ["--limit", "1", "--num-inference-steps", "3", "--max-sequence-length", "16", "--device", "cpu"]
    main(["--model", "tiny-sd3", *flags, "--output", str(path)])
    rows = json.loads(path.read_text())["rows"]
    assert [row["method"] for row in rows] == ["cache", *["quality"] * 6]
    assert "| cache | taylorseer, 1 of 2 |" in path.with_suffix(".md").read_text()
    assert path.with_suffix(".png").exists()
