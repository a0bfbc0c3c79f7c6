"""Ranks that share the rows of one picture: their simulation bit for bit, one device to rounding; and how they fail."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from typing import Any

import pytest
import torch

from hybridiff import ParallelConfig, parallelize
from hybridiff.sharding import heads
from hybridiff.sharding.group import ShardGroup
from hybridiff.sharding.place import current_group
from support.compiled import Graphs, compile_blocks
from support.failing import GROUP_TIMEOUT, QUICK, SOON, Planted
from support.jobs import Generated, Outcome, attempt, generate_parallel, on_ranks, rank, told_alike
from support.oracles import relative_difference
from support.pipelines import build, denoiser_of, generate
from support.ranks import run_ranks
from support.schedules import split_at

pytestmark = pytest.mark.distributed

CACHED = {"strategy": "hybrid", "full_steps": "0-1,3"}
UNGUIDED = {"guidance_scale": 1.0}
REUSE = {"strategy": "hybrid", "step_kind": "reuse", "full_steps": "0-1"}
DISPLACED = {"displaced": True, "displaced_warm_up": 1}


@pytest.mark.parametrize(
    ("name", "ranks", "shards", "changes", "config"),
    [
        pytest.param("sdxl two levels", 4, 2, {}, {}, id="branches of two shards each"),
        pytest.param("sd3", 4, 2, {}, {}, id="the same of a transformer"),
        pytest.param("sd3.5", 3, 3, {}, {}, id="both branches by three"),
        pytest.param("sdxl two levels", 2, 2, UNGUIDED, {}, id="one branch"),
        pytest.param(
            "sdxl two levels", 4, 4, UNGUIDED, {"shards": 2}, id="one branch by all, though two were asked for"
        ),
        pytest.param("sd3", 6, 2, {"num_images_per_prompt": 2}, {}, id="three groups, four rows"),
        pytest.param("sdxl two levels", 4, 2, {"num_images_per_prompt": 3}, {}, id="three images"),
        pytest.param("sd3", 4, 2, {}, CACHED, id="cached steps"),
        pytest.param("sdxl two levels", 4, 2, {}, REUSE | {"calibration": split_at("reuse", 0)}, id="reuse steps"),
        pytest.param("sd3.5", 3, 3, {"height": 36}, REUSE, id="reuse steps by three"),
    ],
)
def test_ranks_that_share_pictures(
    name: str, ranks: int, shards: int, changes: dict[str, Any], config: dict[str, Any]
) -> None:
    config = {"shards": shards, **config}
    generated = [runs[-1] for runs in run_ranks(on_ranks, ranks, name, changes, config)]
    simulated = generate_parallel(name, changes, simulate=True, devices=ranks, **config)[-1]
    alone = generate_parallel(name, changes, simulate=True, devices=1, **{**config, "shards": 1})[-1]
    for of_rank in generated:
        assert torch.equal(of_rank.latents, simulated.latents)
        assert told_alike(of_rank) == told_alike(simulated)
    assert relative_difference(simulated.latents, alone.latents) < 1e-4
    between = {config.get("step_kind", "cached")} if config.get("strategy") == "hybrid" else set()
    assert simulated.report["kinds"].keys() == {"full"} | between
    assert simulated.report["partition"]["shards"] == shards
    assert simulated.report["bytes_by_purpose"]["shards"] > 0


def traced(ranks: int, config: dict[str, Any]) -> dict[str, Any]:
    return generate_parallel("sdxl two levels", {}, devices=ranks, shards=2, trace=True, **config)[-1].report


def test_a_trace_measures_what_a_shared_image_costs() -> None:
    first, *others = run_ranks(traced, 4, 4, {})
    for report in (first, *others):
        costs = report["shards"]
        assert costs["messages"] > 20
        assert costs["received"] > 0
        assert costs["link"]["latency"] > 0
        # Two branches, each by two ranks.
        assert report["ideal_speedup"] == pytest.approx(2 / costs["share"])


def test_a_trace_measures_the_outer_stage_of_a_shared_image() -> None:
    for report in run_ranks(traced, 4, 4, REUSE):
        costs, outer = report["shards"], report["shards"]["outer"]
        assert 0 < outer["messages"] < costs["messages"]
        assert outer["part"] > 0
        assert report["ideal_speedup"] == pytest.approx(8 / (2 * costs["share"] + 2 * outer["share"]))


def by_heads(name: str, changes: dict[str, Any], config: dict[str, Any]) -> tuple[Generated, int]:
    """What a rank generates that exchanges heads wherever it can, and how often; so short messages are not worth it."""
    patch = pytest.MonkeyPatch()
    exchange, exchanges = ShardGroup.all_to_all, []
    patch.setattr(heads, "LATENCY", -(2**30))
    patch.setattr(ShardGroup, "all_to_all", lambda *args: exchanges.append(1) or exchange(*args))
    try:
        return generate_parallel(name, changes, **config)[-1], len(exchanges)
    finally:
        patch.undo()


@pytest.mark.parametrize(
    ("name", "ranks", "shards", "changes"),
    [
        pytest.param("sd3", 4, 2, {}, id="branches of two shards each"),
        pytest.param("sd3.5", 2, 2, {"num_images_per_prompt": 3}, id="both branches by two, three images"),
        pytest.param("sdxl", 4, 4, UNGUIDED, id="one branch of a U-Net by four"),
    ],
)
def test_ranks_that_exchange_heads(name: str, ranks: int, shards: int, changes: dict[str, Any]) -> None:
    config = {"shards": shards}
    generated = run_ranks(by_heads, ranks, name, changes, config)
    simulated, exchanges = by_heads(name, changes, config | {"simulate": True, "devices": ranks})
    assert exchanges > 0
    for of_rank, exchanges_of_rank in generated:
        assert torch.equal(of_rank.latents, simulated.latents)
        assert exchanges_of_rank == exchanges // ranks
    gathered = generate_parallel(name, changes, simulate=True, devices=ranks, **config)[-1]
    assert relative_difference(simulated.latents, gathered.latents) < 1e-4
    fewer = simulated.report["bytes_by_purpose"]["shards"] < gathered.report["bytes_by_purpose"]["shards"]
    assert fewer == (shards > 2)


@pytest.mark.parametrize(
    ("name", "ranks", "changes", "config"),
    [
        pytest.param("sdxl two levels", 2, {}, {}, id="both branches by two"),
        pytest.param("sdxl two levels", 4, {"num_images_per_prompt": 2}, {}, id="branches of two shards each"),
        pytest.param("sd3", 2, {}, {}, id="a transformer"),
        pytest.param("sd3.5", 3, {}, {"shards": 3}, id="three"),
    ],
)
def test_displaced_messages(name: str, ranks: int, changes: dict[str, Any], config: dict[str, Any]) -> None:
    config = {"shards": 2, **DISPLACED, **config}
    generated = run_ranks(on_ranks, ranks, name, changes, config | {"runs": 2})
    simulated = generate_parallel(name, changes, simulate=True, devices=ranks, **config)[-1]
    for run in (run for runs in generated for run in runs):
        assert torch.equal(run.latents, simulated.latents)
        assert told_alike(run) == told_alike(simulated)
    exact = generate_parallel(name, changes, simulate=True, devices=ranks, shards=config["shards"])[-1]
    assert 1e-6 < relative_difference(simulated.latents, exact.latents) < 0.2
    assert simulated.report["bytes_by_purpose"] == exact.report["bytes_by_purpose"]


KINDS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "keys gathered": ("sdxl two levels", "mid_block", {}),
    "heads exchanged": ("sd3", "transformer_blocks.1", {}),
    "displaced": ("sdxl two levels", "mid_block", DISPLACED | {"displaced_warm_up": 0}),
    "reuse steps": ("sdxl two levels", "conv_norm_out", REUSE),
}
"""Ways to share a picture: a pipeline, a module in the middle of its network, or of its outer stage, and a config."""


def run_until_rank_1_fails(way: str, timeout: float, kind: str) -> tuple[Outcome, Outcome]:
    """How a call ends in which rank 1 leaves in the middle of the network at the third step, and the call after it."""
    name, middle, config = KINDS[kind]
    heads.LATENCY = -(2**30) if kind == "heads exchanged" else heads.LATENCY
    pipe = build(name)
    parallel = parallelize(pipe, ParallelConfig(outputs="all", shards=2, timeout=timeout, **config))
    came_by = 0

    def leave(*_: Any) -> None:
        nonlocal came_by
        came_by += current_group() is not None  # nothing is shared where stages are measured
        if came_by == 3 and rank() == 1:
            if way == "raise":
                raise Planted("in the middle")
            os.kill(os.getpid(), {"kill": signal.SIGKILL, "stop": signal.SIGSTOP}[way])

    denoiser_of(pipe).get_submodule(middle).register_forward_pre_hook(leave)
    return attempt(lambda: generate(parallel, name)), attempt(lambda: generate(parallel, name))


@pytest.mark.parametrize("kind", KINDS)
def test_a_rank_that_raises_in_the_middle_of_the_network(kind: str) -> None:
    """Its peer, which waits for its rows, hears of it as soon as the ranks of the other branch do."""
    results = run_ranks(run_until_rank_1_fails, 4, "raise", GROUP_TIMEOUT, kind)
    outcomes, again = zip(*results, strict=True)
    for number, outcome in enumerate(outcomes):
        if number == 1:
            assert (outcome.error, outcome.message) == ("Planted", "in the middle")
        else:
            assert outcome.error == "RankError"
            phase = "parallel" if kind == "reuse steps" else "warm-up"
            assert outcome.message == f"rank 1 failed in {phase}, step 2: Planted: in the middle"
        assert outcome.seconds < QUICK
    assert all(outcome.error is None for outcome in again)
    assert all(torch.equal(outcome.value, again[0].value) for outcome in again)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("way", ["kill", "stop"])
def test_a_rank_that_dies_or_hangs_in_the_middle_of_the_network(way: str, kind: str) -> None:
    outcomes = run_ranks(run_until_rank_1_fails, 4, way, SOON, kind, may_die=[1])
    for outcome, again in (outcomes[number] for number in (0, 2, 3)):
        assert outcome.error == "RankError"
        assert "no answer from the other ranks within 5 s, or one died" in outcome.message
        assert "the process group broke" in again.message
        assert outcome.seconds < QUICK


def compiled(name: str, config: dict[str, Any]) -> tuple[list[torch.Tensor], list[int]]:
    """The latents of two calls with compiled blocks, and how many graphs there were after each."""
    pipe, graphs = build(name), Graphs()
    compile_blocks(pipe, graphs)
    made, latents = [], []
    with parallelize(pipe, ParallelConfig(outputs="all", **config)) as parallel:
        for _ in range(2):
            latents.append(generate(parallel, name))
            made.append(graphs.made)
    return latents, made


@pytest.mark.parametrize(
    ("name", "ranks", "config"),
    [
        pytest.param("sdxl two levels", 2, {}, id="a U-Net"),
        pytest.param("sd3.5", 3, {"shards": 3}, id="a transformer by three"),
        pytest.param("sd3", 4, REUSE, id="reuse steps"),
    ],
)
def test_ranks_that_share_compiled_blocks(name: str, ranks: int, config: dict[str, Any]) -> None:
    config = {"shards": 2} | config
    simulated, _ = compiled(name, config | {"simulate": True, "devices": ranks})
    expected = generate_parallel(name, {}, simulate=True, devices=ranks, **config)[-1].latents
    for latents, made in run_ranks(compiled, ranks, name, config):
        assert all(torch.equal(one, expected) for one in (*latents, *simulated))
        assert 0 < made[0] == made[1] <= 6


def run_until_an_operator_fails() -> tuple[Outcome, Outcome]:
    """How a call ends in which a message within a compiled block of rank 1 raises, and the call after it."""
    pipe, graphs = build("sd3"), Graphs()
    compile_blocks(pipe, graphs)
    parallel = parallelize(pipe, ParallelConfig(outputs="all", shards=2, timeout=GROUP_TIMEOUT))
    patch, gather, said = pytest.MonkeyPatch(), ShardGroup.start_concatenate, []

    def leave(group: ShardGroup, place: str, *rest: Any) -> Callable[[], torch.Tensor]:
        said.append(place)
        if rank() == 1 and place.startswith("transformer_blocks.1, attention 1") and len(said) > 12:
            patch.undo()
            raise Planted("in the middle")
        return gather(group, place, *rest)

    patch.setattr(ShardGroup, "start_concatenate", leave)
    return attempt(lambda: generate(parallel, "sd3")), attempt(lambda: generate(parallel, "sd3"))


def test_a_rank_that_raises_within_a_compiled_block() -> None:
    outcomes, again = zip(*run_ranks(run_until_an_operator_fails, 4), strict=True)
    assert (outcomes[1].error, outcomes[1].message) == ("Planted", "in the middle")
    for number in (0, 2, 3):
        assert outcomes[number].error == "RankError"
        assert "rank 1 failed in warm-up" in outcomes[number].message
        assert "Planted: in the middle" in outcomes[number].message
        assert outcomes[number].seconds < QUICK
    assert all(outcome.error is None for outcome in again)
