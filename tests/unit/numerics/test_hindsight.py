"""Looking back: errors of cached steps, what makes up for them, and what the network made of them."""

from __future__ import annotations

import torch

from hybridiff.numerics.guidance import classifier_free
from hybridiff.numerics.hindsight import Hindsight
from hybridiff.numerics.reaction import Reaction
from hybridiff.numerics.sensitivity import Sensitivity

EVEN = Sensitivity([1.0] * 12, [[1.0] * 12] * 12)
"""Every prediction moves the sample alike."""


def line(step: float) -> torch.Tensor:
    """Predictions on a line, in both branches: guided by 3 they change by 7 per step."""
    return torch.tensor([1.0, 3.0]).reshape(2, 1, 1, 1) * step


def looked_back(reaction: Reaction, disturbed: float = 0.0) -> tuple[Hindsight, torch.Tensor]:
    """Full steps 0, 1 and 4; what the last one predicts is off by as much in both branches."""
    hindsight = Hindsight(EVEN, reaction)
    hindsight.look_back(0, line(0), [], is_guided=False)
    hindsight.look_back(1, line(1), [], is_guided=True)
    undisturbed = hindsight.look_back(4, line(4) + disturbed, [(2, line(1)), (3, line(1))], is_guided=True)
    return hindsight, undisturbed


def test_without_guidance_hindsight_is_the_polynomial() -> None:
    hindsight, undisturbed = looked_back(Reaction(classifier_free(1.0), 0, 12))
    assert torch.equal(undisturbed, line(4))
    for cached, error in hindsight.errors.items():
        torch.testing.assert_close(error, line(cached - 1))
    torch.testing.assert_close(hindsight.correct(line(4)), line(4) + line(3))
    assert torch.equal(hindsight.correct(line(4)), line(4)), "once only"


def test_what_the_network_made_of_the_displaced_sample_is_taken_out() -> None:
    """A network that pulls back at the very rate is seen through."""
    reaction = Reaction(classifier_free(3.0), 0, 12)
    pull = reaction.rate(4) * 3 * 7.0  # of what was to be corrected, as guidance sees it
    hindsight, undisturbed = looked_back(reaction, disturbed=pull)
    torch.testing.assert_close(undisturbed, line(4))
    torch.testing.assert_close(hindsight.correct(line(4) + pull), line(4) + line(3))


def test_where_the_sensitivity_is_unknown_nothing_is_made_up_for() -> None:
    hindsight = Hindsight(Sensitivity.unknown(12), Reaction(classifier_free(3.0), 0, 12))
    hindsight.look_back(0, line(0), [], is_guided=False)
    assert torch.equal(hindsight.look_back(4, line(4) + 1.0, [(2, line(1))], is_guided=True), line(4) + 1.0)
    assert torch.equal(hindsight.correct(line(4) + 1.0), line(4) + 1.0)
