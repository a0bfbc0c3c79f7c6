"""Arguments that cannot work are refused by their own names, before anything runs."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from hybridiff import ParallelConfig, UsageError, parallelize
from hybridiff.arguments import SizeLimits, check_arguments
from support.oracles import generated_one_part_after_another
from support.pipelines import build, call_arguments, generate

REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"guidance_scale": math.nan}, "guidance_scale must be a finite number, got nan"),
    ({"guidance_scale": math.inf}, "guidance_scale must be a finite number, got inf"),
    ({"guidance_scale": -math.inf}, "guidance_scale must be a finite number, got -inf"),
    ({"guidance_scale": -1.0}, "guidance_scale must be at least 0, got -1"),
    ({"guidance_scale": 1e9}, r"guidance_scale must be at most 1000000, got 1e\+09"),
    ({"guidance_scale": np.float32("nan")}, "guidance_scale must be a finite number, got nan"),
    ({"height": 10_000_000}, "height must be at most .* pixels for StableDiffusion.*, got 10000000"),
    ({"width": 10_000_000}, "width must be at most .* pixels for StableDiffusion.*, got 10000000"),
    ({"height": 0}, "height must be a positive integer for .*got 0"),
    ({"width": -32}, "width must be a positive integer for .*got -32"),
    ({"height": 32.0}, r"height must be a positive integer for .*got 32\.0"),
    ({"width": math.nan}, "width must be a finite number, got nan"),
    ({"num_inference_steps": 0}, "num_inference_steps must be an integer from 1 to 10000, got 0"),
    ({"num_inference_steps": -1}, "num_inference_steps must be an integer from 1 to 10000, got -1"),
    ({"num_inference_steps": 1.5}, r"num_inference_steps must be an integer from 1 to 10000, got 1\.5"),
    ({"num_inference_steps": math.nan}, "num_inference_steps must be a finite number, got nan"),
    ({"num_inference_steps": 10**9}, "num_inference_steps must be an integer from 1 to 10000, got 1000000000"),
    ({"num_inference_steps": True}, "num_inference_steps must be an integer from 1 to 10000, got True"),
    ({"num_inference_steps": "4"}, "num_inference_steps must be an integer from 1 to 10000, got '4'"),
    ({"num_images_per_prompt": 0}, "num_images_per_prompt must be an integer from 1 to 1024, got 0"),
    ({"num_images_per_prompt": 2.0}, r"num_images_per_prompt must be an integer from 1 to 1024, got 2\.0"),
    ({"sigmas": [1.0, math.nan, 0.1]}, r"sigmas must be a finite number, got \[1\.0, nan, 0\.1\]"),
    ({"sigmas": (math.inf, 0.1)}, r"sigmas must be a finite number, got \(inf, 0\.1\)"),
    ({"sigmas": np.array([1.0, math.nan])}, r"sigmas must be a finite number, got .*nan\]"),
    ({"clip_skip": -1}, "clip_skip must be at least 0, got -1"),
]


@pytest.mark.parametrize("name", ["sdxl two levels", "sd3"])
@pytest.mark.parametrize(("changes", "sentence"), REFUSED, ids=lambda value: str(value) if type(value) is dict else "")
def test_what_cannot_work_is_refused_before_anything_runs(name: str, changes: dict[str, Any], sentence: str) -> None:
    pipe = build(name)
    for module in (value for value in pipe.components.values() if isinstance(value, torch.nn.Module)):
        module.register_forward_pre_hook(lambda *_: pytest.fail("a network ran"))
    parallel = parallelize(pipe, ParallelConfig(simulate=True))
    with pytest.raises(UsageError, match=f"^{sentence}$"):
        generate(parallel, name, **changes)
    assert parallel.report is None


@pytest.mark.parametrize(
    ("name", "changes"), [("sdxl two levels", {"guidance_rescale": math.nan}), ("sd3", {"max_sequence_length": -1})]
)
def test_arguments_of_one_family(name: str, changes: dict[str, Any]) -> None:
    with (
        parallelize(build(name), ParallelConfig(simulate=True)) as parallel,
        pytest.raises(UsageError, match=next(iter(changes))),
    ):
        generate(parallel, name, **changes)


def test_the_largest_image_is_that_of_the_networks_positions() -> None:
    with parallelize(build("sd3"), ParallelConfig(simulate=True)) as parallel:
        assert generate(parallel, "sd3", height=96, width=32, num_inference_steps=1).shape[-2:] == (48, 16)
        with pytest.raises(UsageError, match="height must be at most 96 pixels for StableDiffusion3Pipeline, got 112"):
            generate(parallel, "sd3", height=112)


def test_a_positional_argument_is_named_too() -> None:
    arguments = call_arguments("sdxl two levels")
    for name in ("prompt", "height", "width"):
        arguments.pop(name)
    with (
        parallelize(build("sdxl two levels"), ParallelConfig(simulate=True)) as parallel,
        pytest.raises(UsageError, match="height must be a positive"),
    ):
        parallel("a red ring", None, -8, **arguments)


def test_an_error_leaves_the_pipeline_in_order() -> None:
    parallel = parallelize(build("sd3"), ParallelConfig(simulate=True))
    for changes, _ in REFUSED:
        with pytest.raises(UsageError):
            generate(parallel, "sd3", **changes)
    assert torch.equal(generate(parallel, "sd3"), generated_one_part_after_another("sd3"))


@pytest.mark.parametrize(
    "changes",
    [
        {"guidance_scale": 0},
        {"guidance_scale": 5},
        {"guidance_scale": np.float32(5.0)},
        {"num_inference_steps": np.int64(4)},
        {"height": np.int64(32), "width": np.int32(32)},
        {"height": None, "width": None},
    ],
    ids=str,
)
def test_what_the_stock_pipeline_takes_is_taken(changes: dict[str, Any]) -> None:
    with parallelize(build("sd3"), ParallelConfig(simulate=True)) as parallel:
        assert torch.equal(generate(parallel, "sd3", **changes), generated_one_part_after_another("sd3", **changes))


def test_sizes_by_their_limits() -> None:
    sizes = SizeLimits(multiple=16, largest=64, model="a model")
    check_arguments({"height": 64, "width": 16, "prompt": "a ring", "latents": None}, sizes)
    with pytest.raises(UsageError, match=r"^height must be a positive multiple of 16 for a model, got 24$"):
        check_arguments({"height": 24}, sizes)
    with pytest.raises(UsageError, match=r"^width must be at most 64 pixels for a model, got 80$"):
        check_arguments({"width": 80}, sizes)
    check_arguments({}, SizeLimits())
