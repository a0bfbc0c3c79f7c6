"""What a scheduler is given tells how the branches were combined."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from hybridiff.denoiser.layout import SINGLE, GuidanceLayout, find_layout

SHAPE = (2, 4, 6, 6)


def branches_of(count: int, shape: tuple[int, ...] = SHAPE) -> list[torch.Tensor]:
    random = torch.Generator().manual_seed(count)
    alike = torch.randn(shape, generator=random)  # branches of one step differ little
    return [alike + 0.3 * torch.randn(shape, generator=random) for _ in range(count)]


def combine(branches: Sequence[torch.Tensor], coefficients: Sequence[float]) -> torch.Tensor:
    return torch.stack([factor * branch for factor, branch in zip(coefficients, branches, strict=True)]).sum(0)


def predictions_of(branches: Sequence[torch.Tensor], order: Sequence[int], batched: bool = False) -> list[torch.Tensor]:
    """What the calls of a step predict."""
    ordered = [branches[branch] for branch in order]
    return [torch.cat(ordered)] if batched else ordered


def assert_found(layout: GuidanceLayout, order: Sequence[int], coefficients: Sequence[float], batched: bool) -> None:
    assert layout.calls == (1 if batched else len(order))
    assert layout.order == tuple(order)
    assert layout.coefficients == pytest.approx(coefficients, rel=1e-3, abs=1e-3)


@given(
    scale=st.floats(1.05, 50),
    order=st.permutations(range(2)),
    batched=st.booleans(),
    factor=st.floats(0.2, 2),
    sign=st.sampled_from([1, -1]),
)
def test_classifier_free_guidance_of_any_scale(
    scale: float, order: list[int], batched: bool, factor: float, sign: int
) -> None:
    """It may be rescaled, and negated."""
    branches = branches_of(2)
    shown = sign * factor * combine(branches, (1 - scale, scale))
    layout = find_layout(predictions_of(branches, order, batched), shown, guided=True)
    assert_found(layout, order, (1 - scale, scale), batched)


@given(data=st.data(), batched=st.booleans(), count=st.integers(2, 4))
def test_any_sum_of_branches(data: st.DataObject, batched: bool, count: int) -> None:
    coefficients = data.draw(st.lists(st.floats(-9, 9), min_size=count - 1, max_size=count - 1))
    coefficients = sorted([*coefficients, 1 - sum(coefficients)])
    assume(min(abs(value) for value in coefficients) > 0.05)
    assume(all(after - before > 0.05 for before, after in itertools.pairwise(coefficients)))
    order, branches = data.draw(st.permutations(range(count))), branches_of(count)
    shown = combine(branches, coefficients)
    layout = find_layout(predictions_of(branches, order, batched), shown, guided=True)
    assert_found(layout, order, coefficients, batched)


def test_the_three_branches_of_instruct_pix2pix() -> None:
    """Text and image, image alone, neither; guided away from the image alone most."""
    text, image, neither = branches_of(3)
    shown = neither + 7.5 * (text - image) + 1.5 * (image - neither)
    layout = find_layout([torch.cat([text, image, neither])], shown, guided=True)
    assert layout.order == (2, 0, 1)
    assert layout.branches == 3
    assert layout.coefficients == pytest.approx((-6.0, -0.5, 7.5), rel=1e-4)


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_guidance_that_is_rescaled_image_by_image(order: tuple[int, int]) -> None:
    branches = branches_of(2)
    shown = combine(branches, (-4.0, 5.0)) * torch.tensor([0.6, 0.9]).view(2, 1, 1, 1)
    layout = find_layout(predictions_of(branches, order, batched=True), shown, guided=True)
    assert layout.order == order
    assert layout.coefficients == pytest.approx((-4.0, 5.0), rel=0.2)


@pytest.mark.parametrize("batched", [True, False])
@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
@pytest.mark.parametrize(
    ("predicted", "shown"),
    [
        ((2, 8, 6, 6), (slice(None), slice(0, 4))),
        ((2, 20, 3), (slice(None), slice(0, 9))),
        ((2, 4, 6, 6), ...),
    ],
    ids=["channels of a variance", "tokens of an image", "nothing more"],
)
def test_a_prediction_may_have_more_than_is_for_the_scheduler(
    predicted: tuple[int, ...], shown: tuple[slice, ...], order: tuple[int, int], batched: bool
) -> None:
    branches = branches_of(2, predicted)
    layout = find_layout(predictions_of(branches, order, batched), combine(branches, (-2.0, 3.0))[shown], guided=True)
    assert_found(layout, order, (-2.0, 3.0), batched)


def test_the_scheduler_may_be_given_another_shape_of_the_same() -> None:
    branches = branches_of(2)
    layout = find_layout(branches[::-1], combine(branches, (-2.0, 3.0)).flatten(1), guided=True)
    assert_found(layout, (1, 0), (-2.0, 3.0), batched=False)


def test_half_precision_says_as_much() -> None:
    branches = [branch.bfloat16() for branch in branches_of(2)]
    layout = find_layout([torch.cat(branches)], combine(branches, (-4.0, 5.0)), guided=True)
    assert layout.order == (0, 1)
    assert layout.coefficients == pytest.approx((-4.0, 5.0), rel=0.1)


@pytest.mark.parametrize("guided", [True, False])
@pytest.mark.parametrize("rows", [1, 2])
def test_as_many_rows_as_the_scheduler_is_given_are_one_branch(rows: int, guided: bool) -> None:
    prediction = torch.randn(rows, 4, 6, 6)
    assert find_layout([prediction], prediction, guided) == SINGLE


USUAL_BATCH, USUAL_CALLS = GuidanceLayout(1, (0, 1)), GuidanceLayout(2, (1, 0))


def test_where_nothing_is_shown_it_is_as_usual() -> None:
    branches = branches_of(2)
    assert find_layout([torch.cat(branches)], None, guided=True) == USUAL_BATCH
    assert find_layout([torch.cat(branches)], None, guided=False) == SINGLE
    assert find_layout(branches, None, guided=False) == USUAL_CALLS
    assert find_layout(branches_of(3), None, guided=False) == GuidanceLayout(3, (2, 1, 0))


@pytest.mark.parametrize("name", ["noise", "one branch", "nothing", "another size", "no number"])
def test_where_nothing_fits_it_is_as_usual(name: str) -> None:
    branches = branches_of(2)
    shown = {
        "noise": torch.randn(SHAPE, generator=torch.Generator().manual_seed(9)),
        "one branch": branches[1],
        "nothing": torch.zeros(SHAPE),
        "another size": torch.ones(2, 4, 9, 9),
        "no number": torch.full(SHAPE, torch.nan),
    }[name]
    assert find_layout([torch.cat(branches)], shown, guided=True) == USUAL_BATCH
    assert find_layout(branches, shown, guided=True) == USUAL_CALLS


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_predictions_that_are_no_numbers_are_left_to_others_to_report(value: float) -> None:
    branches = [torch.full(SHAPE, value) for _ in range(2)]
    assert find_layout(branches, branches[0], guided=True) == USUAL_CALLS
