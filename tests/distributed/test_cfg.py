"""Contract 1: `cfg` on several ranks generates, bit by bit, what one process does with one branch after the other."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from hybridiff import ParallelConfig, parallelize
from hybridiff.distributed.process import ProcessComm
from support.jobs import Generated, generate_parallel, on_ranks, rank
from support.oracles import generated_one_part_after_another, relative_difference
from support.pipelines import PIPELINES, TEXT_WIDTH, build, call_arguments, generate
from support.ranks import run_ranks

pytestmark = pytest.mark.distributed

TWO_PROMPTS = {"prompt": ["a red ring", "two blue cubes"], "negative_prompt": ["blurred", "dark"]}


def generate_on_ranks(name: str, ranks: int = 2, changes: dict[str, Any] | None = None, **config: Any) -> Generated:
    """What all ranks generate, which must be the same on each."""
    generated = [runs[-1] for runs in run_ranks(on_ranks, ranks, name, changes or {}, config)]
    assert all(torch.equal(other.latents, generated[0].latents) for other in generated)
    return generated[0]


def simulated(name: str, ranks: int = 2, changes: dict[str, Any] | None = None, **config: Any) -> Generated:
    return generate_parallel(name, changes or {}, simulate=True, devices=ranks, **config)[-1]


@pytest.mark.parametrize("name", PIPELINES)
def test_two_ranks_equal_one_branch_after_the_other(name: str) -> None:
    latents = generate_on_ranks(name).latents
    assert torch.equal(latents, generated_one_part_after_another(name))
    assert torch.equal(latents, simulated(name).latents)
    assert relative_difference(latents, generate(build(name), name)) < 1e-4


@pytest.mark.parametrize("name", ["sdxl two levels", "sd3.5"])
@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({"num_images_per_prompt": 2}, id="two images"),
        pytest.param(TWO_PROMPTS, id="two prompts"),
        pytest.param(TWO_PROMPTS | {"num_images_per_prompt": 2}, id="two prompts, two images each"),
        pytest.param({"num_images_per_prompt": 3}, id="three images"),
    ],
)
def test_batches_equal_one_branch_after_the_other(name: str, changes: dict[str, Any]) -> None:
    latents = generate_on_ranks(name, changes=changes).latents
    assert torch.equal(latents, generated_one_part_after_another(name, **changes))
    assert relative_difference(latents, generate(build(name), name, **changes)) < 1e-4


FOUR_ROWS = {"rows": 4, "largest": 1, "largest_extra": None, "branches": 2, "shards": 1}


@pytest.mark.parametrize("name", ["sdxl two levels", "sd3"])
def test_four_ranks_split_the_images_of_each_branch(name: str) -> None:
    changes = {"num_images_per_prompt": 2}
    generated = generate_on_ranks(name, 4, changes)
    assert torch.equal(generated.latents, generated_one_part_after_another(name, parts=4, **changes))
    assert relative_difference(generated.latents, generate(build(name), name, **changes)) < 1e-4
    assert (generated.report["partition"], generated.report["ideal_speedup"]) == (FOUR_ROWS, 4.0)


def test_three_ranks_share_the_rows_of_two_branches() -> None:
    name, changes = "sdxl two levels", {"num_images_per_prompt": 3}
    generated = generate_on_ranks(name, 3, changes)
    assert torch.equal(generated.latents, generated_one_part_after_another(name, parts=3, **changes))
    assert torch.equal(generated.latents, simulated(name, 3, changes).latents)
    assert (generated.report["partition"]["largest"], generated.report["ideal_speedup"]) == (2, 3.0)
    assert generated.report["notes"] == []


@pytest.mark.parametrize(("ranks", "images"), [(3, 1), (4, 1), (4, 3)])
def test_an_uneven_partition(ranks: int, images: int) -> None:
    changes = {"num_images_per_prompt": images}
    generated = generate_on_ranks("sdxl two levels", ranks, changes)
    latents = generated.latents
    assert torch.equal(latents, simulated("sdxl two levels", ranks, changes).latents)
    idle = [note for note in generated.report["notes"] if f"{ranks - 2} of {ranks} ranks have nothing to do" in note]
    assert bool(idle) == (images == 1)
    assert relative_difference(latents, generate(build("sdxl two levels"), "sdxl two levels", **changes)) < 1e-4


@pytest.mark.parametrize(
    ("scheduler", "steps"),
    [("ddim", 4), ("euler", 7), ("euler-ancestral", 5), ("dpmsolver++", 9), ("unipc", 8), ("heun", 6)],
)
def test_schedulers(scheduler: str, steps: int) -> None:
    name, changes = "sdxl two levels", {"num_inference_steps": steps}
    generated = generate_on_ranks(name, changes=changes, scheduler=scheduler)
    assert torch.equal(generated.latents, generated_one_part_after_another(name, scheduler=scheduler, **changes))
    assert len(generated.report["steps"]) == (2 * steps - 1 if scheduler == "heun" else steps)


@pytest.mark.parametrize("name", ["sdxl two levels", "sd3"])
def test_a_hundred_steps(name: str) -> None:
    changes = {"num_inference_steps": 100}
    assert torch.equal(
        generate_on_ranks(name, changes=changes).latents, generated_one_part_after_another(name, **changes)
    )


def test_guidance_rescale() -> None:
    changes = {"guidance_rescale": 0.7}
    name = "sdxl two levels"
    latents = generate_on_ranks(name, changes=changes).latents
    assert torch.equal(latents, generated_one_part_after_another(name, **changes))
    assert not torch.equal(latents, generated_one_part_after_another(name))


def test_skip_layer_guidance() -> None:
    changes = {"skip_guidance_layers": [1], "skip_layer_guidance_start": 0.0, "skip_layer_guidance_stop": 0.9}
    latents = generate_on_ranks("sd3", changes=changes).latents
    assert torch.equal(latents, generated_one_part_after_another("sd3", **changes))
    assert not torch.equal(latents, generated_one_part_after_another("sd3"))


def test_prompt_embeddings_in_the_place_of_prompts() -> None:
    random = torch.Generator().manual_seed(1)
    texts = {"prompt_embeds": 2, "negative_prompt_embeds": 2}
    changes = {name: torch.randn(1, 7, size * TEXT_WIDTH, generator=random) for name, size in texts.items()}
    changes |= {
        f"{sign}pooled_prompt_embeds": torch.randn(1, TEXT_WIDTH, generator=random) for sign in ("", "negative_")
    }
    changes |= {"prompt": None, "negative_prompt": None}
    assert torch.equal(
        generate_on_ranks("sdxl", changes=changes).latents, generated_one_part_after_another("sdxl", **changes)
    )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ["sdxl two levels", "sd3"])
def test_half_precision(name: str, dtype: torch.dtype) -> None:
    generated = generate_on_ranks(name, dtype=dtype)
    assert generated.latents.dtype == dtype
    assert torch.equal(generated.latents, simulated(name, dtype=dtype).latents)
    with_branches = build(name).to(dtype)
    assert relative_difference(generated.latents.float(), generate(with_branches, name).float()) < 0.1


@pytest.mark.parametrize("name", ["sdxl", "sd3.5"])
def test_a_second_run_equals_the_first(name: str) -> None:
    first, second = (generated.latents for generated in run_ranks(on_ranks, 2, name, {}, {"runs": 2})[0])
    assert torch.equal(first, second)


@pytest.mark.parametrize("name", ["sdxl", "sdxl two levels", "sd15", "sd3", "sd3.5"])
def test_swapped_branches_would_be_noticed(name: str) -> None:
    """Random weights can ignore the text, and then any comparison above would pass: here they do not."""
    changes = {"prompt": "blurred", "negative_prompt": "a red ring"}
    swapped = generated_one_part_after_another(name, **changes)
    assert relative_difference(swapped, generated_one_part_after_another(name)) > 0.05
    assert not torch.equal(swapped, generate_on_ranks(name).latents)


@pytest.mark.parametrize("name", ["sdxl", "sd3"])
def test_the_leader_alone_returns_images(name: str) -> None:
    leader, other = run_ranks(returned_images, 2, name, {"output_type": "pil"}, {})
    assert leader == [["Image"], ["Image"]]
    assert other == [None, None]


def test_every_rank_returns_images_when_asked() -> None:
    results = run_ranks(returned_images, 2, "sdxl two levels", {"output_type": "pil"}, {"outputs": "all"})
    assert results == [[["Image"], ["Image"]]] * 2


def test_outputs_of_more_than_one_part_keep_their_form() -> None:
    leader, other = run_ranks(returned_images, 2, "sd15", {"output_type": "pil"}, {})
    assert leader == [["Image"], ["Image"]]
    assert other == [None, None]


def returned_images(name: str, changes: dict[str, Any], config: dict[str, Any]) -> list[Any]:
    """Types of the images, from an output object and from a tuple."""
    parallel = parallelize(build(name), ParallelConfig(**config))
    images = parallel(**call_arguments(name, **changes)).images
    output = parallel(**call_arguments(name, **changes, return_dict=False))
    assert isinstance(output, tuple)
    return [None if these is None else [type(image).__name__ for image in these] for these in (images, output[0])]


def test_ranks_without_a_generator_generate_the_same() -> None:
    first, second = run_ranks(generate_with_own_global_seed, 2)
    assert torch.equal(first, second)


def generate_with_own_global_seed() -> torch.Tensor:
    torch.manual_seed(rank())
    return generate_parallel("sdxl two levels", {"generator": None}, scheduler="euler-ancestral")[0].latents


def test_ranks_share_the_noise_of_schedulers_that_are_given_no_generator() -> None:
    """As SD3's pipeline does it, whatever generator the call brings."""
    first, second = run_ranks(generate_with_noise_from_elsewhere, 2)
    assert torch.equal(first, second)


def generate_with_noise_from_elsewhere() -> torch.Tensor:
    pipe = build("sd3")
    pipe.scheduler.register_to_config(stochastic_sampling=True)
    torch.manual_seed(rank())
    with parallelize(pipe, ParallelConfig("cfg", outputs="all")) as parallel:
        latents: torch.Tensor = generate(parallel, "sd3")
    return latents


@pytest.mark.parametrize(
    ("changes", "config"),
    [
        pytest.param({}, {}, id="cfg"),
        pytest.param({"num_images_per_prompt": 2}, {}, id="cfg, two images"),
        pytest.param({"guidance_scale": 1.0}, {}, id="cfg without guidance"),
        pytest.param({}, {"strategy": "serial"}, id="serial"),
    ],
)
def test_one_message_a_step_in_the_same_order_on_both_ranks(changes: dict[str, Any], config: dict[str, Any]) -> None:
    first, second = run_ranks(record_messages, 2, changes, config)
    assert first == second
    assert first.count("step") == 4
    in_the_loop = first[first.index("gather") : -2]
    assert in_the_loop == ["gather", "step"] * 4
    assert first[-2:] == ["gather", "objects"]  # all ranks have come to the end, and say how much memory they had
    assert set(first[: first.index("gather")]) == {"objects"}


def record_messages(changes: dict[str, Any], config: dict[str, Any]) -> list[str]:
    log: list[str] = []

    class RecordingComm(ProcessComm):
        def all_gather(self, *args: Any) -> None:
            log.append("gather")
            super().all_gather(*args)

        def all_gather_object(self, thing: Any) -> list[Any]:
            log.append("objects")
            return super().all_gather_object(thing)

        def sendrecv(self, *args: Any) -> None:
            log.append("sendrecv")
            super().sendrecv(*args)

        def broadcast(self, *args: Any) -> None:
            log.append("broadcast")
            super().broadcast(*args)

    def note_step(pipe: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        log.append("step")
        return tensors

    parallel = parallelize(build("sd3"), ParallelConfig(outputs="all", **config), comm=RecordingComm(60.0))
    generate(parallel, "sd3", callback_on_step_end=note_step, **changes)
    return log


def test_serial_on_two_ranks_is_the_stock_pipeline_on_both() -> None:
    latents = generate_on_ranks("sd3", strategy="serial").latents
    assert torch.equal(latents, generate(build("sd3"), "sd3"))
