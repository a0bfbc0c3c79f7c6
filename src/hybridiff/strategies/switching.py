"""What strategies have in common that put cheaper steps between full ones (Jung et al. 2026, Sec. 3.2)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import torch

from ..denoiser.evaluation import Evaluation
from ..schedule.kinds import Phase, Policy, StepKind
from .base import Answer, RunContext, Strategy
from .cfg import CfgStrategy
from .steps.executor import StepExecutor


class SwitchingStrategy(CfgStrategy):
    """Full steps by condition-based partitioning, and between them, where a policy says so, steps of another kind.

    Attributes:
        policy: Says which steps are full.
        between: Answers the others.
    """

    policy: Policy
    between: StepExecutor
    measures_drift = True

    def __init__(self, context: RunContext, first: Evaluation) -> None:
        super().__init__(context, first)
        self.channel.ahead = self._ahead
        self._branches, self._network = first.branches, first.calls[0].network
        self._has_ended = False  # guidance
        self._forced: set[int] = set()  # steps that have to be full

    def phase(self, step: int) -> Phase:
        return self.policy.phase(step)

    def kind(self, step: int) -> StepKind:
        return StepKind.FULL if self._has_ended else self._scheduled(step)

    @property
    def taus(self) -> tuple[int | None, int | None]:
        return self.policy.tau1, self.policy.tau2

    def stages(self) -> dict[str, Any]:
        staged = self.between.staged
        return {} if staged is None or staged.split is None else asdict(staged.split)

    def notes(self) -> list[str]:
        return self.policy.notes()

    def disturb(self) -> None:
        self._forced.update(range(self.context.steps))

    def predict(self, evaluation: Evaluation, step: int) -> Answer:
        if self._is_over(step):
            return super().predict(evaluation, step)
        if evaluation.branches < self._branches:
            return self._predict_unguided(evaluation, step)
        self._has_ended = False
        if evaluation.calls[0].network is not self._network:  # nothing that another one predicted holds
            self._network = evaluation.calls[0].network
            self._forced.add(step)
        kind = self.kind(step)
        self.channel.begin_step(step, kind)
        if kind is not StepKind.FULL:
            return self.between.run(evaluation, step)
        over = self.phase(step) is Phase.CONNECT  # no step follows that needs what a full one leaves
        forward = None if over else self.between.run_full
        answer = self.full.run(evaluation, forward, lambda prediction: self._learn(step, prediction))
        self._decide(step, answer)
        return Answer(self.between.correct(answer.prediction), answer.reading)

    def hand_over(self, successor: Strategy, step: int, prediction: torch.Tensor, branches: int) -> torch.Tensor:
        """Both branches are given what makes up for the cached steps before, as the conditional one shows it."""
        conditional = prediction.chunk(branches)[-1]
        self.between.observe(step, conditional.clone())
        change = self.between.correct(conditional) - conditional
        if isinstance(successor, SwitchingStrategy):
            successor.policy.spent_before = self._spent()
        return prediction + change.repeat(branches, *[1] * (change.ndim - 1))

    def _spent(self) -> float:
        """The estimated error of what has been answered so far; 0 where nothing is promised."""
        measured, before = self.between.measure(), self.policy.spent_before
        spent = math.hypot(before, float(measured[1].max())) if measured else before
        is_told = self.context.heterogeneous  # a bit may decide which steps are full
        return self.channel.consensus(spent, "agree on what was spent")[0] if is_told else spent

    def _learn(self, step: int, prediction: torch.Tensor) -> Sequence[torch.Tensor]:
        """What a full step teaches the others; what they measured of it."""
        self.between.observe(step, prediction)
        return self.between.measure()

    def _decide(self, step: int, answer: Answer) -> None:
        """Let the policy see what a full step showed, on every rank the same."""
        assert answer.reading is not None
        shown = answer.reading.values()
        if self.context.heterogeneous:
            # A bit may decide which step is the next full one: what the leader measured holds.
            shown = self.channel.consensus(shown, "agree on what the step showed")[0]
        discrepancy, drift, *estimates = shown
        self.policy.observe(step, discrepancy, drift, estimates)

    def _predict_unguided(self, evaluation: Evaluation, step: int) -> Answer:
        """Guidance is off, or has ended early, and the parallel phase with it."""
        if not self._has_ended:
            self.policy.end_guidance(step)
        self._has_ended = True
        if self.phase(step) is Phase.PARALLEL:
            if self._scheduled(step) is not StepKind.FULL:
                self.between.end(step)
            self.policy.tau2 = step - 1
        self.channel.begin_step(step, StepKind.FULL, is_guided=False)
        prediction = self.full.run(evaluation).prediction
        self.between.observe(step, prediction.clone())
        return Answer(self.between.correct(prediction))

    def _scheduled(self, step: int) -> StepKind:
        """The kind of a step, whether guidance is on: ranks may learn of its end one after the other.

        Where the pipeline evaluates the network once more, a fresh prediction must not be mixed with a held one.
        """
        is_forced = self._is_over(step) or step in self.context.extra_steps or step in self._forced
        return StepKind.FULL if is_forced else self.policy.kind(step)

    def _is_over(self, step: int) -> bool:
        """Whether a step comes after all that the pipeline counted: it is one of another sample (Helios)."""
        return step >= self.context.steps

    def _ahead(self) -> tuple[int, StepKind]:
        """The next step that has messages."""
        step = self.channel.step + 1
        while self._scheduled(step) not in self.channel.messages:
            step += 1
        return step, self._scheduled(step)
