from __future__ import annotations

import math

import numpy as np
import pytest

from hybridiff.metrics import psnr


def test_psnr_of_known_errors() -> None:
    black = np.zeros((4, 4, 3), dtype=np.uint8)
    assert psnr(black, black) == math.inf
    assert psnr(black + 255, black) == pytest.approx(0.0)
    assert psnr(black + 1, black) == pytest.approx(48.1308, abs=1e-4)


def test_sizes_must_agree() -> None:
    with pytest.raises(ValueError, match="different sizes"):
        psnr(np.zeros((4, 4, 3)), np.zeros((2, 4, 3)))
