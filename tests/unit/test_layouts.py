"""Pipelines whose guidance is found out at the first step, with all ranks played in this process."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from hybridiff import ParallelConfig, ParallelPipeline, RankError, parallelize
from support.oracles import relative_difference
from support.schedules import interrupt_after
from support.simulated import report_of
from zoo import ZOO, Specimen, run

ROUNDING = 1e-4
EXACT: dict[str, dict[str, Any]] = {"cfg": {}, "hybrid": {"quality": "exact"}}
"""Of batches of other sizes; calls that are whole are the stock ones bit by bit."""


def simulate(specimen: Specimen, strategy: str = "cfg", devices: int = 2, **config: Any) -> ParallelPipeline:
    return parallelize(specimen.build(), ParallelConfig(strategy=strategy, devices=devices, simulate=True, **config))


def guided_steps(parallel: ParallelPipeline) -> list[bool]:
    return [step.discrepancy is not None for step in report_of(parallel).steps]


def evaluated_rows(specimen: Specimen, parallel: ParallelPipeline, **changes: Any) -> list[int]:
    """Rows of each evaluation of the network, those of all ranks one after the other."""
    rows: list[int] = []
    hook = parallel.pipe.transformer.proj_out.register_forward_hook(lambda *given: rows.append(len(given[-1])))
    run(specimen, parallel, **changes)
    hook.remove()
    return rows


def extra_evaluations(parallel: ParallelPipeline) -> list[int]:
    return [step.extra_evaluations for step in report_of(parallel).steps]


@pytest.mark.parametrize("name", ["FluxPipeline", "WanPipeline", "WanPipeline:two-transformers"])
def test_calls_of_their_own_are_foreseen(name: str) -> None:
    specimen = ZOO[name]
    parallel = simulate(specimen)
    assert torch.equal(run(specimen, parallel), run(specimen, specimen.build()))
    assert guided_steps(parallel) == [True] * 4
    assert extra_evaluations(parallel) == [0] * 4
    assert report_of(parallel).notes == []


def test_guidance_that_the_pipeline_ends_midway() -> None:
    """Nobody can know at the first call of a step that the second will not come: that step is evaluated as guided."""
    specimen = ZOO["Lumina2Pipeline:truncated"]
    parallel = simulate(specimen)
    assert torch.equal(run(specimen, parallel, steps=6), run(specimen, specimen.build(), steps=6))
    assert guided_steps(parallel) == [True] * 4 + [False] * 2
    assert extra_evaluations(parallel) == [0] * 6
    assert torch.equal(run(specimen, parallel, steps=6), run(specimen, specimen.build(), steps=6))


def end_guidance(pipe: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
    if step == 2:
        pipe._guidance_scale = 1.0
    return tensors


def test_guidance_that_a_callback_ends_midway() -> None:
    specimen = ZOO["WanPipeline"]
    parallel, pipe = simulate(specimen), specimen.build()
    result = run(specimen, parallel, steps=6, callback_on_step_end=end_guidance)
    assert relative_difference(result, run(specimen, pipe, steps=6)) > 1e-3
    assert extra_evaluations(parallel) == [0] * 6
    assert torch.equal(result, run(specimen, pipe, steps=6, callback_on_step_end=end_guidance))
    assert guided_steps(parallel) == [True] * 4 + [False] * 2
    assert torch.equal(run(specimen, parallel, steps=6), run(specimen, pipe, steps=6))


def replace_text(pipe: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
    return tensors | {"prompt_embeds": tensors["prompt_embeds"].flip(-1)} if step == 1 else tensors


def replace_negative_text(pipe: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
    texts = tensors["negative_prompt_embeds"]
    return tensors | {"negative_prompt_embeds": texts.flip(-1)} if step == 1 else tensors


@pytest.mark.parametrize(
    ("name", "callback", "asked", "extra"),
    [
        ("FluxPipeline", replace_text, "prompt_embeds", [0] * 5),
        ("WanPipeline", replace_text, "prompt_embeds", [0] * 5),
        ("WanPipeline", replace_negative_text, "negative_prompt_embeds", [0, 0, 1, 0, 0]),
    ],
)
def test_a_callback_may_replace_a_text_midway(name: str, callback: Any, asked: str, extra: list[int]) -> None:
    """The one of the first call is seen; the one of a later call costs a further evaluation, and is foreseen then."""
    specimen = ZOO[name]
    parallel = simulate(specimen)
    changes: dict[str, Any] = {
        "callback_on_step_end": callback,
        "callback_on_step_end_tensor_inputs": ["latents", asked],
    }
    result = run(specimen, parallel, steps=5, **changes)
    assert torch.equal(result, run(specimen, specimen.build(), steps=5, **changes))
    assert relative_difference(result, run(specimen, specimen.build(), steps=5)) > 1e-3
    assert extra_evaluations(parallel) == extra


@pytest.mark.parametrize("devices", [2, 4])
@pytest.mark.parametrize("strategy", ["cfg", "hybrid"])
def test_guidance_on_and_off_and_on_again(strategy: str, devices: int) -> None:
    specimen = ZOO["PixArtAlphaPipeline"]
    parallel = simulate(specimen, strategy, devices, **EXACT[strategy])
    for scale in (5.0, 1.0, 5.0, 3.0):
        stock = run(specimen, specimen.build(), guidance_scale=scale)
        assert relative_difference(run(specimen, parallel, guidance_scale=scale), stock) < ROUNDING
        assert guided_steps(parallel) == [scale > 1] * 4


def test_a_layout_is_remembered_for_calls_of_the_same_numbers() -> None:
    """What is found out costs a whole evaluation and one of each branch; what is remembered one of each branch."""
    specimen = ZOO["PixArtAlphaPipeline"]
    parallel = simulate(specimen)
    found, remembered, unguided = [2, *[1, 1] * 4], [1, 1] * 4, [1] * 4
    for scale, expected in ((5.0, found), (5.0, remembered), (1.0, unguided), (5.0, remembered), (3.0, found)):
        assert evaluated_rows(specimen, parallel, guidance_scale=scale) == expected


@pytest.mark.parametrize("strategy", ["cfg", "hybrid"])
def test_guidance_that_a_negative_prompt_brings(strategy: str) -> None:
    """The numbers of both calls are the same: that there was one branch is not remembered."""
    specimen = ZOO["FluxPipeline"]
    parallel = simulate(specimen, strategy, **EXACT[strategy])
    for is_guided in (False, True, False):
        changes: dict[str, Any] = {} if is_guided else {"negative_prompt": None}
        assert torch.equal(run(specimen, parallel, **changes), run(specimen, specimen.build(), **changes))
        assert guided_steps(parallel) == [is_guided] * 4
        assert extra_evaluations(parallel) == [0] * 4


def test_more_images_are_another_layout() -> None:
    specimen = ZOO["PixArtAlphaPipeline"]
    parallel = simulate(specimen)
    for changes in ({}, {"num_images_per_prompt": 2, "guidance_scale": 1.0}, {"num_images_per_prompt": 2}, {}):
        stock = run(specimen, specimen.build(), **changes)
        assert relative_difference(run(specimen, parallel, **changes), stock) < ROUNDING


@pytest.mark.parametrize("scale", [5.0, 1.0])
def test_calls_of_their_own_go_on_and_off_between_calls_of_the_pipeline(scale: float) -> None:
    specimen = ZOO["WanPipeline"]
    parallel = simulate(specimen)
    for now in (scale, 6.0 - scale, scale):
        stock = run(specimen, specimen.build(), guidance_scale=now)
        assert torch.equal(run(specimen, parallel, guidance_scale=now), stock)
        assert guided_steps(parallel) == [now > 1] * 4


@pytest.mark.parametrize("name", ["FluxPipeline", "PixArtAlphaPipeline"])
def test_a_first_step_without_numbers_is_an_error_with_rank_and_step(name: str) -> None:
    specimen = ZOO[name]
    parallel = simulate(specimen)
    spoiled = parallel.pipe.transformer.proj_out.register_forward_hook(lambda *given: given[-1] * float("nan"))
    with pytest.raises(RankError, match="rank 0 predicted NaN or infinity in warm-up, step 0"):
        run(specimen, parallel)
    spoiled.remove()
    assert relative_difference(run(specimen, parallel), run(specimen, specimen.build())) < ROUNDING


@pytest.mark.parametrize("last", [0, 1])
@pytest.mark.parametrize("name", ["FluxPipeline", "SanaPipeline"])
def test_an_interrupt_takes_effect_after_two_further_steps(name: str, last: int) -> None:
    specimen = ZOO[name]
    parallel = simulate(specimen)
    run(specimen, parallel, steps=8, callback_on_step_end=interrupt_after(last))
    assert len(report_of(parallel).steps) == last + 3
    assert relative_difference(run(specimen, parallel), run(specimen, specimen.build())) < ROUNDING


@pytest.mark.parametrize("name", ["FluxPipeline", "PixArtAlphaPipeline"])
@pytest.mark.parametrize("images", [2, 3])
def test_images_of_a_branch_are_shared_by_its_ranks(name: str, images: int) -> None:
    specimen = ZOO[name]
    parallel = simulate(specimen, devices=4)
    stock = run(specimen, specimen.build(), num_images_per_prompt=images)
    assert relative_difference(run(specimen, parallel, num_images_per_prompt=images), stock) < ROUNDING
    partition = report_of(parallel).partition
    assert partition is not None
    assert (partition.rows, partition.largest) == (2 * images, 1 if images == 2 else 2)


def centre(module: torch.nn.Module, given: Any, output: torch.Tensor) -> torch.Tensor:
    return output - 0.5 * output.mean(0)


@pytest.mark.parametrize("name", ["FluxPipeline", "PixArtAlphaPipeline"])
def test_images_that_depend_on_each_other_are_evaluated_together(name: str) -> None:
    specimen = ZOO[name]
    parallel, pipe = simulate(specimen, devices=4), specimen.build()
    for network in (parallel.pipe.transformer, pipe.transformer):
        network.proj_out.register_forward_hook(centre)
    stock = run(specimen, pipe, num_images_per_prompt=2)
    for _ in range(2):  # and as remembered
        assert torch.equal(run(specimen, parallel, num_images_per_prompt=2), stock)
        partition = report_of(parallel).partition
        assert partition is not None
        assert partition.is_whole
        assert "depend on each other" in " ".join(report_of(parallel).notes)


def test_the_form_of_the_output_and_callbacks_do_not_decide_what_is_remembered() -> None:
    """On another rank they may differ, and there the layout is remembered all the same."""
    specimen = ZOO["PixArtAlphaPipeline"]
    parallel = simulate(specimen)
    run(specimen, parallel)
    for changes in ({"return_dict": True}, {"callback": print, "callback_steps": 2}):
        run(specimen, parallel, **changes)
    assert len(parallel._layouts) == 1
