"""What is known of each family: which network a pipeline has, how large its images may be, when it is called twice."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from hybridiff.denoiser.adapters import ADAPTERS, find_denoiser
from hybridiff.denoiser.adapters.sd3 import SD3Adapter
from hybridiff.denoiser.adapters.unet import UNetAdapter
from hybridiff.errors import UsageError
from support.pipelines import build, denoiser_of

UNET, SD3 = UNetAdapter(), SD3Adapter()


@pytest.mark.parametrize(
    ("name", "adapter"), [("sdxl two levels", UNetAdapter), ("sd15", UNetAdapter), ("sd3", SD3Adapter)]
)
def test_finding_the_denoiser(name: str, adapter: type) -> None:
    pipe = build(name)
    found, network = find_denoiser(pipe)
    assert found in ADAPTERS
    assert isinstance(found, adapter)
    assert network is denoiser_of(pipe)


def test_finding_a_compiled_denoiser() -> None:
    pipe = build("sdxl two levels")
    unet = pipe.unet
    pipe.unet = torch.compile(unet)  # wraps; compiles at the first call only
    assert find_denoiser(pipe)[1] is unet


def test_a_pipeline_without_a_denoiser() -> None:
    with pytest.raises(UsageError, match="str has no denoiser: neither a unet nor a transformer"):
        find_denoiser("pipeline")


def test_a_denoiser_of_an_unknown_family() -> None:
    """Its calls can be shared all the same; only what needs its layers says that it does not know them."""
    pipe = build("sdxl two levels")
    pipe.unet = pipe.vae
    adapter, network = find_denoiser(pipe)
    assert network is pipe.vae
    with pytest.raises(UsageError, match=r"the layers of AutoencoderKL are not known, so it cannot be split; use"):
        adapter.layers(network)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({}, []),
        ({"skip_guidance_layers": None}, []),
        ({"skip_guidance_layers": [1]}, [1, 2]),  # the pipeline's own defaults: from 1 % to 20 % of the steps
        (
            {"skip_guidance_layers": [1], "skip_layer_guidance_start": 0.25, "skip_layer_guidance_stop": 0.7},
            [4, 5, 6, 7, 8],
        ),
        ({"skip_guidance_layers": [1], "skip_layer_guidance_start": 0.0, "skip_layer_guidance_stop": 0.25}, [1, 2]),
    ],
)
def test_steps_of_skip_layer_guidance(arguments: dict[str, Any], expected: list[int]) -> None:
    """Against the steps in which the stock pipeline calls its network a second time."""
    pipe = build("sd3")
    assert sorted(SD3.extra_steps(pipe, arguments, 12)) == expected
    assert second_calls(pipe, arguments, 12) == expected


def second_calls(pipe: Any, arguments: dict[str, Any], steps: int) -> list[int]:
    timesteps: list[float] = []
    pipe.transformer.register_forward_pre_hook(
        lambda _, args, kwargs: timesteps.append(float(kwargs["timestep"][0])), with_kwargs=True
    )
    pipe("a red ring", num_inference_steps=steps, height=32, width=32, max_sequence_length=12, **arguments)
    order = list(dict.fromkeys(timesteps))
    assert len(order) == steps
    return [step for step, timestep in enumerate(order) if timesteps.count(timestep) == 2]


def test_a_u_net_is_called_once_a_step_whatever_the_call() -> None:
    assert UNET.extra_steps(build("sd15"), {"skip_guidance_layers": [1]}, 12) == frozenset()


def test_the_largest_latent() -> None:
    assert UNET.largest_size(build("sd15").unet) is None
    assert SD3.largest_size(build("sd3").transformer) == 24 * 2  # positions, of patches of two by two
