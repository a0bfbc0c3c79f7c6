"""`sequence` and `distrifusion`: presets of `cfg` with shards."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from hybridiff import ParallelConfig, UsageError, load_pipeline, parallelize
from hybridiff.models.tiny import GUIDANCE
from support.jobs import Generated, generate_parallel
from support.oracles import relative_difference
from support.pipelines import build, generate

EIGHT = {"num_inference_steps": 8}
NAMES = ["sdxl two levels", "sd3"]


def simulated(name: str, strategy: str, ranks: int, **settings: Any) -> Generated:
    return generate_parallel(name, EIGHT, simulate=True, devices=ranks, strategy=strategy, settings=settings)[0]


@pytest.mark.parametrize(("ranks", "split", "shards"), [(2, None, 2), (3, None, 3), (4, None, 2), (4, False, 4)])
@pytest.mark.parametrize("name", NAMES)
def test_a_sequence_is_the_stock_pipeline(name: str, ranks: int, split: bool | None, shards: int) -> None:
    shared = simulated(name, "sequence", ranks, split_batch=split)
    assert relative_difference(shared.latents, generate(build(name), name, **EIGHT)) < 1e-4
    assert shared.report["strategy"] == "sequence"
    assert shared.report["partition"]["shards"] == shards
    assert shared.report["ideal_speedup"] == pytest.approx(ranks)


@pytest.mark.parametrize(("ranks", "split", "shards"), [(2, None, 2), (4, True, 2), (4, False, 4)])
@pytest.mark.parametrize("name", NAMES)
def test_displaced_patches(name: str, ranks: int, split: bool | None, shards: int) -> None:
    """Nothing but warm-up is the sequence; otherwise it is what `cfg` with displaced shards makes."""
    exact = simulated(name, "sequence", ranks, split_batch=split).latents
    assert torch.equal(simulated(name, "distrifusion", ranks, split_batch=split, warm_up=8).latents, exact)
    displaced = simulated(name, "distrifusion", ranks, split_batch=split, warm_up=2)
    plain: dict[str, Any] = {"simulate": True, "devices": ranks, "shards": shards}
    expected = generate_parallel(name, EIGHT, displaced=True, displaced_warm_up=2, **plain)[0]
    assert torch.equal(displaced.latents, expected.latents)
    assert displaced.report["notes"] == expected.report["notes"]
    assert "images are approximate" in displaced.report["notes"][0]
    assert 1e-6 < relative_difference(displaced.latents, exact) < 0.5


def test_two_ranks_with_a_branch_each_displace_nothing() -> None:
    plain = generate_parallel("sd3", EIGHT, simulate=True, devices=2)[0].latents
    for strategy in ("sequence", "distrifusion"):
        assert torch.equal(simulated("sd3", strategy, 2, split_batch=True).latents, plain)


def test_one_rank_is_the_stock_pipeline() -> None:
    assert torch.equal(simulated("sd3", "distrifusion", 1).latents, generate(build("sd3"), "sd3", **EIGHT))


@pytest.mark.parametrize(("name", "more"), [("tiny-sdxl", {}), ("tiny-sd3", {"max_sequence_length": 16})])
def test_embedded_models(name: str, more: dict[str, Any]) -> None:
    pipe = load_pipeline(name)
    call: dict[str, Any] = {"prompt": "a dog", "num_inference_steps": 8, "guidance_scale": GUIDANCE[name]}
    call |= {"output_type": "latent"} | more

    def latents(pipeline: Any) -> torch.Tensor:
        generated: torch.Tensor = pipeline(**call, generator=torch.Generator().manual_seed(1)).images
        return generated

    stock = latents(pipe)
    made = {}
    for strategy, settings in (("sequence", {}), ("distrifusion", {"warm_up": 8}), ("distrifusion", {"warm_up": 4})):
        config = ParallelConfig(strategy=strategy, devices=2, simulate=True, settings=settings)
        with parallelize(pipe, config) as parallel:
            made[strategy, *settings.values()] = latents(parallel)
    assert relative_difference(made["sequence",], stock) < 1e-4
    assert torch.equal(made["distrifusion", 8], made["sequence",])
    assert 1e-6 < relative_difference(made["distrifusion", 4], stock) < 0.3


@pytest.mark.parametrize(
    ("config", "sentence"),
    [
        ({"devices": 3, "settings": {"split_batch": True}}, "3 ranks cannot be halved between two guidance branches"),
        ({"shards": 2}, "shards of 'distrifusion' follow from its setting split_batch, got shards=2"),
        ({"settings": {"warm_up": -1}}, "warm_up must be at least 0, got -1"),
        ({"settings": {"split_batch": 2}}, "split_batch must be true or false, got 2"),
        ({"settings": {"split": 2}}, "unknown setting of the strategy 'split'; choose one of split_batch, warm_up"),
    ],
)
def test_what_does_not_fit(config: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UsageError) as error:
        parallelize(build("sd3"), ParallelConfig(strategy="distrifusion", simulate=True, **config))
    assert str(error.value).startswith(sentence)
