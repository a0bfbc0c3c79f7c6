"""What decoders make of errors: of linear ones that is known."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from hybridiff.denoiser.decoder import USUAL_GAIN, decoder_gain
from support.pipelines import build


class Linear:
    """Decodes by an orthogonal map of channels and a factor."""

    device, dtype = torch.device("cpu"), torch.float32

    def __init__(self, factor: float, channels: int = 4, **config: Any) -> None:
        self.config = SimpleNamespace(latent_channels=channels, scaling_factor=1.0, **config)
        self.factor, self.seen = factor, list[torch.Tensor]()
        self.map = torch.linalg.qr(torch.randn(channels, channels, generator=torch.Generator().manual_seed(3)))[0]

    def decode(self, latents: torch.Tensor, return_dict: bool) -> tuple[torch.Tensor]:
        assert not return_dict
        assert not torch.is_grad_enabled()
        self.seen.append(latents)
        return (self.factor * torch.einsum("oc,bchw->bohw", self.map.to(latents.dtype), latents) + 3.0,)


def pipeline(vae: Any) -> Any:
    return SimpleNamespace(vae=vae)


def error_of(vae: Any, error: float = 0.02) -> float:
    """Root mean square of the difference of what was decoded, per error."""
    first, second = vae.seen
    return float((second - first).square().mean().sqrt()) / error


@pytest.mark.parametrize("factor", [0.02, 0.7, 2.0, 50.0])
@pytest.mark.parametrize("channels", [4, 16])
def test_the_gain_of_a_linear_decoder(factor: float, channels: int) -> None:
    """Images go from -1 to 1 in the decoder, from 0 to 1 for the gain."""
    vae = Linear(factor, channels)
    gain = decoder_gain(pipeline(vae))
    assert gain == pytest.approx(factor / 2 * error_of(vae), rel=1e-4)
    assert gain == pytest.approx(factor / 2, rel=0.1)  # of one draw of the error


@pytest.mark.parametrize("scaling", [0.13025, 0.18215, 1.5305])
@pytest.mark.parametrize("shift", [None, 0.0, 0.0609])
def test_latents_are_scaled_as_pipelines_scale_them(scaling: float, shift: float | None) -> None:
    vae = Linear(1.0, shift_factor=shift)
    vae.config.scaling_factor = scaling
    gain = decoder_gain(pipeline(vae))
    plain = Linear(1.0)
    assert gain == pytest.approx(decoder_gain(pipeline(plain)) / scaling, rel=1e-4)
    torch.testing.assert_close(vae.seen[0], plain.seen[0] / scaling + (shift or 0.0))


def test_the_error_does_not_matter_where_decoders_are_linear() -> None:
    gains = [decoder_gain(pipeline(Linear(0.8)), side, error) for side, error in ((16, 0.02), (16, 0.2))]
    assert gains[0] == pytest.approx(gains[1], rel=1e-3)


@pytest.mark.parametrize(
    "pipe",
    [
        SimpleNamespace(),
        SimpleNamespace(vae=None),
        SimpleNamespace(vae=SimpleNamespace()),
        SimpleNamespace(vae=SimpleNamespace(config=SimpleNamespace())),
    ],
)
def test_without_a_decoder_the_usual_one_is_assumed(pipe: Any) -> None:
    assert decoder_gain(pipe) == USUAL_GAIN


@pytest.mark.parametrize("factor", [float("nan"), float("inf"), 0.0, 1e38])
def test_what_a_broken_decoder_shows_is_not_believed(factor: float) -> None:
    assert decoder_gain(pipeline(Linear(factor))) == USUAL_GAIN


@pytest.mark.parametrize("name", ["sdxl", "sd15", "sd3", "sd3 inpaint"])
def test_a_real_decoder(name: str) -> None:
    pipe = build(name)
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    gains = [decoder_gain(pipe) for _ in range(2)]
    assert gains[0] == gains[1]
    assert torch.equal(torch.random.get_rng_state(), before)
    assert gains[0] not in (0.0, USUAL_GAIN)
    assert decoder_gain(build(name)) == gains[0]
    latent = torch.randn(1, pipe.vae.config.latent_channels, 16, 16, generator=torch.Generator().manual_seed(9))
    error = 0.01 * torch.randn(latent.shape, generator=torch.Generator().manual_seed(10))
    scale, shift = pipe.vae.config.scaling_factor, pipe.vae.config.shift_factor or 0.0
    with torch.no_grad():
        images = [pipe.vae.decode(one / scale + shift).sample / 2 for one in (latent, latent + error)]
    measured = float((images[1] - images[0]).square().mean().sqrt()) / 0.01
    assert gains[0] == pytest.approx(measured, rel=0.3)


def test_decoders_in_half_precision() -> None:
    pipe = build("sd3")
    gain = decoder_gain(pipe)
    pipe.vae.to(torch.bfloat16)
    assert decoder_gain(pipe) == pytest.approx(gain, rel=0.3)
    assert pipe.vae.dtype == torch.bfloat16
