"""`pipefusion`: patches of the picture run through stages of a transformer on a rank each (arXiv 2405.14430).

While rank i runs stage i on one patch, rank i-1 runs the stage before on the next one. Attention sees keys and values
of this step for the patches up to its own, and of the step before for later ones. Text goes with the first patch;
stages compute it anew with the others, and drop it. In the published system the last stage steps the scheduler patch by
patch, so that the next step begins before this one is over; here the scheduler is the pipeline's, and the stages drain
in each step. Patches are ranges of tokens, and every rank has all weights.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch

from ..config import ParallelConfig
from ..denoiser.blocks import Boundary
from ..denoiser.evaluation import Evaluation
from ..errors import UsageError
from ..schedule.kinds import StepKind
from ..schedule.presets import ModelSettings
from ..strategies.base import Answer, RunContext
from ..strategies.evaluator import BranchEvaluator
from ..strategies.offered import make_settings
from .chain import ChainedDenoiser, Cut, Outputs
from .costs import layer_costs
from .patch_messages import PatchMessages
from .patches import PatchedNetwork
from .planned import PlannedStep, PlannedStrategy

_FITS = "SD3Transformer2DModel"


@dataclass(frozen=True)
class PipeFusionSettings:
    """Settings of `pipefusion`."""

    patches: int | None = field(
        default=None, metadata={"help": "parts of the picture; as many as ranks unless given", "least": 1}
    )
    warm_up: int = field(default=1, metadata={"help": "full steps at the beginning", "least": 1})


class PipeFusionStrategy(PlannedStrategy):
    """Full steps on every rank, then patches that run through a pipeline of stages."""

    name = "pipefusion"
    hooks_attention = True

    def __init__(self, context: RunContext, first: Evaluation) -> None:
        super().__init__(context, first)
        stages, settings = context.channel.comm.size, make_settings(PipeFusionSettings, context.config.settings)
        self._patches = settings.patches or stages
        _check_network(first, self._patches)
        warm_up = settings.warm_up if stages > 1 else context.steps
        plan = self.plan(warm_up, 1, StepKind.PIPELINED)
        if StepKind.PIPELINED in plan:
            self.between = PatchStep(self.evaluator, *self._cut(first), plan, self._patches)

    @classmethod
    def needs_stages(cls, config: ParallelConfig, settings: ModelSettings) -> bool:
        return True

    @classmethod
    def check_ranks(cls, config: ParallelConfig, ranks: int) -> None:
        make_settings(PipeFusionSettings, config.settings)

    def notes(self) -> list[str]:
        if not self._costs:
            return []
        patches, stages = self._patches, self.channel.comm.size
        return [
            f"the pipeline drains in each step, which takes {patches + stages - 1} patches through one of {stages} "
            f"stages in place of {patches}; the ideal speed-up leaves out that each patch computes the text anew"
        ]

    def _cut(self, first: Evaluation) -> tuple[ChainedDenoiser, PatchedNetwork]:
        """The network in stages, by counted work, and in patches."""
        staged, network, comm = self.context.staged, first.calls[0].network, self.channel.comm
        assert staged is not None
        cost = layer_costs(self.context, first, comm.size)
        cut = Cut.chain([layer.work for layer in cost.layers], comm.size, {})
        shares, slots = cut.shares(cost), self._patches + comm.size - 1
        self._costs = {
            "largest": max(shares) * slots / self._patches,  # of a step: it takes so many patches one after the other
            "shares": shares,
            "begin": [staged.layers[cut.layers_of(stage)[0]].name for stage in range(cut.stages)],
            "patches": self._patches,
        }
        kept = [staged.layers[layer] for stage in comm.local_ranks for layer in cut.layers_of(stage)]
        patched = PatchedNetwork(network, kept)
        self.context.undo.callback(patched.remove)
        chained = ChainedDenoiser(network, staged.layers, cut)
        self.context.undo.callback(chained.remove)
        return chained, patched


def _check_network(first: Evaluation, patches: int) -> None:
    """Refuse networks of other families, and more patches than tokens."""
    network: Any = first.calls[0].network
    if type(network).__name__ != _FITS:
        raise UsageError(
            f"pipefusion needs a transformer such as {_FITS}, got {type(network).__name__}; use 'asyncdiff', or "
            "'distrifusion'"
        )
    height, width = (int(size) // network.config.patch_size for size in first.sample.shape[-2:])
    if patches > height * width:
        raise UsageError(f"a picture of {height * width} tokens cannot be cut into {patches} patches; use fewer")


class PatchStep(PlannedStep[PatchMessages]):
    """The steps after the warm-up.

    Args:
        evaluator: Evaluates full steps.
        chained: The network in stages.
        patched: The same network in patches.
        plan: The kind of each step.
        patches: How many.
    """

    def __init__(
        self,
        evaluator: BranchEvaluator,
        chained: ChainedDenoiser,
        patched: PatchedNetwork,
        plan: list[StepKind],
        patches: int,
    ) -> None:
        super().__init__(evaluator, plan, StepKind.PIPELINED)
        self._chained, self._patched, self._patches = chained, patched, patches
        self._whole: Outputs = {}  # of the last full step

    def run_full(self, evaluation: Evaluation, rank: int, rows: slice) -> torch.Tensor:
        with self.evaluator.timeline.span(rank, "whole network, all branches", "stage"):
            prediction, self._whole = self._chained.run_whole(self._patched.patch(evaluation))
        return prediction

    def observe(self, step: int, prediction: torch.Tensor) -> None:
        """Allocate the messages once shapes are known; on every rank after the same full step."""
        if self._made is None and self._whole:
            boundary = next(iter(self._whole.values()))
            self._talk_by(PatchMessages(self._channel, self._plan, boundary, self._patches, prediction))
        self._whole = {}

    def run(self, evaluation: Evaluation, step: int) -> Answer:
        messages = self._messages
        given: dict[int, Boundary] = {}
        predictions: dict[int, torch.Tensor] = {}
        for slot in range(messages.slots):
            made: dict[int, Boundary] = {}
            for rank, patch in messages.running(slot).items():
                if rank in self._channel.comm.local_ranks:
                    prediction, outputs = self._run_patch(evaluation, rank, patch, given)
                    if prediction is not None:
                        predictions[rank] = prediction
                    for output in outputs.values():
                        made[rank] = output
            if slot < messages.slots - 1:
                given = messages.hand_on(slot, made)
        answer = messages.broadcast(predictions)[0].clone()
        messages.end(predictions)
        return self._answer(answer, evaluation.branches)

    def _run_patch(
        self, evaluation: Evaluation, stage: int, patch: int, given: dict[int, Boundary]
    ) -> tuple[torch.Tensor | None, Outputs]:
        # All layers before the stage: what a ControlNet adds to what each returns is of the patch, too.
        needed = dict.fromkeys(range(self._chained.cut.layers_of(stage)[0]), given.get(stage, ()))
        with self.evaluator.timeline.span(stage, f"stage {stage}, patch {patch}", "stage"):
            return self._chained.run_stage(stage, self._patched.patch(evaluation, patch, self._patches), needed)
