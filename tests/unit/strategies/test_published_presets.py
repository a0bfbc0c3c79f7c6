"""Which settings of the published rule hold for a call: the user's before the calibration's before the family's."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import diffusers
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hybridiff import ParallelConfig, PublishedSettings, UsageError
from hybridiff.denoiser.adapters import ADAPTERS, DenoiserAdapter
from hybridiff.denoiser.adapters.sd3 import SD3Adapter
from hybridiff.denoiser.adapters.unet import UNetAdapter
from hybridiff.schedule.calibration import Calibration
from hybridiff.schedule.kinds import StepKind
from hybridiff.schedule.presets import ModelSettings
from hybridiff.strategies import PublishedStrategy
from hybridiff.strategies.published.presets import choose_policy, choose_settings
from hybridiff.strategies.published.rule import PublishedPolicy
from support.calibrations import ENTRY

FAMILIES = {"unet": UNetAdapter(), "sd3": SD3Adapter()}


def settings_of(adapter: DenoiserAdapter | None = None, calibration: Any = None) -> ModelSettings:
    pipe = SimpleNamespace(config={"_name_or_path": "someone/a-model"})
    return ModelSettings.find(pipe, adapter or UNetAdapter(), calibration)


def config(**rule: Any) -> ParallelConfig:
    return ParallelConfig(strategy="published", published=PublishedSettings(**rule))


@pytest.mark.parametrize("family", FAMILIES)
def test_the_familys_own_without_a_calibration(family: str) -> None:
    adapter = FAMILIES[family]
    assert choose_settings(config(), settings_of(adapter), diffusers.DDIMScheduler(), 50) == adapter.published
    scaled = choose_settings(config(), settings_of(adapter), diffusers.DDIMScheduler(), 20)
    assert scaled == adapter.published.scaled(20)


CALIBRATED = Calibration("someone/a-model", (ENTRY,))


def test_the_calibration_beats_the_family() -> None:
    chosen = choose_settings(config(), settings_of(calibration=CALIBRATED), diffusers.DDIMScheduler(), 20)
    assert chosen == ENTRY.published == PublishedSettings(4, 0.02, 6, 9)


def test_settings_of_a_calibration_are_scaled_from_its_own_number_of_steps() -> None:
    chosen = choose_settings(config(), settings_of(calibration=CALIBRATED), diffusers.DDIMScheduler(), 40)
    assert chosen == PublishedSettings(slope_window=8, slope_threshold=0.01, parallel_steps=12, tau_cap=18)


def test_the_user_beats_the_calibration() -> None:
    wishes = config(tau_cap=7, slope_threshold=0.5)
    chosen = choose_settings(wishes, settings_of(calibration=CALIBRATED), diffusers.DDIMScheduler(), 20)
    assert chosen == PublishedSettings(4, 0.5, 6, 7)
    chosen = choose_settings(wishes, settings_of(calibration=CALIBRATED), diffusers.DDIMScheduler(), 40)
    assert chosen == PublishedSettings(8, 0.5, 12, 7), "what is given by hand is taken as it is"


def test_image_to_image_takes_the_entry_of_the_whole_way() -> None:
    """Twelve steps of twenty: the settings that were measured for twenty."""
    short = replace(ENTRY, num_inference_steps=12, published=PublishedSettings(1, 9.0, 1, 1))
    scheduler = diffusers.DDIMScheduler()
    scheduler.set_timesteps(20)
    settings = settings_of(calibration=Calibration("a-model", (short, ENTRY)))
    assert choose_settings(config(), settings, scheduler, 12) == ENTRY.published.scaled(12, 20)


@pytest.mark.parametrize("steps", [1, 2])
def test_one_or_two_steps_are_full(steps: int) -> None:
    policy = choose_policy(config(), settings_of(), diffusers.DDIMScheduler(), steps)
    assert {policy.kind(step) for step in range(steps)} == {StepKind.FULL}


def test_one_or_two_steps_by_settings_of_the_users_own() -> None:
    with pytest.raises(UsageError, match="lies beyond the last of 2 steps"):
        choose_policy(config(tau_cap=1), settings_of(), diffusers.DDIMScheduler(), 2)


def test_settings_beyond_the_end_are_refused_before_a_run() -> None:
    PublishedStrategy.check_steps(config(), settings_of(), diffusers.DDIMScheduler(), 10)
    with pytest.raises(UsageError, match="parallel_steps 9 = 12 lies beyond the last of 10 steps"):
        PublishedStrategy.check_steps(config(parallel_steps=9), settings_of(), diffusers.DDIMScheduler(), 10)


@pytest.mark.parametrize(
    ("model", "steps", "expected"),
    [
        ("unet", 50, (12, 4e-4, 5, 15)),
        ("unet", 100, (24, 2e-4, 10, 30)),
        ("unet", 28, (7, 4e-4 * 50 / 28, 3, 8)),
        ("unet", 20, (5, 1e-3, 2, 6)),
        ("unet", 4, (1, 5e-3, 1, 1)),
        ("sd3", 50, (15, 5e-4, 5, 40)),
        ("sd3", 100, (30, 2.5e-4, 10, 80)),
        ("sd3", 28, (8, 5e-4 * 50 / 28, 3, 22)),
        ("sd3", 20, (6, 1.25e-3, 2, 16)),
        ("sd3", 4, (1, 6.25e-3, 1, 2)),  # tau_cap would be 3, which leaves no room for a pipelined step
    ],
)
def test_presets_scaled(model: str, steps: int, expected: tuple[int, float, int, int]) -> None:
    scaled = FAMILIES[model].published.scaled(steps)
    assert (scaled.slope_window, scaled.parallel_steps, scaled.tau_cap) == (expected[0], expected[2], expected[3])
    assert scaled.slope_threshold == pytest.approx(expected[1])


@st.composite
def legal_settings(draw: st.DrawFn) -> PublishedSettings:
    """Settings that fit a run of fifty steps."""
    tau_cap = draw(st.integers(1, 43))
    return PublishedSettings(
        slope_window=draw(st.integers(1, min(30, tau_cap))),
        slope_threshold=draw(st.floats(1e-5, 1e-2)),
        parallel_steps=draw(st.integers(1, min(30, 44 - tau_cap))),
        tau_cap=tau_cap,
    )


@given(legal_settings(), st.integers(3, 150))
def test_scaled_settings_are_legal_wherever_the_settings_are(chosen: PublishedSettings, steps: int) -> None:
    scaled = chosen.scaled(steps)
    policy = PublishedPolicy(scaled, steps)
    assert policy.settings == scaled
    assert scaled.values[1] * steps == pytest.approx(chosen.values[1] * 50)


def test_fifty_steps_change_nothing() -> None:
    for preset in (adapter.published for adapter in ADAPTERS):
        assert preset.scaled(50) == preset
