"""Speed-up against resolution: what is predicted from measured times."""

from __future__ import annotations

from typing import Any

import pytest

from hybridiff.evaluation.timing.resolutions import check_prediction, fit_seconds, predict


def law(side: int, share: float) -> float:
    return 0.2 + share * (3e-6 * side**2 + 2e-12 * side**4)


def rows(*sides: int) -> list[dict[str, Any]]:
    """Serial, and a strategy that takes half of what depends on the size."""
    return [
        {
            "strategy": strategy,
            "devices": devices,
            "resolution": side,
            "denoising_seconds": law(side, share),
            "speedup": law(side, 1.0) / law(side, share),
        }
        for side in sides
        for strategy, devices, share in (("serial", 1, 1.0), ("cfg", 2, 0.5))
    ]


def test_a_quadratic_is_found_again() -> None:
    sides = (256, 512, 768, 1024)
    found = fit_seconds([float(side**2) for side in sides], [law(side, 1.0) for side in sides])
    assert found(2048.0**2) == pytest.approx(law(2048, 1.0), rel=1e-6)


@pytest.mark.parametrize(("second", "expected"), [(3.5, 13.5), (4.0, 16.0), (4.1, 17.7333), (8.0, 96.0)])
def test_through_two_points_goes_what_grows_least(second: float, expected: float) -> None:
    """A constant and a line, or a line and a square; never a constant and a square."""
    assert fit_seconds([512.0**2, 1024.0**2], [1.0, second])(2048.0**2) == pytest.approx(expected, rel=0.02)


def test_no_term_is_negative_so_larger_images_never_take_less() -> None:
    found = fit_seconds([1.0, 2.0, 3.0], [1.0, 1.9, 2.5])  # bent downwards
    assert [found(place) for place in (4.0, 8.0, 16.0)] == sorted(found(place) for place in (4.0, 8.0, 16.0))
    assert found(16.0) == pytest.approx(16 * found(1.0) - 15 * found(0.0))


def test_further_resolutions_are_predicted_for_every_strategy() -> None:
    found = predict(rows(256, 512, 1024), [2048])
    assert [(row["strategy"], row["devices"], row["resolution"], row["is_predicted"]) for row in found] == [
        ("serial", 1, 2048, True),
        ("cfg", 2, 2048, True),
    ]
    assert found[0]["speedup"] == 1.0
    assert found[1]["speedup"] == pytest.approx(law(2048, 1.0) / law(2048, 0.5), rel=0.01)


def test_noise_of_one_strategy_does_not_grow_with_the_size() -> None:
    """A share of what serial takes stays one, where curves of their own would part."""
    noisy = [
        row | {"denoising_seconds": row["denoising_seconds"] * (1.05 if row["devices"] == 2 else 1.0)}
        for row in rows(512)
    ]
    (_, cfg) = predict([*rows(256), *noisy, *rows(768)], [4096])
    assert cfg["speedup"] == pytest.approx(2.0, rel=0.05)


def test_the_largest_measured_resolution_is_predicted_from_the_others() -> None:
    (check,) = check_prediction(rows(256, 512, 768, 1024))
    assert (check["strategy"], check["devices"], check["resolution"]) == ("cfg", 2, 1024)
    assert check["measured"] == pytest.approx(law(1024, 1.0) / law(1024, 0.5))
    assert abs(check["error"]) < 0.01
    assert check_prediction(rows(256, 512)) == []
