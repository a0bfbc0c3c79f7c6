"""What `hybridiff inspect` says of pipelines of every guidance layout."""

from __future__ import annotations

from typing import Any

import pytest

from hybridiff.errors import UsageError
from hybridiff.evaluation.inspection.sharing import format_sharing, inspect_sharing
from zoo import ZOO

NUMBERS = ("height", "width", "num_frames", "max_sequence_length", "true_cfg_scale", "guidance_scale")


@pytest.fixture(autouse=True)
def _small_images(monkeypatch: pytest.MonkeyPatch) -> None:
    """The networks of the zoo see every pixel: 256 of them a side take a minute."""
    monkeypatch.setattr("hybridiff.evaluation.inspection.sharing.PIXELS", 32)


def said_of(name: str, **changes: Any) -> str:
    specimen = ZOO[name]
    call = {key: value for key, value in specimen.call().items() if key in NUMBERS} | changes
    return format_sharing(inspect_sharing(specimen.build(), **call))


@pytest.mark.parametrize(
    ("name", "guidance", "layers", "shared"),
    [
        ("StableDiffusion3Pipeline", "one call of all branches: unconditional, then conditional", "known", "1 of 2"),
        ("WanPipeline", "2 calls, one a branch, replayed: conditional (times 5), then unconditional", "not", "1 of 2"),
        ("LTXPipeline", "one call of all branches: unconditional (times -4), then conditional", "not", "1 of 2"),
        ("StableDiffusionInstructPix2PixPipeline", "then a branch between (times -0.5)", "found out", "2 of 3"),
    ],
)
def test_layout_layers_and_shares(name: str, guidance: str, layers: str, shared: str) -> None:
    lines = said_of(name).splitlines()
    assert lines[0].startswith(f"{name}: ")
    assert guidance in lines[1]
    assert layers in lines[2]
    assert lines[3].startswith(f"cfg on 2 ranks: {shared} evaluations of a branch on the busiest rank, 1 saved a step")
    assert "cached ones" in lines[4]


def test_without_guidance_there_is_one_branch() -> None:
    text = said_of("FluxPipeline", true_cfg_scale=1.0)
    assert "guidance: one branch: distilled into the network, or off" in text
    assert "nothing is shared" in text


def test_what_is_not_shared_is_said_with_its_reason() -> None:
    text = said_of("StableDiffusionSAGPipeline")
    assert "cannot be shared" in text
    assert "note: StableDiffusionSAGPipeline: it reads the attention of its network" in text


def test_a_pipeline_that_wants_more_says_what() -> None:
    with pytest.raises(UsageError, match=r"WanPipeline cannot be run with a short prompt and gray images: .*--arg"):
        inspect_sharing(ZOO["WanPipeline"].build(), height=33)
