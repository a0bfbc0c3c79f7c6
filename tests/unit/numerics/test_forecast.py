"""Forecasts: lines are followed as far as they were right."""

from __future__ import annotations

import pytest
import torch

from hybridiff.numerics.forecast import Forecast

SCALE = 3.0


def prediction(*images: float) -> torch.Tensor:
    """Both branches of some images; the unconditional one predicts half."""
    conditional = torch.tensor(images).reshape(-1, 1, 1, 1).expand(-1, 2, 3, 3)
    return torch.cat([0.5 * conditional, conditional])


def seen(*right: torch.Tensor) -> Forecast:
    """Full steps 0, 2 and 5 on a line of slope 1; steps 3 and 4 should have answered what is given."""
    forecast = Forecast(SCALE)
    for step in (0, 2):
        forecast.observe(step, prediction(*[float(step)] * (len(right[0]) // 2)))
    answered = {step: forecast.at(step) for step in (3, 4)}
    forecast.learn(answered, {step: value - answered[step] for step, value in zip((3, 4), right, strict=True)})
    forecast.observe(5, prediction(*[5.0] * (len(right[0]) // 2)))
    return forecast


def test_held_until_a_gap_has_shown_more() -> None:
    forecast = Forecast(SCALE)
    for step in (0, 1):
        forecast.observe(step, prediction(float(step)))
        assert torch.equal(forecast.at(3), prediction(float(step)))


def test_a_line_that_was_right_is_followed() -> None:
    forecast = seen(prediction(3.0), prediction(4.0))
    torch.testing.assert_close(forecast.at(6), prediction(6.0))
    torch.testing.assert_close(forecast.at(9), prediction(9.0))


@pytest.mark.parametrize("slope", [0.25, 0.5, 2.0])
def test_the_share_is_that_of_the_last_gap_and_never_more_than_the_line(slope: float) -> None:
    forecast = seen(prediction(2 + slope), prediction(2 + 2 * slope))
    torch.testing.assert_close(forecast.at(7), prediction(5 + 2 * min(1.0, slope)))


def test_nothing_is_followed_the_wrong_way() -> None:
    assert torch.equal(seen(prediction(1.0), prediction(0.0)).at(7), prediction(5.0))


def test_images_are_judged_one_by_one() -> None:
    forecast = seen(prediction(3.0, 1.0, 2.5), prediction(4.0, 0.0, 3.0))
    torch.testing.assert_close(forecast.at(7), prediction(7.0, 5.0, 6.0))


@pytest.mark.parametrize(("across", "share"), [(0.5, 0.8 * (0.8 - 0.6) / 0.3 / 0.8), (1.0, 0.0)])
def test_what_a_line_explains_too_little_of_is_not_followed(across: float, share: float) -> None:
    """Changes of 1 along the line and of some across it: the line explains 1 / (1 + across^2)."""
    checkered = torch.tensor([1.0, -1.0]).reshape(1, 2, 1, 1)
    right = [prediction(2.0 + ahead) + ahead * across * prediction(1.0) * checkered for ahead in (1.0, 2.0)]
    torch.testing.assert_close(seen(*right).at(7), prediction(5 + 2 * share))


def test_what_was_seen_is_forgotten_by_half() -> None:
    """Lines right in one gap and useless in the next: a share of a third."""
    forecast = seen(prediction(3.0), prediction(4.0))
    answered = {6: forecast.at(6)}
    forecast.learn(answered, {6: prediction(5.0) - answered[6]})
    forecast.observe(7, prediction(7.0))
    along, line = 0.5 * 5, 0.5 * 5 + 1
    torch.testing.assert_close(forecast.at(8), prediction(7 + along / line * min(1.0, (along / line - 0.6) / 0.3)))


def test_predictions_that_never_moved_are_held() -> None:
    forecast = Forecast(SCALE)
    for step in (0, 1):
        forecast.observe(step, prediction(0.0))
    forecast.learn({2: forecast.at(2)}, {2: prediction(1.0)})
    forecast.observe(3, prediction(1.0))
    assert torch.equal(forecast.at(4), prediction(1.0))


def test_half_precision() -> None:
    forecast = seen(prediction(3.0).bfloat16(), prediction(4.0).bfloat16())
    forecast.observe(6, prediction(6.0).bfloat16())
    assert forecast.at(7).dtype == torch.bfloat16
