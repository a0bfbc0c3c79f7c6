"""What every strategy is: a way for the ranks to answer one denoiser call."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch

from ..channel import Channel
from ..comm import Comm
from ..config import ParallelConfig
from ..denoiser.call import Evaluation
from ..switching import Phase


@dataclass(frozen=True)
class Answer:
    """The prediction of a whole denoiser call.

    Attributes:
        prediction: All rows, (rows, C, H, W), the same on every rank.
        discrepancy: `M` of the call; None where it has one branch only.
    """

    prediction: torch.Tensor
    discrepancy: float | None


class Strategy(ABC):
    """A way for the ranks to answer denoiser calls together; one object serves one run.

    Args:
        config: What the user asked for.
        channel: The messages of the run.
        steps: Number of denoising steps of the run.
    """

    name: ClassVar[str]

    def __init__(self, config: ParallelConfig, channel: Channel, steps: int) -> None:
        self.config = config
        self.channel = channel
        self.comm: Comm = channel.comm
        self.steps = steps

    @classmethod
    def check(cls, config: ParallelConfig, comm: Comm) -> None:
        """Refuse a number of ranks that the strategy cannot use.

        Raises:
            ValueError: with the numbers and the remedy; the same on every rank.
        """

    def phase(self, step: int) -> Phase:
        """The phase in which a step runs; asked before the step's first evaluation."""
        return Phase.WARM_UP

    @property
    def taus(self) -> tuple[int | None, int | None]:
        """(tau1, tau2) of the run as far as they are decided."""
        return None, None

    def notes(self) -> list[str]:
        """Sentences for the user about how the run went."""
        return []

    @abstractmethod
    def predict(self, evaluation: Evaluation, step: int) -> Answer:
        """Answer the guided evaluation of a step.

        Args:
            evaluation: The call; the same on every rank.
            step: The step it belongs to, from 0.
        """

    def predict_extra(self, evaluation: Evaluation, step: int) -> torch.Tensor:
        """Answer a further, unguided evaluation of the same step: on every rank by itself unless overridden."""
        return evaluation.run()
