"""The estimated error of the final sample, by hand: plain loops over numbers, in double precision."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch

from hybridiff.numerics.estimate import FADING, PAIR, REACTION, ROUNDING, ErrorEstimate, fading
from hybridiff.numerics.guidance import classifier_free
from hybridiff.numerics.sensitivity import Sensitivity

FINAL = [0.5, -0.25, 2.0, 1.0, -0.125, 0.75, 0.0, 0.5]
SENSITIVITY = Sensitivity([1.0] * 8, [[9.0] * 8] * 7 + [FINAL])
"""Only what is moved at the very end counts."""


def predictions(images: int, seed: int, scale: float = 1.0) -> torch.Tensor:
    return scale * torch.randn(2 * images, 4, 3, 5, generator=torch.Generator().manual_seed(seed))


def by_hand(guidance: float, steps: Sequence[int], changes: Sequence[torch.Tensor]) -> list[float]:
    """How far changes of predictions move the final sample of each image, in root mean square."""
    images = len(changes[0]) // 2
    moved = []
    for image in range(images):
        rows = [(change[image].flatten().tolist(), change[images + image].flatten().tolist()) for change in changes]
        squares = 0.0
        for place in range(len(rows[0][0])):
            pairs = [(unconditional[place], conditional[place]) for unconditional, conditional in rows]
            guided = [u + guidance * (c - u) for u, c in pairs]
            squares += sum(FINAL[step] * value for step, value in zip(steps, guided, strict=True)) ** 2
        moved.append(math.sqrt(squares / len(rows[0][0])))
    return moved


@pytest.mark.parametrize("guidance", [1.0, 5.0, 7.5])
@pytest.mark.parametrize("images", [1, 3])
def test_gaps_by_hand(images: int, guidance: float) -> None:
    estimate = ErrorEstimate(SENSITIVITY, classifier_free(guidance))
    squares = [0.0] * images
    for number, steps in enumerate([[1], [3, 4, 5], [6]]):
        errors = [predictions(images, 10 * number + step) for step in steps]
        pairs = [predictions(images, 100 * number + step, 0.3) for step in steps]
        estimate.close_gap(steps, errors, pairs)
        faded = 10 ** (-FADING / 20 * (1 - (steps[-1] + 2) / 8))  # at the full step after the gap
        for image, (corrected, pair) in enumerate(
            zip(by_hand(guidance, steps, errors), by_hand(guidance, steps, pairs), strict=True)
        ):
            squares[image] += faded**2 * ((REACTION * corrected) ** 2 + (PAIR * pair) ** 2)
        found = estimate.errors(torch.zeros(images))
        assert found.dtype == torch.float32
        assert found.tolist() == pytest.approx([math.sqrt(square) for square in squares], rel=1e-5)


@pytest.mark.parametrize("guidance", [1.0, 6.0])
def test_speeds_by_hand(guidance: float) -> None:
    before, now = predictions(2, 1), predictions(2, 2)
    found = ErrorEstimate(SENSITIVITY, classifier_free(guidance)).speeds(now, before, 4)
    expected = [moved / 4 / 2.0 for moved in by_hand(guidance, [2], [now - before])]  # step 2 moves by 2.0
    assert found.shape == (2,)
    assert found.tolist() == pytest.approx(expected, rel=1e-5)


def test_a_solver_that_is_not_stable_is_found_out() -> None:
    """One of two images whose predictions take back most of their changes is enough; one turn is not."""
    steady, turning = torch.ones(1, 2, 2, 2), torch.ones(1, 2, 2, 2)
    estimate, before = ErrorEstimate(SENSITIVITY, classifier_free(3.0)), torch.zeros(4, 2, 2, 2)
    assert not estimate.oscillates
    found = []
    for sign in (1, 1, -1, -1.2, 1, -1.1, 1):
        now = before + torch.cat([0 * steady, 0 * turning, steady, sign * turning])
        estimate.speeds(now, before, 1)
        estimate.speeds(before, now, 0.25)  # at one time: a second-order step tries its end out
        before = now
        found.append(estimate.oscillates)
    assert found == [False, False, False, False, False, True, True]


def test_noise_is_no_oscillation() -> None:
    estimate = ErrorEstimate(replace(SENSITIVITY, is_stochastic=True), classifier_free(3.0))
    for sign in (1.0, -1.0, 1.0, -1.0):
        estimate.speeds(sign * torch.ones(2, 1, 2, 2), torch.zeros(2, 1, 2, 2), 1)
    assert not estimate.oscillates


def test_one_number_by_hand() -> None:
    """A difference of 1 in the conditional branch alone is, guided by 3, one of 3; step 2 makes 6 of it."""
    estimate = ErrorEstimate(SENSITIVITY, classifier_free(3.0))
    error = torch.tensor([0.0, 1.0]).reshape(2, 1, 1, 1)
    estimate.close_gap([2], [error], [torch.zeros(2, 1, 1, 1)])
    assert estimate.errors(torch.zeros(1)).item() == pytest.approx(REACTION * 6 * fading(3, 8), rel=1e-6)
    assert estimate.speeds(error, torch.zeros(2, 1, 1, 1), 2).item() == 1.5


def test_errors_of_a_gap_may_cancel_those_of_gaps_add_up() -> None:
    error, nothing = torch.ones(2, 1, 2, 2), torch.zeros(2, 1, 2, 2)
    one = ErrorEstimate(Sensitivity([1.0] * 4, [[1.0] * 4] * 4), classifier_free(5.0))
    one.close_gap([1, 2], [error, -error], [nothing, nothing])
    assert one.errors(torch.zeros(1)).item() == 0.0
    two = ErrorEstimate(Sensitivity([1.0] * 4, [[1.0] * 4] * 4), classifier_free(5.0))
    two.close_gap([0], [error], [nothing])
    two.close_gap([2], [-error], [nothing])
    assert two.errors(torch.zeros(1)).item() == pytest.approx(REACTION * math.hypot(fading(1, 4), fading(3, 4)))


def test_a_batch_is_its_images_one_by_one() -> None:
    """However unlike they are: bit for bit."""
    images = 4
    whole = ErrorEstimate(SENSITIVITY, classifier_free(5.0))
    alone = [ErrorEstimate(SENSITIVITY, classifier_free(5.0)) for _ in range(images)]
    sizes = torch.tensor([1.0, 1e-4, 1e4, 0.0] * 2).reshape(-1, 1, 1, 1)
    for steps in ([1, 2], [4]):
        errors = [sizes * predictions(images, step) for step in steps]
        pairs = [sizes * predictions(images, 50 + step) for step in steps]
        whole.close_gap(steps, errors, pairs)
        for image, estimate in enumerate(alone):
            own = [image, images + image]
            estimate.close_gap(steps, [error[own] for error in errors], [pair[own] for pair in pairs])
    together = whole.errors(torch.zeros(images))
    assert together[3] == 0.0
    for image, estimate in enumerate(alone):
        torch.testing.assert_close(estimate.errors(torch.zeros(1))[0], together[image], rtol=1e-6, atol=0)
    now, before = sizes * predictions(images, 7), sizes * predictions(images, 8)
    speeds = whole.speeds(now, before, 3)
    for image, estimate in enumerate(alone):
        own = [image, images + image]
        torch.testing.assert_close(estimate.speeds(now[own], before[own], 3)[0], speeds[image], rtol=1e-6, atol=0)


def test_nothing_is_off_where_nothing_was_cached() -> None:
    estimate = ErrorEstimate(SENSITIVITY, classifier_free(5.0))
    errors = estimate.errors(torch.ones(3))
    assert errors.tolist() == [0.0, 0.0, 0.0]
    assert estimate.speeds(predictions(3, 1), predictions(3, 1), 2).tolist() == [0.0, 0.0, 0.0]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_computed_in_single(dtype: torch.dtype) -> None:
    """Squares of small numbers would be zeros."""
    now, before = predictions(2, 1, 1e-3).to(dtype), predictions(2, 2, 1e-3).to(dtype)
    found = ErrorEstimate(SENSITIVITY, classifier_free(5.0)).speeds(now, before, 1)
    assert torch.equal(found, ErrorEstimate(SENSITIVITY, classifier_free(5.0)).speeds(now.float(), before.float(), 1))
    estimate = ErrorEstimate(SENSITIVITY, classifier_free(5.0))
    estimate.close_gap([3], [now.float()], [before])
    assert estimate.errors(found).dtype == torch.float32


def test_errors_fade_in_proportion_to_the_steps_to_come() -> None:
    assert fading(49, 50) == 1.0
    assert 20 * math.log10(fading(24, 50)) == pytest.approx(-FADING / 2)
    assert [fading(step, 9) for step in range(9)] == sorted(fading(step, 9) for step in range(9))


@pytest.mark.parametrize(("dtype", "eps"), [(torch.bfloat16, 2**-7), (torch.float16, 2**-10), (torch.float32, 0.0)])
def test_rounding_by_hand(dtype: torch.dtype, eps: float) -> None:
    """That of all steps, each of the size of the latest prediction; the branches' do not cancel."""
    now = torch.cat([torch.full((2, 1, 2, 2), 2.0), torch.full((2, 1, 2, 2), -1.0)]).to(dtype)
    found = ErrorEstimate(SENSITIVITY, classifier_free(3.0)).rounding(now)
    size = math.sqrt((2 * 2.0) ** 2 + (3 * 1.0) ** 2)
    steps = math.sqrt(sum((value * fading(step, 8)) ** 2 for step, value in enumerate(FINAL)))
    assert found.tolist() == pytest.approx([ROUNDING * eps * size * steps] * 2, rel=1e-5)
