"""Condition-based partitioning that switches to an asynchronous pipeline (Jung et al. 2026, Sec. 3.2-3.3)."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import torch

from ..config import ParallelConfig
from ..denoiser.blocks import Boundary
from ..denoiser.call import Evaluation
from ..denoiser.cut import choose_balanced
from ..denoiser.stages import StagedDenoiser
from ..presets import published_settings
from ..switching import Phase, PublishedPolicy, PublishedSettings, StepKind
from .base import Answer, RunContext
from .cfg import CfgStrategy

INNER_RANK, OUTER_RANK = 0, 1
"""The rank of the unconditional branch runs the inner stage, that of the conditional branch the outer one."""


class HybridStrategy(CfgStrategy):
    """Partitioned steps, and in between pipelined ones in which each rank computes one stage.

    The published exchange: the outer stage runs on the conditional branch, the inner one on the unconditional branch
    and on the boundary of the step before; the one prediction serves both branches, so guidance vanishes there.
    """

    name = "hybrid"
    uses_stages = True

    def __init__(self, context: RunContext) -> None:
        super().__init__(context)
        assert context.staged is not None
        self._staged: StagedDenoiser = context.staged
        self._policy = PublishedPolicy(_settings(context.pipe, context.config, context.steps), context.steps)
        self._is_off = False  # whether this run cannot be pipelined at all
        self._off_note = ""
        self._latest = -1  # the latest step that was begun
        self._down: Boundary = ()  # of the conditional branch, kept by the outer rank
        self._up: Boundary = ()  # of the unconditional branch, kept by the inner rank
        self._down_shapes: list[torch.Size] = []
        self._up_shapes: list[torch.Size] = []
        self.channel.kind_ahead = lambda: self.kind(self._latest + 1)

    @classmethod
    def check_ranks(cls, ranks: int) -> None:
        if ranks != 2:
            raise ValueError(f"strategy 'hybrid' runs on 2 ranks, got {ranks}; use --devices 2, or strategy 'cfg'")

    @classmethod
    def check_network(cls, config: ParallelConfig, staged: StagedDenoiser) -> None:
        if config.cut is not None and not 0 <= config.cut < len(staged.cuts):
            raise ValueError(f"cut {config.cut} does not exist: this network has cuts 0 to {len(staged.cuts) - 1}")

    @classmethod
    def check_call(cls, config: ParallelConfig, pipe: Any, steps: int) -> None:
        PublishedPolicy(_settings(pipe, config, steps), steps)

    def phase(self, step: int) -> Phase:
        return Phase.WARM_UP if self._is_off else self._policy.phase(step)

    def kind(self, step: int) -> StepKind:
        is_guided = bool(self.context.pipe.do_classifier_free_guidance)
        return StepKind.FULL if self._is_off or not is_guided else self._policy.kind(step)

    @property
    def taus(self) -> tuple[int | None, int | None]:
        return (None, None) if self._is_off else (self._policy.tau1, self._policy.tau2)

    def stages(self) -> dict[str, Any]:
        return {} if self._is_off or self._staged.plan is None else asdict(self._staged.plan)

    def notes(self) -> list[str]:
        return [self._off_note] if self._off_note else self._policy.notes()

    def predict(self, evaluation: Evaluation, step: int) -> Answer:
        if step == 0:
            self._prepare(evaluation)
        self._latest = step
        if evaluation.branches == 1 and self._policy.kind(step) is StepKind.PIPELINED:
            self._policy.tau2 = step - 1  # guidance ended early, and the parallel stage with it
        self.channel.begin_step(self.kind(step))
        if self.kind(step) is StepKind.PIPELINED:
            return self._predict_pipelined(evaluation)
        answer = super().predict(evaluation, step)
        if step == 0 and not self._is_off:
            self._open_pipeline()
        if answer.discrepancy is not None and not self._is_off:
            self._policy.observe(step, answer.discrepancy)
        return answer

    def predict_extra(self, evaluation: Evaluation, step: int) -> torch.Tensor:
        return evaluation.run()

    def _prepare(self, evaluation: Evaluation) -> None:
        """See at the first step whether this run can be pipelined, and where the network is cut."""
        scheduler = self.context.pipe.scheduler
        order = getattr(scheduler, "order", 1)
        if order > 1:
            self._off_note = (
                f"{type(scheduler).__name__} is of order {order}: its steps cannot be pipelined, all ran partitioned"
            )
        self._is_off = order > 1 or evaluation.branches == 1
        if not self._is_off and self._staged.shape != evaluation.sample.shape:
            self._cut(evaluation)

    def _cut(self, evaluation: Evaluation) -> None:
        """Measure the blocks and cut; the leader's choice holds, as no two measurements are the same."""
        self._staged.uncut()
        plans = self._staged.measure(evaluation, _branch(evaluation, 1))
        plan = choose_balanced(plans) if self.config.cut is None else plans[self.config.cut]
        self._staged.cut(self.channel.agree(plan, "agree on the cut")[0], evaluation.sample.shape)

    def _evaluate_share(self, evaluation: Evaluation, rank: int, share: slice) -> torch.Tensor:
        may_switch = not self._is_off and self.phase(self._latest) is Phase.WARM_UP
        prediction = self._staged.run_whole(evaluation, share, capture=may_switch)
        if may_switch:
            self._keep_boundary(rank)
        return prediction

    def _keep_boundary(self, rank: int) -> None:
        """What the first pipelined step starts from: every full step might be the last before it."""
        self._down_shapes = [tensor.shape for tensor in self._staged.down]
        self._up_shapes = [tensor.shape for tensor in self._staged.up]
        if rank == OUTER_RANK:
            self._down = self._staged.down
        else:
            self._up = self._staged.up

    def _open_pipeline(self) -> None:
        self.channel.open_pipeline(
            peers={INNER_RANK: OUTER_RANK, OUTER_RANK: INNER_RANK},
            elements={INNER_RANK: _elements(self._up_shapes), OUTER_RANK: _elements(self._down_shapes)},
            source=OUTER_RANK,
            like=(self._down or self._up)[0],
        )

    def _predict_pipelined(self, evaluation: Evaluation) -> Answer:
        """One grouped swap of last step's boundaries, both stages at once, then the prediction."""
        received = self.channel.swap({INNER_RANK: self._up, OUTER_RANK: self._down})
        prediction: dict[int, torch.Tensor] = {}
        if INNER_RANK in self.comm.members:
            down = _unpack(received[INNER_RANK], self._down_shapes)
            with self.context.timeline.span(INNER_RANK, "inner stage, unconditional", "stage"):
                self._up = self._staged.run_inner(evaluation, _branch(evaluation, 0), down)
        if OUTER_RANK in self.comm.members:
            up = _unpack(received[OUTER_RANK], self._up_shapes)
            with self.context.timeline.span(OUTER_RANK, "outer stage, conditional", "stage"):
                prediction[OUTER_RANK] = self._staged.run_outer(evaluation, _branch(evaluation, 1), up=up)
            self._down = self._staged.down
        flat = self.channel.hand_out(prediction)
        self.channel.settle_pipelined()
        both = flat.view(1, -1, *evaluation.row_shape).expand(2, -1, *evaluation.row_shape)
        return Answer(both.reshape(evaluation.rows, *evaluation.row_shape), None)  # eps_u = eps_c


def _settings(pipe: Any, config: ParallelConfig, steps: int) -> PublishedSettings:
    preset = published_settings(pipe).scaled(steps)
    return preset.replaced(config.slope_window, config.slope_threshold, config.parallel_steps, config.tau_cap)


def _branch(evaluation: Evaluation, branch: int) -> slice:
    rows = evaluation.rows // evaluation.branches
    return slice(branch * rows, (branch + 1) * rows)


def _elements(shapes: list[torch.Size]) -> int:
    return sum(shape.numel() for shape in shapes)


def _unpack(flat: torch.Tensor, shapes: list[torch.Size]) -> Boundary:
    """The tensors of a boundary out of a packet, as views."""
    parts = torch.split(flat, [shape.numel() for shape in shapes])
    return tuple(part.view(shape) for part, shape in zip(parts, shapes, strict=True))
