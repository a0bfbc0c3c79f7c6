"""What a scheduler makes of predictions: how far each one moves the sample."""

from __future__ import annotations

import copy
import inspect
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any

import torch

_NEGLIGIBLE = 1e-3
"""A step that moves the sample by less than this share of another cannot make up for it."""

_MEMORY = 3
"""Steps after which no scheduler acts on a prediction any more."""

REPEAT = 0.25
"""How far a second evaluation at a time lies from the first, in steps."""

_LARGE = 1000.0
"""An impulse of this size moves the sample so many times as far as one of 1, where a scheduler is linear."""

_TOLERATED = 1e-3
"""Share by which it may be less or more: some schedulers compute in float32."""


@dataclass(frozen=True)
class Sensitivity:
    """How far every prediction of a run moves the samples after it.

    Schedulers are linear in the sample and the predictions, so a unit impulse in one prediction says it.

    Attributes:
        weights: One per step: how far its prediction moves the sample that the network sees next, 1 on average.
        on_sample: `on_sample[i][j]` says how far the prediction of step j moves the sample after step i, without the
            network's answers to it; empty where the scheduler is not linear.
        furthest: One per step: how far its prediction moves any sample that the network sees, the final one included.
            Empty where the final sample says it all: one evaluation at each time, and no noise.
        begin: Index of the run's first timestep among the scheduler's.
        is_stochastic: Whether the scheduler adds noise.
        places: Where the steps lie in time (`_places`); None where that is at their index.
        unknown_why: What the scheduler does that leaves its sensitivity unknown, as the rest of a sentence.
    """

    weights: list[float]
    on_sample: list[list[float]]
    furthest: list[float] = field(default_factory=list)
    begin: int = 0
    is_stochastic: bool = False
    places: tuple[float, ...] | None = None
    unknown_why: str = field(default="", compare=False)

    @classmethod
    def unknown(cls, steps: int, begin: int = 0, places: tuple[float, ...] | None = None, why: str = "") -> Sensitivity:
        """That of a scheduler of which nothing is known: all steps count alike."""
        return cls([1.0] * steps, [], begin=begin, places=places, unknown_why=why)

    def rest(self, first: int) -> Sensitivity:
        """That of the steps from one on: what a scheduler remembers of the steps before is as it is."""
        if not first:
            return self
        weights = self.weights[first:]
        mean = sum(weights) / len(weights)
        return replace(
            self,
            weights=[weight / mean for weight in weights] if mean > 0 else [1.0] * len(weights),
            on_sample=[row[first:] for row in self.on_sample[first:]],
            furthest=self.furthest[first:],
            begin=self.begin + first,
            places=None if self.places is None else self.places[first:],
        )

    @property
    def influence(self) -> list[float]:
        """How far an error in each prediction counts in the final sample; of a linear scheduler.

        Where noise is added, a scheduler by itself forgets what the network has seen and goes on with; where a step
        takes two evaluations, the sample of the first is thrown away. So there the most that any sample moves counts.
        """
        return self.furthest or self.on_sample[-1]

    def gain(self, earlier: int, step: int) -> float:
        """The change in the prediction of a step that moves the sample as a unit change in an earlier one did.

        It is compared a few steps later, as far as the run goes: in multistep schedulers a prediction acts on through
        their memory, and right after the step the effect is not all there yet. 0 where there is no such change: the
        sensitivity is unknown, or the step moves too little.
        """
        if not self.on_sample:
            return 0.0
        at_once = abs(self.on_sample[step][step])
        for row in range(min(step + _MEMORY, len(self.on_sample) - 1), step - 1, -1):
            wanted, own = self.on_sample[row][earlier], self.on_sample[row][step]
            if abs(own) > _NEGLIGIBLE * max(abs(wanted), at_once):  # the last step may forget all before it
                return wanted / own
        return 0.0


def measure_sensitivity(
    scheduler: Any, steps: int, first: float | None = None, eta: float | None = None
) -> Sensitivity:
    """Run a copy of a scheduler on unit impulses: a tenth of a second the first time, no network.

    Args:
        scheduler: Timesteps set, no step taken yet.
        steps: Number of steps of the run.
        first: Timestep of the first of them; the run has the last timesteps unless given.
        eta: What the pipeline hands each step that takes it, such as DDIM's; its default unless given.
    """
    options = {} if eta is None or "eta" not in inspect.signature(scheduler.step).parameters else {"eta": eta}
    identity = (type(scheduler), str(scheduler.config), str(scheduler.timesteps.tolist()), _sigmas(scheduler), options)
    begin = _first_index(scheduler, steps, first)
    with torch.device("cpu"):  # whatever the user's default is
        return _measured(_Question(str(identity), begin, steps, _copied(scheduler), options))


def _first_index(scheduler: Any, steps: int, first: float | None = None) -> int:
    """Index of a run's first timestep: not 0 from image to image, and not always followed by all that there are.

    Args:
        scheduler: Timesteps set.
        steps: Number of steps of the run.
        first: The timestep; the run has the last ones unless given.
    """
    last = len(scheduler.timesteps) - steps
    begin = getattr(scheduler, "begin_index", None)  # timesteps may repeat: where the pipeline says, it knows better
    if begin is not None:
        return min(last, int(begin))
    if first is None:
        return last
    return min(last, int((scheduler.timesteps.double() - first).abs().argmin()))


@dataclass(frozen=True)
class _Question:
    """Schedulers with the same identity give the same answer, which is measured once per process."""

    identity: str
    begin: int
    steps: int
    scheduler: Any = field(compare=False)
    options: dict[str, float] = field(compare=False)


@lru_cache(maxsize=8)
def _measured(question: _Question) -> Sensitivity:
    scheduler, begin, steps = question.scheduler, question.begin, question.steps
    places = _places(scheduler.timesteps[begin : begin + steps].tolist())
    try:
        responses, is_stochastic = _responses(question)
    except _UnknownError as error:
        return Sensitivity.unknown(steps, begin, places, str(error))
    scales = torch.tensor([_input_scale(scheduler, begin + i + 1) for i in range(steps)], dtype=torch.float64)
    moved = [abs(float(responses[i, i])) * float(scales[i]) for i in range(steps)]
    mean = sum(moved) / steps
    weights = [value / mean for value in moved] if mean > 0 else [1.0] * steps
    furthest: list[float] = []
    if is_stochastic or places is not None or getattr(scheduler, "order", 1) > 1:
        furthest = (responses.abs() * scales[:, None]).amax(0).tolist()
    return Sensitivity(weights, responses.tolist(), furthest, begin, is_stochastic, places)


def _places(timesteps: Sequence[float]) -> tuple[float, ...] | None:
    """Times count 0, 1, ...; a step with the timestep of the one before lies `REPEAT` after it.

    Second-order solvers evaluate the network twice at most times: where one step tries out its end, and where the next
    one begins.
    """
    repeats = [before == after for before, after in itertools.pairwise(timesteps)]
    places = itertools.accumulate(
        repeats, lambda at, again: at + REPEAT if again else math.floor(at) + 1.0, initial=0.0
    )
    return tuple(places) if any(repeats) else None


def _sigmas(scheduler: Any) -> str:
    sigmas = getattr(scheduler, "sigmas", None)
    return str(sigmas.tolist()) if isinstance(sigmas, torch.Tensor) else ""


class _UnknownError(Exception):
    """Why a scheduler's sensitivity cannot be measured, as the rest of a sentence that begins with its name."""


def _responses(question: _Question) -> tuple[torch.Tensor, bool]:
    """(steps, steps): row i is the sample after step i, element j the one whose only impulse is in prediction j.

    With it, whether the scheduler adds noise.

    Raises:
        _UnknownError: it is not linear by its configuration or as it runs, or cannot be run alone.
    """
    clipping = [name for name in ("thresholding", "clip_sample") if question.scheduler.config.get(name)]
    if clipping:
        raise _UnknownError(f"is not linear as it is configured ({clipping[0]})")
    impulses = torch.eye(question.steps, dtype=torch.float64)
    nothing = torch.zeros_like(impulses)
    try:
        # The same noise with and without the impulses: what schedulers add cancels.
        still, noisy = (_samples(question, nothing, seed) for seed in (0, 1))
        moved, far = (_samples(question, size * impulses) - still for size in (1.0, _LARGE))
    except (RuntimeError, ValueError, TypeError, AttributeError, IndexError) as error:  # a scheduler of another kind
        raise _UnknownError("cannot be run by itself") from error
    if not moved.isfinite().all() or not far.isfinite().all():
        raise _UnknownError("makes samples that are not finite")
    if ((far / _LARGE - moved).abs() > _TOLERATED * moved.abs().amax(1, keepdim=True)).any():
        raise _UnknownError("is not linear, or its noise is never the same")
    return moved, not torch.equal(still, noisy)


def _samples(question: _Question, predictions: torch.Tensor, seed: int = 0) -> torch.Tensor:
    """Samples that start from zero, one per column, after each step: (steps, columns), given the predictions."""
    copied = _copied(question.scheduler)
    timesteps = copied.timesteps[question.begin : question.begin + question.steps]
    sample = torch.zeros(predictions.shape[1], 1, 1, 1, dtype=torch.float64)  # as a batch: some need four dimensions
    rows = []
    with torch.random.fork_rng(devices=[]):  # schedulers that add noise must not disturb the user's
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would reach the GPUs' generators too
        for prediction, timestep in zip(predictions, timesteps, strict=True):
            if hasattr(copied, "scale_model_input"):
                copied.scale_model_input(sample, timestep)  # some warn unless it was called
            moved = copied.step(prediction.view_as(sample), timestep, sample, return_dict=False, **question.options)
            sample = moved[0].double()
            rows.append(sample.flatten())
    return torch.stack(rows)


def _input_scale(scheduler: Any, index: int) -> float:
    """By what a scheduler multiplies the sample of a timestep before the network sees it; 1 after the last one."""
    if index >= len(scheduler.timesteps) or not hasattr(scheduler, "scale_model_input"):
        return 1.0
    copied = _copied(scheduler)
    if hasattr(copied, "_step_index"):
        copied._step_index = index
    return float(copied.scale_model_input(torch.ones(1, 1, 1, 1, dtype=torch.float64), copied.timesteps[index]))


def _copied(scheduler: Any) -> Any:
    """A copy of a scheduler to be run on the CPU, wherever its tensors are."""
    copied = copy.deepcopy(scheduler)
    for name, value in vars(copied).items():
        if isinstance(value, torch.Tensor):
            setattr(copied, name, value.cpu())
    return copied
