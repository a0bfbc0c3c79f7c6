"""Compiled networks and bfloat16 on two ranks: their simulation in one process, bit for bit."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from hybridiff import ParallelConfig, parallelize
from support.jobs import Generated, told_alike
from support.pipelines import denoiser_of
from support.ranks import run_ranks
from zoo import ZOO, run

pytestmark = pytest.mark.distributed

CACHED: dict[str, Any] = {"strategy": "hybrid", "full_steps": "0-1,3,5"}


def generate_compiled(name: str, **config: Any) -> Generated:
    pipe = ZOO[name].build().to(torch.bfloat16)
    with parallelize(pipe, ParallelConfig(outputs="all", **config)) as parallel:
        denoiser_of(pipe).compile(backend="eager", fullgraph=True)
        result = run(ZOO[name], parallel, steps=6)
        assert parallel.report is not None
        return Generated(result, parallel.report.to_dict())


def on_ranks(name: str, config: dict[str, Any]) -> Generated:
    return generate_compiled(name, **config)


@pytest.mark.parametrize(("name", "config"), [("WanPipeline", CACHED), ("StableDiffusion3Pipeline", {})])
def test_ranks_equal_their_simulation(name: str, config: dict[str, Any]) -> None:
    simulated = generate_compiled(name, simulate=True, devices=2, **config)
    for generated in run_ranks(on_ranks, 2, name, config):
        assert torch.equal(generated.latents, simulated.latents)
        assert told_alike(generated) == told_alike(simulated)
