"""Images that took long lie on disk, and are those of the very same prompt, seed and settings or none."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from hybridiff.evaluation.frontier.kept import KeptImages
from hybridiff.utils.prompts import Prompt

PROMPT = Prompt("a ring", seed=3)
PIXELS = np.random.default_rng(0).random((4, 4, 3), dtype=np.float32)


def test_an_image_comes_back_bit_for_bit(tmp_path: Path) -> None:
    kept = KeptImages(tmp_path / "images", {"model": "a", "converged_steps": 500})
    assert kept.find(PROMPT) is None
    kept.keep(PROMPT, PIXELS)
    found = KeptImages(tmp_path / "images", {"converged_steps": 500, "model": "a"}).find(PROMPT)
    assert found is not None
    assert found.dtype == np.float32
    assert np.array_equal(found, PIXELS)


def test_images_of_other_prompts_seeds_and_settings_are_not_found(tmp_path: Path) -> None:
    facts = {"model": "a", "converged_steps": 500}
    kept = KeptImages(tmp_path, facts)
    kept.keep(PROMPT, PIXELS)
    for other in (replace(PROMPT, seed=4), replace(PROMPT, prompt="a cross"), replace(PROMPT, negative_prompt="red")):
        assert kept.find(other) is None
    assert KeptImages(tmp_path, facts | {"converged_steps": 1000}).find(PROMPT) is None
    kept.clear()
    assert kept.find(PROMPT) is None


def test_a_damaged_image_is_made_again(tmp_path: Path) -> None:
    kept = KeptImages(tmp_path, {})
    kept.keep(PROMPT, PIXELS)
    (path,) = tmp_path.iterdir()
    for damaged in (b"", b"no array", path.read_bytes()[:-7]):
        path.write_bytes(damaged)
        assert kept.find(PROMPT) is None
