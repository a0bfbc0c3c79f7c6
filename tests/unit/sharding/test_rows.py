"""Rows of parts, rows of neighbours, and statistics of the whole, against the whole."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from diffusers.models.downsampling import Downsample2D
from hypothesis import given
from hypothesis import strategies as st

from hybridiff.denoiser.attached import AttachedHook
from hybridiff.sharding.group import ThreadGroup, play
from hybridiff.sharding.place import in_parts
from hybridiff.sharding.rows import ConvolutionHook, DownsampleHook, GroupNormHook, rows_of_part, with_neighbours
from support.shards import ranks


def picture(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)


def cut(whole: torch.Tensor, unit: int, group: ThreadGroup) -> torch.Tensor:
    return whole[:, :, rows_of_part(whole.shape[2], unit, group)]


def by_parts(module: torch.nn.Module, whole: torch.Tensor, unit: int, parts: int, dim: int = 2) -> torch.Tensor:
    """What a hooked layer makes of the parts, one after the other."""

    def work(group: ThreadGroup) -> torch.Tensor:
        with in_parts(group):
            answer: torch.Tensor = module(cut(whole, unit, group))
            return answer

    return torch.cat(play(ranks(parts), work), dim)


@given(st.integers(1, 300), st.sampled_from([1, 2, 4, 8]), st.integers(1, 8))
def test_parts_have_all_rows_once_and_in_order(rows: int, unit: int, parts: int) -> None:
    parts = min(parts, max(1, rows // unit))
    cuts = [rows_of_part(rows, unit, group) for group in ranks(parts)] if rows >= unit else [slice(0, rows)]
    assert [row for own in cuts for row in range(own.start, own.stop)] == list(range(rows))
    assert all(own.start % unit == 0 and own.stop > own.start for own in cuts)
    assert max(own.stop - own.start for own in cuts) < -(-rows // (parts * unit)) * unit + unit


@pytest.mark.parametrize("parts", [2, 3, 4])
@pytest.mark.parametrize("rows", [8, 9, 13])
@pytest.mark.parametrize(
    ("kernel", "stride", "padding"),
    [(3, 1, (1, 1)), (3, 2, (1, 1)), (3, 2, (0, 1)), (5, 1, (2, 2)), (4, 2, (1, 1)), (2, 2, (0, 0))],
)
def test_neighbours_are_what_a_convolution_looks_at(
    kernel: int, stride: int, padding: tuple[int, int], rows: int, parts: int
) -> None:
    whole, weight = picture(2, 3, rows, 5), picture(4, 3, kernel, 1)
    if rows < 2 * parts * stride:
        parts = 2

    def work(group: ThreadGroup) -> torch.Tensor:
        return F.conv2d(
            with_neighbours(group, cut(whole, 2, group), kernel - stride, padding), weight, stride=(stride, 1)
        )

    expected = F.conv2d(F.pad(whole, (0, 0, *padding)), weight, stride=(stride, 1))
    torch.testing.assert_close(torch.cat(play(ranks(parts), work), 2), expected)


@pytest.mark.parametrize(
    "options", [{"padding": 1}, {"padding": 1, "stride": 2, "bias": False}, {"padding": (1, 0), "groups": 3}]
)
@pytest.mark.parametrize("images", [1, 2])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_a_convolution_of_parts(
    options: dict[str, int], images: int, dtype: torch.dtype, layout: torch.memory_format
) -> None:
    layer = torch.nn.Conv2d(3, 6, 3, **options).to(dtype, memory_format=layout)  # type: ignore[arg-type, call-overload]
    whole = picture(images, 3, 13, 6).to(dtype, memory_format=layout)
    expected = layer(whole)
    hook = AttachedHook(layer, ConvolutionHook(), "test")
    torch.testing.assert_close(by_parts(layer, whole, 2, 3), expected)
    assert torch.equal(layer(whole), expected)  # without a group
    hook.remove()


@pytest.mark.parametrize("rows", [8, 13])
def test_a_downsampler_of_an_encoder_of_parts(rows: int) -> None:
    layer, whole = Downsample2D(3, use_conv=True, padding=0).double(), picture(2, 3, rows, 6)
    expected = layer(whole)
    AttachedHook(layer, DownsampleHook(), "test")
    torch.testing.assert_close(by_parts(layer, whole, 2, 3), expected)


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("shape", [(3, 8, 13, 5), (1, 8, 13)])
def test_group_normalization_of_parts(shape: tuple[int, ...], affine: bool) -> None:
    layer, whole = torch.nn.GroupNorm(4, 8, affine=affine).double(), 3 * picture(*shape) + 50
    if affine:
        torch.nn.init.normal_(layer.weight)
        torch.nn.init.normal_(layer.bias)
    expected = layer(whole)
    AttachedHook(layer, GroupNormHook("norm"), "test")
    torch.testing.assert_close(by_parts(layer, whole, 1, 3), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_group_normalization_of_a_picture_of_one_colour(dtype: torch.dtype) -> None:
    layer, whole = torch.nn.GroupNorm(4, 8).to(dtype), torch.full((2, 8, 9, 5), 0.3, dtype=dtype)
    expected = layer(whole)
    AttachedHook(layer, GroupNormHook("norm"), "test")
    made = by_parts(layer, whole, 1, 3)
    assert made.dtype is dtype
    torch.testing.assert_close(made, expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("is_autocast", [False, True])
@pytest.mark.parametrize("is_enabled", [True, False])
def test_convolutions_are_of_the_dtype_and_the_library_that_the_caller_wants(
    is_autocast: bool, is_enabled: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    convolution, whole = torch.nn.Conv2d(3, 4, 3, padding=1), picture(1, 3, 8, 5).float()
    attached = AttachedHook(convolution, ConvolutionHook(), "rows")
    used: list[bool] = []
    own = torch.mkldnn_convolution
    monkeypatch.setattr(torch, "mkldnn_convolution", lambda *args: (used.append(True), own(*args))[1])
    try:
        wanted = torch.autocast("cpu", torch.bfloat16, is_autocast), torch.backends.mkldnn.flags(enabled=is_enabled)
        with torch.no_grad(), wanted[0], wanted[1]:
            stock = F.conv2d(whole, convolution.weight, convolution.bias, padding=1)
            parts = by_parts(convolution, whole, 1, 2)
    finally:
        attached.remove()
    assert parts.dtype is stock.dtype
    torch.testing.assert_close(parts, stock)
    assert bool(used) == (is_enabled and not is_autocast)
