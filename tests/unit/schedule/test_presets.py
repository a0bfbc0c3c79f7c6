"""Which settings a pipeline gets."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from diffusers.configuration_utils import FrozenDict

from hybridiff.schedule.kinds import PublishedSettings
from hybridiff.schedule.presets import PUBLISHED, published_settings


def pipeline(name: str | None, family: str) -> Any:
    """As much of a pipeline as the choice looks at."""
    config = FrozenDict({} if name is None else {"_name_or_path": name})
    return SimpleNamespace(config=config, **{family: object()})


def test_the_published_settings() -> None:
    assert PUBLISHED["sdxl"] == PublishedSettings(12, 4e-4, 5, 15)
    assert PUBLISHED["sd3"] == PublishedSettings(15, 5e-4, 5, 40)


@pytest.mark.parametrize("name", [None, "", "someone/my-sdxl-checkpoint", "/models/finetuned"])
def test_by_family(name: str | None) -> None:
    assert published_settings(pipeline(name, "unet")) == PUBLISHED["sdxl"]
    assert published_settings(pipeline(name, "transformer")) == PUBLISHED["sd3"]


@pytest.mark.parametrize("path", ["sd3", "/models/sd3", "someone/sd3"])
def test_a_name_comes_before_the_family(path: str) -> None:
    assert published_settings(pipeline(path, "unet")) == PUBLISHED["sd3"]


def test_every_preset_is_legal_at_fifty_steps() -> None:
    for preset in PUBLISHED.values():
        assert preset.tau_cap >= preset.slope_window
        assert preset.tau_cap + preset.parallel_steps < 50
