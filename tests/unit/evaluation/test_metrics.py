"""How alike two images are."""

from __future__ import annotations

import math
import sys

import numpy as np
import pytest

from hybridiff.evaluation.metrics import psnr, structural_similarity


def test_psnr_of_known_errors() -> None:
    black = np.zeros((4, 4, 3), dtype=np.uint8)
    assert psnr(black, black) == math.inf
    assert psnr(black + 255, black) == pytest.approx(0.0)
    assert psnr(black + 1, black) == pytest.approx(48.1308, abs=1e-4)


def test_sizes_must_agree() -> None:
    with pytest.raises(ValueError, match="different sizes"):
        psnr(np.zeros((4, 4, 3)), np.zeros((2, 4, 3)))


def test_structural_similarity_of_an_image_with_itself_and_with_noise() -> None:
    random = np.random.default_rng(0)
    image = random.random((32, 32, 3), dtype=np.float32)
    assert structural_similarity(image, image) == pytest.approx(1.0)
    near = np.clip(image + 0.05 * random.standard_normal(image.shape, dtype=np.float32), 0, 1)
    far = np.clip(image + 0.5 * random.standard_normal(image.shape, dtype=np.float32), 0, 1)
    similar, other = structural_similarity(near, image), structural_similarity(far, image)
    assert similar is not None
    assert other is not None
    assert other < similar < 1.0


def test_without_torchmetrics_there_is_no_structural_similarity(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchmetrics.functional.image", None)
    assert structural_similarity(np.zeros((16, 16, 3)), np.zeros((16, 16, 3))) is None
