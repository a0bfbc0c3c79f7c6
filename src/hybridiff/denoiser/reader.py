"""Which denoiser calls of a step make up its guided evaluation, and how a pipeline that is not known is found out."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch

from .call import DenoiserCall
from .deferred import DeferredTensor
from .evaluation import Evaluation, RecordedEvaluation
from .layout import BATCHED, SINGLE, GuidanceLayout, find_layout
from .replay import CallDifference, is_foreseen, leaves, snapshot, tensor_versions, unknown_things

_PLAIN_GUIDERS = frozenset(
    {
        "ClassifierFreeGuidance",
        "ClassifierFreeZeroStarGuidance",
        "AdaptiveProjectedGuidance",
        "AdaptiveProjectedMixGuidance",
        "FrequencyDecoupledGuidance",
        "MagnitudeAwareGuidance",
        "TangentialClassifierFreeGuidance",
    }
)
"""Guiders of diffusers that only combine predictions; the others change the network between its calls."""


_READ_NETWORK = frozenset({"sag_scale", "attn_store_steps"})
"""Arguments of pipelines that look at what layers of the network do with the whole batch."""


class CallReader:
    """Makes guided evaluations of denoiser calls, step by step, for a pipeline whose layout is known.

    Args:
        layout: How the pipeline does guidance.
        is_guided: Whether a first call of a step has all its branches.
        differences: What the later calls of a step are given that its first one is not.
    """

    def __init__(
        self,
        layout: GuidanceLayout,
        is_guided: Callable[[DenoiserCall], bool],
        differences: tuple[CallDifference, ...] = (),
    ) -> None:
        self.layout = layout
        self._is_guided = is_guided
        self._differences = list(differences)
        self._open: Evaluation | None = None  # of the step that runs
        self._prediction: torch.Tensor | None = None
        self._calls: list[DenoiserCall] = []
        self._versions: list[list[int]] = []

    def evaluation(self, call: DenoiserCall) -> Evaluation:
        """The guided evaluation that a first call of a step asks for."""
        if not self._is_guided(call):
            return Evaluation((call,), SINGLE.order, self.layout.is_whole)
        if self._differences:  # a later call may find the containers of this one changed
            call = replace(call, arguments=snapshot(call.arguments))
        foreseen = (difference.foresee(call) for difference in self._differences)
        return Evaluation((call, *foreseen), self.layout.order, self.layout.is_whole)

    def answer(self, evaluation: Evaluation, prediction: torch.Tensor) -> Any:
        """What the first call is answered; the rest is kept for the calls to come."""
        self._open, self._prediction, self._calls = evaluation, prediction, [evaluation.calls[0]]
        self._versions = [tensor_versions(call.arguments) for call in evaluation.calls]
        return evaluation.answer(prediction)

    def answer_later(self, call: DenoiserCall) -> Any | None:
        """What a later call of the step is answered; None where it is not what was foreseen."""
        assert self._open is not None
        assert self._prediction is not None
        place = len(self._calls)
        self._calls.append(call)
        if place < len(self._open.calls) and is_foreseen(self._open.calls[place], self._versions[place], call):
            return self._open.answer(self._prediction, place)
        if place <= len(self._differences) and call.rows == self._calls[0].rows:
            self._differences[place - 1] = CallDifference.between(self._calls[0], call)
        return None

    def beside_held(self, call: DenoiserCall, prediction: torch.Tensor) -> torch.Tensor:
        """What a later call that was not foreseen is answered, where the first one was answered by a held prediction.

        Guidance multiplies the difference of the two: they are made to err alike.
        """
        assert self._open is not None
        assert self._prediction is not None
        first, branches = self._open.calls[0], self._open.branches
        if len(self._open.calls) < branches or (call.rows, call.network) != (first.rows, first.network):
            return prediction
        held = self._prediction.chunk(branches)[self._open.order[0]]
        return prediction + (held - first.run()) if held.shape == prediction.shape else prediction

    def end_step(self) -> None:
        """A step with one call was the last one with guidance; where a further one comes, guidance is back."""
        if self._differences and self._calls:
            is_guided = len(self._calls) > 1
            self._is_guided = lambda _: is_guided
        self._open = self._prediction = None


def known_reader(pipe: Any) -> CallReader:
    """The reader of a pipeline that stacks its branches, the unconditional one first, and says whether it does."""
    return CallReader(BATCHED, lambda _: bool(pipe.do_classifier_free_guidance))


def batched_reader(layout: GuidanceLayout, rows: int) -> CallReader:
    """The reader of a pipeline that stacks its branches in so many rows, and has fewer once guidance has ended."""
    return CallReader(layout, lambda call: call.rows == rows)


class WatchedStep:
    """A step whose calls every rank answers on its own, to see how the pipeline does guidance.

    Args:
        pipe: The pipeline, to be read only.
    """

    def __init__(self, pipe: Any) -> None:
        self._pipe = pipe
        self._calls: list[DenoiserCall] = []
        self._predictions: list[torch.Tensor] = []
        self._shown: torch.Tensor | None = None

    @property
    def has_begun(self) -> bool:
        """Whether the denoiser was called in it."""
        return bool(self._calls)

    def answer(self, call: DenoiserCall) -> Any:
        """Evaluate a call as the stock pipeline does."""
        self._calls.append(replace(call, arguments=snapshot(call.arguments)))
        prediction = call.run()
        self._predictions.append(prediction.clone())  # the pipeline may do with its own what it likes
        return call.wrap(prediction)

    def show(self, given: torch.Tensor) -> None:
        """Take in what the scheduler is given; the first time in a step."""
        if self._shown is None and self._calls:
            self._shown = given.detach().clone()

    def layout(self) -> GuidanceLayout:
        """How the step did guidance; of calls with unlike rows the first one is the guided evaluation."""
        guided = bool(getattr(self._pipe, "do_classifier_free_guidance", False))
        return find_layout(self._predictions[: self._guided_calls], self._shown, guided)

    def evaluation(self, layout: GuidanceLayout) -> RecordedEvaluation:
        """The guided evaluation of the step, as it was answered."""
        calls = tuple(self._calls[: layout.calls])
        recorded = Evaluation(calls, layout.order)
        together = torch.cat(self._predictions[: layout.calls])
        return RecordedEvaluation(calls, layout.order, layout.is_whole, recorded.in_order_of_branches(together))

    def reader(self, layout: GuidanceLayout) -> CallReader:
        """What makes evaluations of the steps after this one."""
        if layout.calls == 1:
            return batched_reader(layout, self.rows)
        differences = tuple(CallDifference.between(self._calls[0], call) for call in self._calls[1 : layout.calls])
        return CallReader(layout, lambda _: True, differences)

    @property
    def rows(self) -> int:
        """Rows of the first call."""
        return self._calls[0].rows

    @property
    def extra_calls(self) -> int:
        """Calls of the step beside its guided evaluation."""
        return len(self._calls) - self._guided_calls

    def why_not_shared(self) -> str:
        """Why the calls of such steps have to be left to every rank; empty where they have not."""
        reading = _READ_NETWORK & inspect.signature(self._pipe.__call__).parameters.keys()
        if reading:
            return f"it reads the attention of its network ({min(reading)})"
        if self._guided_calls == 1:
            return ""
        if len({id(call.network) for call in self._calls}) > 1:
            return "it calls another network for each guidance branch"
        later = (leaf for call in self._calls[1:] for leaf in leaves(call.arguments))
        if any(isinstance(leaf, DeferredTensor) for leaf in later):  # the first call of a ControlNet is not deferred
            return "it calls its ControlNet for each guidance branch"
        states = sorted({name for call in self._calls for name in unknown_things(call)})
        if states:
            return f"its calls share a state ({', '.join(states)})"
        guiders = (getattr(self._pipe, name, None) for name in ("guider", "ocr_guider", "guider_2"))
        unknown = sorted({type(guider).__name__ for guider in guiders if guider is not None} - _PLAIN_GUIDERS)
        return f"{unknown[0]} changes the network between its calls" if unknown else ""

    @property
    def _guided_calls(self) -> int:
        shapes = [prediction.shape for prediction in self._predictions]
        same = next((i for i, shape in enumerate(shapes) if shape != shapes[0]), len(shapes))
        return same if self._is_split(same) else 1

    def _is_split(self, calls: int) -> bool:
        """Whether some calls have a branch each: the scheduler is given as many rows as each of them has, or all."""
        rows = len(self._predictions[0])
        return calls > 1 and (self._shown is None or len(self._shown) in (rows, calls * rows))


def count_steps(pipe: Any) -> int:
    """Number of denoising steps of the call that runs."""
    counted = getattr(pipe, "num_timesteps", None)
    if counted is not None:
        return int(counted)
    return len(pipe.scheduler.timesteps) - (getattr(pipe.scheduler, "begin_index", None) or 0)  # image to image
