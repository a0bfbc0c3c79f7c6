"""What every strategy is: a way for the ranks to answer the denoiser calls of one run."""

from __future__ import annotations

from abc import ABC, abstractmethod
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch

from ..config import ParallelConfig
from ..denoiser.evaluation import Evaluation
from ..denoiser.stages import StagedDenoiser
from ..distributed.channel import Channel
from ..distributed.reading import Reading
from ..report.speedup import RowPartition
from ..report.timeline import Timeline
from ..schedule.kinds import Phase, StepKind
from ..schedule.presets import ModelSettings
from ..sharding.ranks import RankGroups


@dataclass(frozen=True)
class Answer:
    """The prediction of a whole denoiser call.

    Attributes:
        prediction: All rows, branch after branch, the same on every rank.
        reading: What was measured of it, on its way to the host: the discrepancy, and the drift since the full step
            before where somebody asked; None where the call has one branch only.
    """

    prediction: torch.Tensor
    reading: Reading | None = None


@dataclass(frozen=True)
class RunContext:
    """What a strategy works with during one run.

    Attributes:
        config: What the user asked for.
        settings: What holds for the model.
        channel: The messages of the run.
        timeline: Where work is recorded.
        steps: Number of denoising steps of the strategy.
        pipe: The stock pipeline, to be read only.
        staged: The denoiser, ready to be split; None where it need not be.
        groups: The ranks as groups that share rows; None where each rank has rows of its own.
        heterogeneous: The ranks' devices are not alike, and may differ in the last bit of what they compute.
        extra_steps: Steps in which the pipeline evaluates the network once more (skip-layer guidance).
        eta: How much noise the pipeline has schedulers add that ask for it; None where it does not say.
        guidance_scale: By which guidance combines the branches; None where the pipeline does not say.
        coefficients: By which guidance multiplies the branches; as in the first step.
        scheduler: The pipeline's, before the first step of the run; to be copied only.
        first_timestep: That of the first step; None where it is not known.
        first_step: Steps of the run before those of the strategy, which counts its own from 0.
        undo: Undoes, at the end of the call, whatever it is handed: what a strategy attached.
    """

    config: ParallelConfig
    settings: ModelSettings
    channel: Channel
    timeline: Timeline
    steps: int
    pipe: Any
    staged: StagedDenoiser | None = None
    groups: RankGroups | None = None
    heterogeneous: bool = False
    extra_steps: frozenset[int] = frozenset()
    eta: float | None = None
    guidance_scale: float | None = None
    coefficients: tuple[float, ...] = (1.0,)
    scheduler: Any = None
    first_timestep: float | None = None
    first_step: int = 0
    undo: ExitStack = field(default_factory=ExitStack)


class Strategy(ABC):
    """A way for the ranks to answer denoiser calls together; one object serves one run, unless guidance begins late.

    Args:
        context: What it works with.
        first: The first call of the run.
    """

    name: ClassVar[str]
    shares_rows: ClassVar[bool] = True  # in full steps each rank has rows of its own
    hooks_layers: ClassVar[bool] = False  # though `needs_stages` says no
    hooks_attention: ClassVar[bool] = False  # within blocks, which then cannot be compiled
    saves_work: ClassVar[bool] = False  # it leaves evaluations out, or parts of them, whatever the number of ranks
    ideal_is_known: ClassVar[bool] = True  # the kinds of its steps say what they leave out
    cuts_stages: ClassVar[bool] = False  # ranks that share rows may each run a stage of the network on their part

    def __init__(self, context: RunContext, first: Evaluation) -> None:
        self.context = context
        self.channel = context.channel

    @classmethod
    def needs_stages(cls, config: ParallelConfig, settings: ModelSettings) -> bool:
        """Whether the network may have to be split."""
        return False

    @classmethod
    def adapt(cls, config: ParallelConfig, ranks: int) -> ParallelConfig:
        """What is done where the user asked for this strategy: another one, where this one is a preset of it."""
        return config

    @classmethod  # noqa: B027 - `config.check_ranks` knows what is built in
    def check_ranks(cls, config: ParallelConfig, ranks: int) -> None:
        """Refuse settings of its own, and numbers of ranks, that it cannot use; raises UsageError."""

    @classmethod  # noqa: B027 - most strategies have nothing to refuse
    def check_steps(cls, config: ParallelConfig, settings: ModelSettings, scheduler: Any, steps: int) -> None:
        """Refuse settings that contradict a number of denoising steps, before any network runs; raises UsageError."""

    def phase(self, step: int) -> Phase:
        """The phase in which a step runs."""
        return Phase.WARM_UP

    def kind(self, step: int) -> StepKind:
        """How the ranks share a step."""
        return StepKind.FULL

    @property
    def taus(self) -> tuple[int | None, int | None]:
        """(tau1, tau2) of the run as far as they are decided."""
        return None, None

    @property
    def partition(self) -> RowPartition | None:
        """How the rows of guided steps were shared between the ranks; None where none were so far."""
        return None

    def stages(self) -> dict[str, Any]:
        """The split in force and its costs, for the report; empty where there is none."""
        return {}

    def fidelity(self) -> dict[str, float]:
        """What was promised and what is estimated, in dB; empty where there was no promise."""
        return {}

    def notes(self) -> list[str]:
        """Sentences for the user about how the run went."""
        return []

    def disturb(self) -> None:  # noqa: B027 - most strategies have full steps only
        """The pipeline asked for more than the guided evaluation of a step: all steps to come are full."""

    def hand_over(self, successor: Strategy, step: int, prediction: torch.Tensor, branches: int) -> torch.Tensor:
        """Guidance has begun, and another strategy goes on from a full step: what that one answers.

        Args:
            successor: The other strategy.
            step: The step.
            prediction: Its own, all rows.
            branches: Guidance branches in it.
        """
        return prediction

    @abstractmethod
    def predict(self, evaluation: Evaluation, step: int) -> Answer:
        """Answer the guided evaluation of a step.

        Args:
            evaluation: The call; the same on every rank.
            step: The step it belongs to, from 0.
        """

    def predict_extra(self, evaluation: Evaluation) -> torch.Tensor:
        """Answer a further, unguided evaluation of the same step: on every rank by itself unless overridden."""
        return evaluation.run()
