"""Bench models: the structure of well-known networks, made alike on every rank."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from hybridiff import UsageError
from hybridiff.evaluation.timing.comparison import unguided
from hybridiff.evaluation.workload import recommended
from hybridiff.models.bench import BENCH, TRAINED, BenchFolder
from hybridiff.models.loading import find_model, load_pipeline
from hybridiff.models.tiny import EMBEDDED

PARAMETERS = {
    "bench-sdxl-full": 2_567_463_684,
    "bench-sd3-full": 2_243_171_520,
    "bench-qwen-image-full": 20_430_401_088,
}
"""Of the published networks; SD3.5-medium's table of positions, 226 million numbers, is no parameter."""
LIKE = {"bench-sdxl": "bench-sdxl-full", "bench-sd3": "bench-sd3-full"}


def denoiser_of(name: str) -> torch.nn.Module:
    """The network of a model without its weights."""
    folder = find_model(name)
    assert isinstance(folder, BenchFolder)
    with torch.device("meta"):
        network: Any = folder._make(folder.denoiser, *folder.index[folder.denoiser])
    return network


@pytest.mark.parametrize("name", list(PARAMETERS))
def test_full_shapes_have_as_many_parameters_as_the_published_networks(name: str) -> None:
    assert sum(weight.numel() for weight in denoiser_of(name).parameters()) == PARAMETERS[name]


def test_narrow_unets_have_the_blocks_of_the_full_one() -> None:
    narrow, full = (
        [(path, type(module)) for path, module in denoiser_of(name).named_modules()]
        for name in ("bench-sdxl", "bench-sdxl-full")
    )
    assert narrow == full


def test_the_narrow_transformer_has_as_many_blocks_as_the_full_one() -> None:
    narrow, full = (denoiser_of(name).transformer_blocks for name in ("bench-sd3", "bench-sd3-full"))
    assert len(narrow) == len(full) == 24  # type: ignore[arg-type]


@pytest.mark.parametrize("name", list(LIKE))
def test_weights_are_the_same_whenever_they_are_made_and_leave_the_generator_alone(name: str) -> None:
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    one = find_model(name).read_networks(torch.float32)
    assert torch.equal(torch.rand(1), expected)
    other = find_model(name).read_networks(torch.float32)
    for part in ("unet", "transformer", "vae", "text_encoder", "text_encoder_2"):
        if part in one:
            ours, theirs = one[part].state_dict(), other[part].state_dict()
            assert ours.keys() == theirs.keys()
            assert all(torch.equal(ours[key], theirs[key]) for key in ours)


@pytest.mark.parametrize("name", list(LIKE))
def test_stock_pipelines_generate_with_them(name: str) -> None:
    pipe = load_pipeline(name)
    pipe.set_progress_bar_config(disable=True)
    call = recommended(name) | {"height": 64, "width": 64, "num_inference_steps": 2, "output_type": "np"}
    image = pipe("a red ring", generator=torch.Generator().manual_seed(0), **call).images[0]
    assert image.shape == (64, 64, 3)
    assert 0.05 < image.std() < 0.5
    assert pipe.tokenizer.model_max_length == 77


@pytest.mark.parametrize("name", list(PARAMETERS))
def test_full_shapes_are_refused_on_a_cpu(name: str) -> None:
    with pytest.raises(UsageError, match=rf"^{name} is for a GPU; on a CPU use bench-sdxl or bench-sd3$"):
        load_pipeline(name, "cpu")


def test_every_bench_model_has_a_trained_one_for_its_schedules_and_a_call_with_guidance() -> None:
    assert {TRAINED[name] for name in BENCH} <= set(EMBEDDED)
    assert all(recommended(name) for name in BENCH)


def narrowed(name: str, folder: Path, **changes: dict[str, Any]) -> BenchFolder:
    """A full model with other numbers in some of its configurations, by component, so that a core can run it."""
    full = find_model(name)
    shutil.copytree(full.path, folder / "narrow")
    for part, numbers in changes.items():
        path = folder / "narrow" / part / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | numbers))
    return BenchFolder("narrow", folder / "narrow")


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        (
            "bench-qwen-image-full",
            {
                "transformer": {"num_layers": 1, "num_attention_heads": 1, "joint_attention_dim": 28},
                "text_encoder": {"hidden_size": 28, "intermediate_size": 28},
                "vae": {"base_dim": 8},
            },
        ),
        (
            "bench-sd3-full",
            {
                "transformer": {"num_layers": 14, "num_attention_heads": 2, "caption_projection_dim": 128},
                "vae": {"block_out_channels": [32] * 4},
            },
        ),
    ],
)
def test_full_pipelines_run_in_bfloat16_once_they_are_narrow(
    name: str, changes: dict[str, Any], tmp_path: Path
) -> None:
    pipe = load_pipeline(narrowed(name, tmp_path, **changes), dtype="bfloat16")
    pipe.set_progress_bar_config(disable=True)
    denoiser = pipe.transformer
    assert denoiser.dtype == torch.bfloat16
    calls: list[int] = []
    denoiser.register_forward_hook(lambda module, args, output: calls.append(len(output[0])))
    call = recommended(name) | {"height": 64, "width": 64, "num_inference_steps": 2, "output_type": "np"}
    branches = {}
    for kind, arguments in (("guided", call), ("unguided", unguided(call))):
        calls.clear()
        assert pipe("a red ring", **arguments).images[0].shape == (64, 64, 3)
        branches[kind] = sum(calls) / 2
    assert branches == {"guided": 2, "unguided": 1}
