"""What a strategy begins with: at the first step of a run, and again where guidance begins in a later one."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any

from .agreement import Setup
from .config import parse_steps
from .denoiser.adapters.base import argument, guiding_scale
from .denoiser.evaluation import Evaluation
from .denoiser.layout import GuidanceLayout
from .denoiser.reader import count_steps
from .denoiser.rows import split_rows
from .distributed.channel import Channel
from .numerics.guidance import classifier_free
from .report.timeline import Timeline
from .running_step import RunningStep
from .sharding.ranks import RankGroups
from .strategies import STRATEGIES, RunContext, Strategy
from .strategies.offered import find_strategy


@dataclass(frozen=True)
class Beginning:
    """What all strategies of one run have in common.

    Attributes:
        setup: The parallel pipeline that is being called.
        arguments: Of the call, by name.
        channel: The messages of the run.
        timeline: Where work is recorded.
        heterogeneous: The ranks' devices are not alike.
        scheduler: A copy of the pipeline's, before its first step.
        first_timestep: That of the first step; None where it is not known.
        undo: Undoes at the end of the call what strategies attached.
    """

    setup: Setup
    arguments: dict[str, Any]
    channel: Channel
    timeline: Timeline
    heterogeneous: bool
    scheduler: Any
    first_timestep: float | None
    undo: ExitStack

    def strategy(self, evaluation: Evaluation, layout: GuidanceLayout, step: int, is_alone: bool) -> Strategy:
        """The strategy for a step and all after it.

        Args:
            evaluation: Of that step.
            layout: How the pipeline does guidance.
            step: The step, from 0.
            is_alone: The calls are left to every rank.
        """
        self.undo.close()  # what the strategy before this one attached
        setup, total = self.setup, count_steps(self.setup.pipe)
        config, extra = setup.config, setup.adapter.extra_steps(setup.pipe, self.arguments, total)
        if step and config.full_steps is not None:
            config = replace(config, full_steps=_steps_from(step, config.full_steps))
        context = RunContext(
            config=config,
            settings=setup.settings,
            channel=self.channel,
            timeline=self.timeline,
            steps=max(1, total - step),
            pipe=setup.pipe,
            staged=setup.staged,
            groups=setup.groups,
            heterogeneous=self.heterogeneous,
            extra_steps=frozenset(later - step for later in extra),
            eta=argument(setup.pipe, self.arguments, "eta"),
            guidance_scale=guiding_scale(setup.pipe, self.arguments),
            coefficients=self._coefficients(evaluation, layout),
            scheduler=self.scheduler,
            first_timestep=self.first_timestep,
            first_step=step,
            undo=self.undo,
        )
        chosen = STRATEGIES["serial"] if is_alone else find_strategy(config.strategy)
        return chosen(context, evaluation)

    def notes(
        self,
        evaluation: Evaluation,
        before: Sequence[RunningStep],
        why_alone: str,
        groups: RankGroups | None,
    ) -> list[str]:
        """How the ranks share a step and all after it, where that is not each rank its rows of two branches.

        Args:
            evaluation: Of that step.
            before: The steps before it.
            why_alone: Why the calls are left to every rank; empty where they are not.
            groups: The ranks as groups that share rows, as the strategy has them.
        """
        setup, rows = self.setup, evaluation.rows
        notes = late_notes(evaluation.branches, before)
        if evaluation.branches == 1:
            notes.append(self._unguided_note(evaluation))
        if evaluation.is_whole:
            notes.append("images of a batch and its branches depend on each other: every rank evaluates all")
        if why_alone:
            notes.append(f"{type(setup.pipe).__name__}: {why_alone}; every rank evaluates everything")
        if setup.groups.why_whole:
            notes.append(f"{setup.groups.why_whole}: ranks do not share images")
        if evaluation.is_whole or why_alone or not find_strategy(setup.config.strategy).shares_rows:
            return notes
        groups = groups or setup.groups
        shards = groups.count(evaluation)
        if groups.why_compiled:
            notes.append(f"{groups.why_compiled}: ranks do not share images")
        notes += self._displaced_notes(shards)
        count = setup.comm.size // shards
        idle = [own for own in split_rows(rows, evaluation.branches, count) or () if own.start == own.stop]
        if idle:
            notes.append(
                f"{len(idle) * setup.comm.size // count} of {setup.comm.size} ranks have nothing to do: a step has "
                f"{rows} rows, one an image and guidance branch; use fewer ranks, more images at a time, or shards"
            )
        return notes

    def _displaced_notes(self, shards: int) -> list[str]:
        config = self.setup.config
        if not config.displaced:
            return []
        if shards == 1:
            return ["no message is displaced: ranks do not share an image; --shards 2 has two do so"]
        if config.displaced_warm_up + 1 >= count_steps(self.setup.pipe):
            return [f"no message is displaced: displaced_warm_up is {config.displaced_warm_up}"]
        return [
            f"from step {config.displaced_warm_up + 1} on, messages within the network are those of the step before: "
            "images are approximate"
        ]

    def _unguided_note(self, evaluation: Evaluation) -> str:
        scale, name = guiding_scale(self.setup.pipe, self.arguments), "guidance_scale"
        why = " adds no branch here" if scale is not None and scale > 1 else ""
        if argument(self.setup.pipe, self.arguments, "true_cfg_scale") is not None:
            name, why = "true_cfg_scale", "; it takes more than 1, and a negative prompt"
        remedy = "the images of the batch are split instead" if evaluation.rows > 1 else "every rank computes the image"
        if self.setup.comm.size == 1:
            remedy = "nor is there anybody to share it with"
        if self.setup.groups.count(evaluation) > 1:
            remedy = "ranks share the image instead"
        return f"guidance is off ({name} {scale}{why}): there is one branch only, nothing to partition; {remedy}"

    def _coefficients(self, evaluation: Evaluation, layout: GuidanceLayout) -> tuple[float, ...]:
        """By which guidance multiplies the branches: as seen, or as its scale says."""
        if evaluation.branches == 1:
            return (1.0,)
        if layout.coefficients is not None:
            return layout.coefficients
        first, last = classifier_free(guiding_scale(self.setup.pipe, self.arguments) or 1.0)
        return (first, *[0.0] * (evaluation.branches - 2), last)


def late_notes(branches: int, before: Sequence[RunningStep]) -> list[str]:
    """That guidance began after some steps; where a further call showed it, it came in the last one of these."""
    counts = [*(step.branches for step in before), branches]
    place = next((place for place in range(1, len(counts)) if counts[place] > max(counts[:place])), None)
    if place is None:
        return []
    began, fewer = place - bool(before[place - 1].extra), max(counts[:place])
    return [f"guidance began at step {began}: the steps before had {fewer} of {counts[place]} branches"]


def _steps_from(first: int, full_steps: str) -> str:
    """The full steps from one on, counted from that one, which is full itself."""
    return ",".join(map(str, sorted({0} | {step - first for step in parse_steps(full_steps) if step >= first})))
