"""How far guidance pulls a displaced sample back."""

from __future__ import annotations

import math

import pytest
import torch

from hybridiff.numerics.guidance import classifier_free
from hybridiff.numerics.reaction import Reaction


@pytest.mark.parametrize(
    ("scale", "begin", "whole", "step", "rate"),
    [
        (2.0, 0, 50, 0, 0.06),
        (5.0, 0, 50, 25, 0.24 * math.exp(-1)),
        (5.0, 0, 25, 10, 0.48 * math.exp(-0.8)),
        (7.5, 0, 50, 0, 0.25),
        (7.5, 0, 12, 0, 0.5),
        (1.0, 0, 50, 3, 0.0),
        (0.5, 0, 50, 3, 0.0),
    ],
)
def test_rates(scale: float, begin: int, whole: int, step: int, rate: float) -> None:
    assert Reaction(classifier_free(scale), begin, whole).rate(step) == pytest.approx(rate)


def test_a_part_of_the_way_has_the_rates_of_the_whole() -> None:
    """Image to image takes the last steps; a base model with a refiner the first ones."""
    whole, last = Reaction(classifier_free(3.0), 0, 40), Reaction(classifier_free(3.0), 15, 40)
    assert [last.rate(step) for step in range(25)] == [whole.rate(15 + step) for step in range(25)]


@pytest.mark.parametrize("weight", [0.0, 0.7, 2.5, -0.5])
def test_the_pull_is_what_hindsight_would_see_of_it(weight: float) -> None:
    """Without the pull a prediction asks for a correction of which the pull is its share."""
    reaction, correction = Reaction(classifier_free(3.0), 0, 50), torch.randn(4, 3, 2, 2)
    pull = reaction.pull(5, correction, weight)
    assert pull.shape == correction.shape
    assert torch.equal(pull[:2], pull[2:]), "alike in both branches"
    unconditional, conditional = correction.chunk(2)
    asked = unconditional + 3.0 * (conditional - unconditional) - weight * pull[:2]
    torch.testing.assert_close(pull[:2], reaction.rate(5) * asked)


def test_no_more_is_made_of_a_pull_where_hindsight_is_unstable() -> None:
    reaction, correction = Reaction(classifier_free(5.0), 0, 20), torch.ones(2, 1, 1, 1)
    assert reaction.pull(0, correction, -20.0).max() == pytest.approx(2 * reaction.rate(0))
