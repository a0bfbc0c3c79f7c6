from __future__ import annotations

from typing import Any

import pytest
import torch

from benchmarks.cached_pipeline import Cache, CachedPipeline
from hybridiff import ParallelConfig, UsageError, parallelize
from support.jobs import generate_parallel
from support.oracles import differences, generated_one_part_after_another, state_of
from support.pipelines import build, call_arguments, generate
from support.schedules import guidance_until
from zoo import ZOO
from zoo.specimen import run

TEN = {"num_inference_steps": 10}


def simulated(name: str, changes: dict[str, Any] = TEN, ranks: int = 2, **settings: Any) -> torch.Tensor:
    config = {"strategy": "cached_cfg", "devices": ranks, "simulate": True, "settings": settings}
    return generate_parallel(name, changes, **config)[0].latents


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("sd3", {"cache": "first_block", "threshold": 0.0}),
        ("sd3.5", {"cache": "taylorseer", "interval": 1}),
        ("sdxl", {"cache": "taylorseer", "interval": 1}),
    ],
)
def test_a_cache_that_leaves_nothing_out_is_cfg(name: str, settings: dict[str, Any]) -> None:
    assert torch.equal(simulated(name, **settings), generated_one_part_after_another(name, **TEN))


@pytest.mark.parametrize(
    ("name", "settings", "cache"),
    [
        ("sd3", {"cache": "first_block", "threshold": 0.5}, Cache("first-block", 0.5)),
        ("sd3", {"cache": "taylorseer", "interval": 2}, Cache("taylorseer", 2)),
        ("sd15", {"cache": "taylorseer", "interval": 3, "order": 2}, Cache("taylorseer", 3, order=2)),
    ],
)
def test_each_rank_has_what_a_network_of_its_own_would_give(name: str, settings: dict[str, Any], cache: Cache) -> None:
    """Held against two copies of the network, one a branch, each with the cache."""
    arguments = call_arguments(name, **TEN)
    with CachedPipeline(build(name), cache, TEN) as pipe:
        expected = pipe(**arguments).images
    generated = simulated(name, **settings)
    assert torch.equal(generated, expected)
    assert not torch.equal(generated, generated_one_part_after_another(name, **TEN))


def test_four_ranks_guidance_that_ends_and_skipped_layers() -> None:
    own: dict[str, Any] = {"cache": "first_block", "threshold": 0.3}
    slg: dict[str, Any] = {"skip_guidance_layers": [1], "skip_layer_guidance_start": 0.3}
    for changes in ({"num_images_per_prompt": 2}, guidance_until("sd3", 5), slg):
        assert torch.isfinite(simulated("sd3", TEN | changes, 4, **own)).all()


@pytest.mark.parametrize(("name", "cache"), [("sd3", "first_block"), ("sdxl", "taylorseer")])
def test_nothing_is_left_behind(name: str, cache: str) -> None:
    pipe = build(name)
    generate(pipe, name, **TEN)
    before = state_of(pipe)
    with parallelize(pipe, ParallelConfig(strategy="cached_cfg", simulate=True, settings={"cache": cache})) as parallel:
        first, second = (generate(parallel, name, **TEN) for _ in range(2))
    assert torch.equal(first, second), "the image before leaves nothing in the cache"
    changed = [name for name in differences(before, state_of(pipe)) if not name.startswith(("scheduler", "pipe._"))]
    assert changed == []


def test_what_does_not_fit() -> None:
    with pytest.raises(UsageError, match=r"^the cache 'first_block' does not fit UNet2DConditionModel; use taylorseer"):
        simulated("sdxl")
    wan = ZOO["WanPipeline"]  # whose blocks have other names
    own = {"cache": "taylorseer"}
    with (
        parallelize(wan.build(), ParallelConfig(strategy="cached_cfg", simulate=True, settings=own)) as parallel,
        pytest.raises(UsageError, match=r"^the cache 'taylorseer' does not fit WanTransformer3DModel"),
    ):
        run(wan, parallel)
    with pytest.raises(UsageError, match=r"^unknown cache 'mag'; choose one of first_block, taylorseer$"):
        simulated("sd3", cache="mag")
    with pytest.raises(UsageError, match=r"^strategy 'cached_cfg' cannot share an image between ranks; use shards=1$"):
        parallelize(build("sd3"), ParallelConfig(strategy="cached_cfg", simulate=True, devices=4, shards=2))
