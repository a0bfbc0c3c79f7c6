"""What every strategy is: a way for the ranks to answer one denoiser call."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from ..config import ParallelConfig
from ..denoiser.call import Evaluation
from ..denoiser.stages import StagedDenoiser
from ..distributed.channel import Channel
from ..distributed.comm import Comm
from ..report.report import Timeline
from ..report.speedup import RowShares
from ..schedule.kinds import Phase, StepKind


@dataclass(frozen=True)
class Answer:
    """The prediction of a whole denoiser call.

    Attributes:
        prediction: All rows, (rows, C, H, W), the same on every rank.
        discrepancy: `M` of the call; None where it has one branch only.
        drift: How far the predictions moved since the full step before; None where nobody asked.
    """

    prediction: torch.Tensor
    discrepancy: float | None
    drift: float | None = None


@dataclass(frozen=True)
class RunContext:
    """What a strategy works with during one run.

    Attributes:
        config: What the user asked for.
        channel: The messages of the run.
        timeline: Where work is recorded.
        steps: Number of denoising steps.
        pipe: The stock pipeline, to be read only.
        staged: The denoiser, ready to be cut; None where it need not be.
        unlike_devices: The ranks' devices are not of one kind, and may differ in the last bit of what they compute.
    """

    config: ParallelConfig
    channel: Channel
    timeline: Timeline
    steps: int
    pipe: Any
    staged: StagedDenoiser | None = None
    unlike_devices: bool = False


class Strategy(ABC):
    """A way for the ranks to answer denoiser calls together; one object serves one run.

    Attributes:
        shares: How the rows of guided steps are shared between the ranks; None where none were so far.
    """

    name: ClassVar[str]

    def __init__(self, context: RunContext) -> None:
        self.context = context
        self.config = context.config
        self.channel = context.channel
        self.comm: Comm = context.channel.comm
        self.shares: RowShares | None = None

    @classmethod
    def needs_stages(cls, config: ParallelConfig, pipe: Any) -> bool:
        """Whether the network has to be cut."""
        return False

    @classmethod
    def settings_of(cls, config: ParallelConfig, pipe: Any) -> str:
        """What stands for the model in files and presets, as text; ranks must have the same.

        Raises:
            ValueError: a file cannot be read.
        """
        return ""

    @classmethod  # noqa: B027 - most strategies have nothing to refuse
    def check_network(cls, config: ParallelConfig, staged: StagedDenoiser) -> None:
        """Refuse a network that the strategy cannot use; asked where it `needs_stages`.

        Raises:
            ValueError: with the numbers and the remedy; the same on every rank.
        """

    @classmethod  # noqa: B027
    def check_call(cls, config: ParallelConfig, pipe: Any, steps: int) -> None:
        """Refuse a number of denoising steps that the strategy cannot use, before any network runs.

        Raises:
            ValueError: with the numbers and the remedy; the same on every rank.
        """

    def phase(self, step: int) -> Phase:
        """The phase in which a step runs; asked before the step's first evaluation."""
        return Phase.WARM_UP

    def kind(self, step: int) -> StepKind:
        """How the ranks share a step."""
        return StepKind.FULL

    @property
    def taus(self) -> tuple[int | None, int | None]:
        """(tau1, tau2) of the run as far as they are decided."""
        return None, None

    def stages(self) -> dict[str, Any]:
        """The cut in force and its costs, for the report; empty where there is none."""
        return {}

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


def branch_rows(evaluation: Evaluation, branch: int) -> slice:
    """The rows of one guidance branch of a call: 0 is the unconditional one, 1 the conditional one."""
    rows = evaluation.rows // evaluation.branches
    return slice(branch * rows, (branch + 1) * rows)
