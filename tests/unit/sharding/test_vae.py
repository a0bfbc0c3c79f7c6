"""VAEs whose pictures are decoded and encoded by several ranks together, against the stock networks."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import pytest
import torch
from accelerate.hooks import ModelHook, add_hook_to_module
from diffusers import AsymmetricAutoencoderKL, AutoencoderKL, AutoencoderTiny, VQModel
from diffusers.models.attention_processor import AttnProcessor

from hybridiff.distributed.comm import LocalComm
from hybridiff.sharding import vae as module
from hybridiff.sharding.ranks import RankGroups
from hybridiff.sharding.vae import SharedVae
from support.pipelines import image_vae

LEVELS = 3
SCALE = 2 ** (LEVELS - 1)
ROUNDING = {torch.float32: 4e-6, torch.float64: 1e-14}
"""Of these networks: in float32 the stock decoder is as far from itself in float64."""


@pytest.fixture(autouse=True)
def any_picture_is_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LEAST_PIXELS", 1)


def shared(vae: Any, ranks: int, is_wanted: bool = True, drops: bool = False) -> SharedVae:
    """A VAE that so many ranks of this process share, if they may."""
    comm = LocalComm(ranks)
    together = SharedVae(SimpleNamespace(vae=vae), comm, RankGroups(comm, None), is_wanted, drops)
    together.is_shared = together.is_known()
    return together


def meet(what: str, thing: Any) -> list[Any]:
    """No rank has failed."""
    return [thing]


def never() -> bool:
    """It is not over yet."""
    return False


def seen_by(layer: torch.nn.Module) -> list[int]:
    """The rows of what a layer is given from now on."""
    rows: list[int] = []
    layer.register_forward_pre_hook(lambda _, given: rows.append(given[0].shape[2]))
    return rows


def difference(result: torch.Tensor, expected: torch.Tensor) -> float:
    return float((result - expected).norm() / expected.norm())


def forwards(vae: torch.nn.Module) -> list[str]:
    """Modules that somebody has put something around."""
    return [name for name, one in vae.named_modules() if {"forward", "_diffusers_hook"} & vars(one).keys()]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    ("ranks", "rows", "parts"),
    [(2, 8, [4, 4]), (2, 9, [5, 4]), (3, 17, [6, 6, 5]), (4, 4, [1, 1, 1, 1]), (4, 7, [2, 2, 2, 1])],
)
def test_decoding(ranks: int, rows: int, parts: list[int], dtype: torch.dtype) -> None:
    vae = image_vae(levels=LEVELS).to(dtype)
    latents = torch.randn(2, 4, rows, 6, dtype=dtype, generator=torch.Generator().manual_seed(0))
    expected, seen = vae.decode(latents).sample, seen_by(vae.decoder.conv_in)
    with shared(vae, ranks).together(meet, never):
        pictures = [vae.decode(latents).sample for _ in range(2)]
    assert sorted(seen) == sorted(2 * parts)
    for picture in pictures:
        assert picture.shape == expected.shape
        assert difference(picture, expected) < ROUNDING[dtype]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    ("ranks", "rows", "parts"), [(2, 32, [16, 16]), (2, 20, [12, 8]), (3, 28, [12, 8, 8]), (4, 16, [4, 4, 4, 4])]
)
def test_encoding(ranks: int, rows: int, parts: list[int], dtype: torch.dtype) -> None:
    vae = image_vae(levels=LEVELS).to(dtype)
    pictures = torch.randn(2, 3, rows, 24, dtype=dtype, generator=torch.Generator().manual_seed(0))
    expected, seen = vae.encode(pictures).latent_dist.parameters, seen_by(vae.encoder.conv_in)
    with shared(vae, ranks).together(meet, never):
        found = vae.encode(pictures).latent_dist.parameters
    assert sorted(seen) == sorted(parts)
    assert difference(found, expected) < ROUNDING[dtype]


def test_a_picture_after_another_of_another_size() -> None:
    vae = image_vae(levels=LEVELS)
    latents = [torch.randn(1, 4, rows, 5) for rows in (9, 6, 9)]
    expected = [vae.decode(one).sample for one in latents]
    encoded = [vae.encode(one).latent_dist.mean for one in expected]
    with shared(vae, 2).together(meet, never):
        for one, picture, again in zip(latents, expected, encoded, strict=True):
            assert difference(vae.decode(one).sample, picture) < ROUNDING[torch.float32]
            assert difference(vae.encode(picture).latent_dist.mean, again) < ROUNDING[torch.float32]


@pytest.mark.parametrize(("network", "rows"), [("decoder", 3), ("encoder", 18), ("encoder", 8)])
def test_what_cannot_be_cut_for_all_ranks_is_whole(network: str, rows: int) -> None:
    """Fewer rows than ranks, or a part that would not be halved evenly."""
    one = getattr(image_vae(levels=LEVELS), network)
    picture = torch.randn(1, 4 if network == "decoder" else 3, rows, 8)
    expected, seen = one(picture), seen_by(one.conv_in)
    vae = image_vae(levels=LEVELS)
    setattr(vae, network, one)
    with shared(vae, 4).together(meet, never):
        assert torch.equal(one(picture), expected)
    assert seen == [rows]


def test_small_pictures_are_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """What counts is the picture, not its latents."""
    monkeypatch.setattr(module, "LEAST_PIXELS", 8 * 8 * SCALE**2)
    vae, meet = image_vae(levels=LEVELS), Mock(return_value=[None, None])
    seen = seen_by(vae.decoder.conv_in), seen_by(vae.encoder.conv_in)
    with shared(vae, 2).together(meet, never):
        for rows in (7, 8):
            vae.decode(torch.randn(1, 4, rows, 8))
            vae.encode(torch.randn(1, 3, rows * SCALE, 8 * SCALE))
    assert list(map(sorted, seen)) == [[4, 4, 7], [4 * SCALE, 4 * SCALE, 7 * SCALE]]
    assert meet.call_count == 2, "ranks meet where they share something"


def test_ranks_that_may_not_meet_do_not_share() -> None:
    vae = image_vae(levels=LEVELS)
    latents = torch.randn(1, 4, 8, 8)
    expected, seen = vae.decode(latents).sample, seen_by(vae.decoder.conv_in)
    with shared(vae, 2).together(lambda *_: None, never):
        assert torch.equal(vae.decode(latents).sample, expected)
    assert seen == [8]


def test_what_is_dropped_is_not_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LEAST_PIXELS", 10**9)
    vae, steps = image_vae(levels=LEVELS), [1]
    latents = torch.randn(2, 4, 6, 5)
    expected, seen = vae.decode(latents).sample, seen_by(vae.decoder.conv_in)
    with shared(vae, 2, drops=True).together(meet, lambda: not steps):
        assert torch.equal(vae.decode(latents).sample, expected), "of a callback within steps"
        steps.clear()
        picture = vae.decode(latents).sample
        vae.encode(expected)
    assert seen == [6]
    assert (picture.shape, picture.dtype, picture.any()) == (expected.shape, expected.dtype, False)


def test_nothing_is_left_behind() -> None:
    vae = image_vae(levels=LEVELS)
    latents, one = torch.randn(1, 4, 8, 8), shared(vae, 2)
    expected = vae.decode(latents).sample
    with one.together(meet, never):
        vae.decode(latents)
        assert "decoder.conv_in" in forwards(vae)
    assert forwards(vae) == []
    assert torch.equal(vae.decode(latents).sample, expected)
    assert one.is_known(), "what we left behind would count as somebody else's"
    with pytest.raises(RuntimeError, match="expected input"), one.together(meet, never):
        vae.decode(torch.randn(1, 5, 8, 8))
    assert forwards(vae) == []


def compiled(vae: Any) -> None:
    vae.decoder.mid_block.compile(backend="eager")


def replaced(vae: Any) -> None:
    vae.decode = torch.compile(vae.decode, backend="eager")


def offloaded(vae: Any) -> None:
    add_hook_to_module(vae.decoder.conv_in, ModelHook())


def cast(vae: Any) -> None:
    vae.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=torch.float32)


@pytest.mark.parametrize(
    "change",
    [
        AutoencoderKL.enable_tiling,
        AutoencoderKL.enable_slicing,
        lambda vae: vae.set_attn_processor(AttnProcessor()),
        compiled,
        replaced,
        offloaded,
        cast,
    ],
    ids=["tiling", "slicing", "attention", "compiled", "replaced", "offloaded by layer", "cast by layer"],
)
def test_vaes_that_are_left_to_the_leader(change: Callable[[Any], None]) -> None:
    vae = image_vae(levels=LEVELS)
    assert shared(vae, 2).is_shared
    change(vae)
    assert not shared(vae, 2).is_shared


@pytest.mark.parametrize(
    "build",
    [
        lambda: None,
        lambda: AutoencoderTiny(
            encoder_block_out_channels=(8, 8),
            decoder_block_out_channels=(8, 8),
            num_encoder_blocks=(1, 1),
            num_decoder_blocks=(1, 1),
        ),
        lambda: AsymmetricAutoencoderKL(
            down_block_types=("DownEncoderBlock2D",),
            down_block_out_channels=(8,),
            up_block_types=("UpDecoderBlock2D",),
            up_block_out_channels=(8,),
            norm_num_groups=4,
        ),
        lambda: VQModel(block_out_channels=(32,), up_block_types=("AttnUpDecoderBlock2D",), norm_type="spatial"),
    ],
    ids=["none", "tiny", "with a mask", "norms that see the latents"],
)
def test_vaes_that_are_not_known(build: Callable[[], Any]) -> None:
    one = shared(build(), 2)
    assert not one.is_shared
    with one.together(meet, never):
        pass


@pytest.mark.parametrize(("ranks", "is_wanted"), [(1, True), (2, False)])
def test_ranks_that_have_nothing_to_share_are_not_asked(ranks: int, is_wanted: bool) -> None:
    assert not shared(image_vae(levels=LEVELS), ranks, is_wanted).is_shared
