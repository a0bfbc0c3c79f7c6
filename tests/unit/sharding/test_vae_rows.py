"""Decoders and encoders of VAEs by rows: what ranks make of their parts together is what the whole makes."""

from __future__ import annotations

import functools

import pytest
import torch

from hybridiff.sharding.network import RowShards
from support.oracles import relative_difference
from support.pipelines import image_vae
from support.shards import shared, whole

LEVELS = 3
SCALE = 2 ** (LEVELS - 1)


@functools.cache
def decoder(dtype: torch.dtype) -> RowShards:
    return RowShards(image_vae(levels=LEVELS).decoder.to(dtype), unit=1)


@functools.cache
def encoder(dtype: torch.dtype) -> RowShards:
    return RowShards(image_vae(levels=LEVELS).encoder.to(dtype), unit=SCALE)


def picture(*shape: int, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    return {"sample": torch.randn(*shape, generator=torch.Generator().manual_seed(1)).to(dtype)}


@pytest.mark.parametrize(("dtype", "most"), [(torch.float32, 1e-5), (torch.float64, 1e-10)])
@pytest.mark.parametrize(("parts", "rows", "images"), [(2, 8, 3), (3, 7, 1), (4, 9, 1), (4, 4, 1)])
def test_a_decoder_by_rows(parts: int, rows: int, images: int, dtype: torch.dtype, most: float) -> None:
    sharded, arguments = decoder(dtype), picture(images, 4, rows, 5, dtype=dtype)
    assert sharded.most_parts(arguments) == rows
    expected = whole(sharded.network, arguments)
    assert expected.shape == (images, 3, SCALE * rows, SCALE * 5)
    assert relative_difference(shared(sharded, arguments, parts), expected) <= most


@pytest.mark.parametrize(("dtype", "most"), [(torch.float32, 1e-5), (torch.float64, 1e-10)])
@pytest.mark.parametrize(("parts", "rows", "images"), [(2, 16, 3), (3, 20, 1), (4, 17, 1), (3, 15, 1), (2, 11, 1)])
def test_an_encoder_by_rows(parts: int, rows: int, images: int, dtype: torch.dtype, most: float) -> None:
    sharded, arguments = encoder(dtype), picture(images, 3, rows, 12, dtype=dtype)
    assert sharded.most_parts(arguments) == rows // SCALE
    assert relative_difference(shared(sharded, arguments, parts), whole(sharded.network, arguments)) <= most
