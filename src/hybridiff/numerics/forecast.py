"""What a cached step answers: the last prediction, moved on along a line as far as lines were right before."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from .extrapolation import Extrapolation
from .guidance import guided

_DOUBTED, _TRUSTED = 0.6, 0.9
"""A line that explained less of the changes than the first is not followed, more than the second in full."""

_FORGETTING = 0.5
"""What a gap leaves of what was seen in the gaps before it."""


class Forecast:
    """Follows the line through the last two predictions, image by image, by a share that the run itself shows.

    At a full step hindsight says what the cached steps before should have answered. Of that, the share that lay along
    the line is taken the next time; but noise in the predictions is amplified by lines, and feeds itself by what the
    network makes of it. So the share counts only where lines explained most of the changes, and else the last
    prediction is held.

    Args:
        guidance_scale: By which the pipeline combines the branches; both are moved by the same share.
        places: Where steps lie in time (`Sensitivity.places`).
    """

    def __init__(self, guidance_scale: float, places: Sequence[float] | None = None) -> None:
        self._scale = guidance_scale
        self._line = Extrapolation(order=1, places=places)
        self._latest: torch.Tensor | None = None
        self._seen: torch.Tensor | None = None  # (3, B): along the line, of the line, of the changes; sums of products
        self._share: torch.Tensor | None = None  # one per row

    def at(self, step: int) -> torch.Tensor:
        """What to answer at a step after the latest full one, (2B, ...) in the dtype of the predictions."""
        assert self._latest is not None, "a forecast needs a full step"
        if self._share is None:
            return self._latest
        share = self._share.reshape(-1, *[1] * (self._latest.ndim - 1))
        return (self._latest.float() + share * self._moved(step)).to(self._latest.dtype)

    def learn(self, answered: Mapping[int, torch.Tensor], errors: Mapping[int, torch.Tensor]) -> None:
        """Take in what hindsight says of the cached steps since the latest full one, before the next is observed.

        Args:
            answered: What each of them answered.
            errors: By how much that was off.
        """
        assert self._latest is not None
        seen = torch.zeros(3, len(self._latest) // 2, device=self._latest.device)
        for step, error in errors.items():
            line = guided(self._moved(step), self._scale).flatten(1)
            change = guided(answered[step].float() + error - self._latest.float(), self._scale).flatten(1)
            seen += torch.stack([(line * change).sum(1), line.square().sum(1), change.square().sum(1)])
        self._seen = seen if self._seen is None else _FORGETTING * self._seen + seen
        self._share = _share(*self._seen).repeat(2)

    def observe(self, step: int, prediction: torch.Tensor) -> None:
        """Take in a full step."""
        self._line.observe(step, (prediction,))
        self._latest = prediction

    def _moved(self, step: int) -> torch.Tensor:
        """How far the line leads from the latest prediction to a step."""
        assert self._latest is not None
        return self._line.at(step)[0].float() - self._latest.float()


def _share(along: torch.Tensor, line: torch.Tensor, changes: torch.Tensor) -> torch.Tensor:
    """Regression of the changes on the line, times the trust in it; nothing where there was no line."""
    tiny = torch.finfo(torch.float32).tiny
    explained = along.clamp_min(0).square() / (line * changes).clamp_min(tiny)
    trust = ((explained - _DOUBTED) / (_TRUSTED - _DOUBTED)).clamp(0, 1)
    return (along / line.clamp_min(tiny)).clamp(0, 1) * trust
