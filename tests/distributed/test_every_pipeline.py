"""Pipelines of each layout of guidance on two ranks: their simulation in one process, bit for bit."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from hybridiff import ParallelConfig, parallelize
from support.jobs import Generated, told_alike
from support.ranks import run_ranks
from zoo import ZOO, run

pytestmark = pytest.mark.distributed

NAMES = (
    "AnimateDiffPipeline",
    "CogVideoXPipeline",
    "FluxPipeline",
    "FluxPipeline:distilled",
    "HiDreamImagePipeline",
    "PixArtSigmaPipeline",
    "QwenImagePipeline",
    "StableDiffusionInstructPix2PixPipeline",
    "StableDiffusionPAGPipeline",
    "StableDiffusionXLModularPipeline",
    "WanPipeline:two-transformers",
    "ZImagePipeline",
)
"""Batched in either order, a call for each branch, a guider, three branches apart and whole, one branch."""

CONFIGS: dict[str, dict[str, Any]] = {
    "cfg": {"strategy": "cfg"},
    "cached": {"strategy": "hybrid", "full_steps": "0-1,3"},
}

Results = dict[tuple[str, str], list[Generated]]


def generate_all(names: tuple[str, ...], **config: Any) -> Results:
    """What a rank has of each specimen with each config, twice: the second time how it does guidance may be known."""
    return {(name, kind): generate_twice(name, **CONFIGS[kind], **config) for name in names for kind in CONFIGS}


def generate_twice(name: str, **config: Any) -> list[Generated]:
    generated = []
    with parallelize(ZOO[name].build(), ParallelConfig(outputs="all", **config)) as parallel:
        for _ in range(2):
            result = run(ZOO[name], parallel, steps=6)
            assert parallel.report is not None
            generated.append(Generated(result, parallel.report.to_dict()))
    return generated


def on_ranks(names: tuple[str, ...]) -> Results:
    return generate_all(names)


@pytest.fixture(scope="module")
def ranks() -> list[Results]:
    """One launch of two ranks for all of them."""
    return run_ranks(on_ranks, 2, NAMES)


@pytest.fixture(scope="module")
def simulated() -> Results:
    return generate_all(NAMES, simulate=True, devices=2)


@pytest.mark.parametrize("kind", CONFIGS)
@pytest.mark.parametrize("name", NAMES)
def test_ranks_equal_their_simulation(name: str, kind: str, ranks: list[Results], simulated: Results) -> None:
    for rank in ranks:
        for generated, expected in zip(rank[name, kind], simulated[name, kind], strict=True):
            assert torch.equal(generated.latents, expected.latents)
            assert told_alike(generated) == told_alike(expected)
            kinds = {step["kind"] for step in generated.report["steps"]}
            assert kinds == ({"full", "cached"} if kind == "cached" else {"full"})
