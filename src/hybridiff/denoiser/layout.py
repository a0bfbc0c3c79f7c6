"""How a pipeline does guidance, told from what it does with the predictions of one step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # reports hold layouts; who reads them needs no torch
    import torch

_LARGEST_MISFIT = 0.5
"""Share of what a scheduler was given that may remain unexplained: guidance is rescaled, part of it is a variance."""


@dataclass(frozen=True)
class GuidanceLayout:
    """Where the guidance branches are in the denoiser calls of a step.

    Attributes:
        calls: Denoiser calls of a step that make one guided evaluation.
        order: The branches in the order in which the calls have them: 0 is the one that is guided away from, the last
            one that which is guided to.
        coefficients: What guidance multiplies the branches by, 0 first; None where it is not known.
        is_whole: Rows of one call cannot be evaluated apart.
    """

    calls: int
    order: tuple[int, ...]
    coefficients: tuple[float, ...] | None = None
    is_whole: bool = False

    @property
    def branches(self) -> int:
        """Number of guidance branches."""
        return len(self.order)


BATCHED = GuidanceLayout(1, (0, 1))
"""One call, the unconditional branch first: most pipelines."""

SINGLE = GuidanceLayout(1, (0,), (1.0,))
"""No guidance."""


def find_layout(predictions: Sequence[torch.Tensor], shown: torch.Tensor | None, guided: bool) -> GuidanceLayout:
    """How a step did guidance.

    Args:
        predictions: What the denoiser calls of a step predicted, (rows, ...) each.
        shown: What the pipeline gave its scheduler; None where it was not seen.
        guided: Whether guidance is on, as far as the pipeline says; only asked where nothing was seen.
    """
    calls = len(predictions)
    branches = calls
    if calls == 1:
        branches = _stacked(predictions[0], shown) if shown is not None and shown.ndim else 1 + guided
    if branches <= 1:
        return SINGLE
    parts = predictions if calls > 1 else predictions[0].chunk(branches)
    found = None if shown is None else _coefficients(parts, shown)
    if found is None:  # the unconditional branch comes first in a batch, and last where there is a call for each
        usual = tuple(range(branches))
        return GuidanceLayout(calls, usual[::-1] if calls > 1 else usual)
    ranked = sorted(range(branches), key=lambda part: found[part])
    order = tuple(ranked.index(part) for part in range(branches))
    return GuidanceLayout(calls, order, tuple(found[part] for part in ranked))


def _stacked(prediction: torch.Tensor, shown: torch.Tensor) -> int:
    """How many branches a prediction has for each thing that the scheduler was given."""
    return len(_frames(prediction) if _is_in_frames(prediction, shown) else prediction) // len(shown)


def _is_in_frames(prediction: torch.Tensor, shown: torch.Tensor) -> bool:
    """Whether a film is predicted, (rows, C, F, ...), whose frames the scheduler was given: (rows * F, C, ...)."""
    return prediction.ndim == shown.ndim + 1 and (*prediction.shape[1:2], *prediction.shape[3:]) == shown.shape[1:]


def _frames(film: torch.Tensor) -> torch.Tensor:
    """(rows, C, F, ...) as (rows * F, C, ...)."""
    return film.transpose(1, 2).flatten(0, 1)


def _coefficients(parts: Sequence[torch.Tensor], shown: torch.Tensor) -> list[float] | None:
    """What the branches were multiplied by to make what the scheduler was given, by least squares; sum 1.

    None where that explains too little.
    """
    import torch

    columns = [_like(part, shown) for part in parts]
    if any(column is None for column in columns):
        return None
    matrix = torch.stack([column.flatten().cpu().double() for column in columns if column is not None], 1)
    target = shown.flatten().cpu().double()
    if not (matrix.isfinite().all() and target.isfinite().all()):
        return None  # the run says so where it reads how the ranks fared
    solved = torch.linalg.lstsq(matrix, target[:, None]).solution.flatten()
    misfit = float((matrix @ solved - target).norm() / target.norm().clamp_min(1e-12))
    total = float(solved.sum())
    if not misfit <= _LARGEST_MISFIT or abs(total) < 1e-3 or float(solved.abs().min()) < 1e-3:
        return None  # what was shown was one branch alone, or nothing that is known
    return [value / total for value in solved.tolist()]


def _like(part: torch.Tensor, shown: torch.Tensor) -> torch.Tensor | None:
    """The part of a prediction that a scheduler was given: more channels, or more tokens, are not for it."""
    if part.shape == shown.shape:
        return part
    if _is_in_frames(part, shown):
        return _frames(part)
    if part.ndim == shown.ndim and all(a >= b for a, b in zip(part.shape, shown.shape, strict=True)):
        return part[tuple(slice(0, size) for size in shown.shape)]
    return part.reshape(shown.shape) if part.numel() == shown.numel() else None
