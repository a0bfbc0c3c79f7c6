"""Images from files: upright, and with values of 8 bits."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from diffusers.utils import load_image
from PIL import Image

from hybridiff import UsageError
from hybridiff.utils.images import read_image


def test_a_photograph_is_upright(tmp_path: Path) -> None:
    file, photograph = tmp_path / "photograph.png", Image.linear_gradient("L").resize((6, 4)).convert("RGB")
    turned = Image.Exif()
    turned[0x0112] = 6  # orientation: a quarter to the right
    photograph.save(file, exif=turned)
    read = read_image(file)
    assert read.size == (4, 6)
    assert np.array_equal(read, load_image(str(file)))


def test_16_bits_of_depth_are_not_cut_off(tmp_path: Path) -> None:
    file, depth = tmp_path / "depth.png", np.arange(2**16, dtype=np.uint16).reshape(256, 256)
    Image.fromarray(depth).save(file)
    read = np.asarray(read_image(file)).astype(int)
    assert read.shape == (256, 256, 3)
    assert np.abs(read[..., 0] - depth / 257).max() <= 0.5


@pytest.mark.parametrize("values", [np.ones((2, 2), np.float32), np.full((2, 2), 2**16, np.int32)])
def test_values_of_another_kind_are_refused(values: np.ndarray, tmp_path: Path) -> None:
    file = tmp_path / "depth.tiff"
    Image.fromarray(values).save(file)
    with pytest.raises(UsageError, match=r"depth.tiff: its values are not of 8 or 16 bits; convert it to 8 bits"):
        read_image(file)
