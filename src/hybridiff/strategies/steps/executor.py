"""What every executor is: the way in which steps of one kind are answered."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch

from ...denoiser.evaluation import Evaluation
from ...denoiser.stages import StagedDenoiser
from ..base import Answer
from ..evaluator import BranchEvaluator


class StepExecutor(ABC):
    """Answers the steps between full ones, and learns from these what it needs.

    Args:
        evaluator: Evaluates calls on all ranks.

    Attributes:
        staged: The network, split; None where its steps need no split.
    """

    staged: StagedDenoiser | None = None

    def __init__(self, evaluator: BranchEvaluator) -> None:
        self.evaluator = evaluator

    @abstractmethod
    def run(self, evaluation: Evaluation, step: int) -> Answer:
        """Answer a step, in both branches."""

    def run_full(self, evaluation: Evaluation, rank: int, rows: slice) -> torch.Tensor:
        """A rank's rows of a full step through the whole network; keeps what steps after it need."""
        return self.evaluator.run(evaluation, rank, rows)

    def observe(self, step: int, prediction: torch.Tensor) -> None:  # noqa: B027
        """Take in the prediction of a full step, all rows."""

    def measure(self) -> Sequence[torch.Tensor]:
        """Numbers about the full step just observed that the policy wants to know, 1-D float32 on the device."""
        return ()

    def notes(self) -> list[str]:
        """Sentences for the user about what full steps showed of the run, once it is over."""
        return []

    def correct(self, prediction: torch.Tensor) -> torch.Tensor:
        """What a full step answers instead of its prediction, to make up for the steps before it."""
        return prediction

    def end(self, step: int) -> None:  # noqa: B027
        """Guidance ended before a step, and with it the steps of this kind."""


class NoStep(StepExecutor):
    """Where every step is full."""

    def run(self, evaluation: Evaluation, step: int) -> Answer:
        raise AssertionError(f"step {step} was to be full")
