"""The guided evaluation of a step, in however many denoiser calls a pipeline asks for it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from .call import DenoiserCall


@dataclass(frozen=True)
class Evaluation:
    """The rows of all guidance branches, the unconditional branch first and the conditional one last.

    A pipeline stacks the branches in one call, in either order, or makes a call for each. Here and in all that works
    with predictions, rows are in the order of the branches.

    Attributes:
        calls: The denoiser calls: one with all branches, or one for each.
        order: The branches in the order in which the calls have them.
        is_whole: Its rows cannot be evaluated apart: every rank evaluates all of them.
    """

    calls: tuple[DenoiserCall, ...]
    order: tuple[int, ...] = (0, 1)
    is_whole: bool = False

    @property
    def branches(self) -> int:
        """Guidance branches: 2 (unconditional, conditional), 1 without guidance, or more."""
        return len(self.order)

    @property
    def sample(self) -> torch.Tensor:
        """A tensor of the calls' dtype and device: the noisy sample of the first one."""
        return self.calls[0].sample

    @property
    def rows(self) -> int:
        """Samples in the calls, all branches together."""
        return sum(call.rows for call in self.calls)

    def run(self, rows: slice | None = None) -> torch.Tensor:
        """Evaluate some of the rows or all of them: (rows, ...)."""
        if rows is None or rows == slice(0, self.rows):
            return self.in_order_of_branches(torch.cat([call.run() for call in self.calls]))
        return torch.cat([call.run(part) for call, part in self._parts(rows)])

    def answer(self, prediction: torch.Tensor, call: int = 0) -> Any:
        """What a call is answered, of a prediction of all rows."""
        parts = prediction.chunk(self.branches)
        if len(self.calls) > 1:
            return self.calls[call].wrap(parts[self.order[call]])
        ordered = self.order == tuple(range(self.branches))
        return self.calls[0].wrap(prediction if ordered else torch.cat([parts[branch] for branch in self.order]))

    def in_order_of_branches(self, prediction: torch.Tensor) -> torch.Tensor:
        """A prediction whose rows are in the order of the calls, in that of the branches."""
        if self.order == tuple(range(self.branches)):
            return prediction
        parts = prediction.chunk(self.branches)
        return torch.cat([parts[self.order.index(branch)] for branch in range(self.branches)])

    def _parts(self, rows: slice) -> Iterator[tuple[DenoiserCall, slice]]:
        """Where some rows stand: calls, and rows in them; what lies side by side is one part."""
        size, pending = self.rows // self.branches, None
        for branch in range(rows.start // size, (rows.stop - 1) // size + 1):
            within = slice(max(rows.start - branch * size, 0), min(rows.stop - branch * size, size))
            place = self.order.index(branch)
            call, offset = (self.calls[0], place * size) if len(self.calls) == 1 else (self.calls[place], 0)
            part = slice(offset + within.start, offset + within.stop)
            if pending is not None and pending[0] is call and pending[1].stop == part.start:
                pending = call, slice(pending[1].start, part.stop)
                continue
            if pending is not None:
                yield pending
            pending = call, part
        if pending is not None:
            yield pending


@dataclass(frozen=True)
class RecordedEvaluation(Evaluation):
    """An evaluation whose calls were answered already, by every rank on its own.

    Attributes:
        prediction: All rows in the order of the branches.
    """

    prediction: torch.Tensor | None = None

    def run(self, rows: slice | None = None) -> torch.Tensor:
        assert self.prediction is not None
        return self.prediction if rows is None else self.prediction[rows]


def can_be_evaluated_apart(recorded: Evaluation, parts: Sequence[slice]) -> bool:
    """Whether parts of the rows, evaluated apart, are what they are in whole calls.

    Args:
        recorded: Answers with what the whole calls predicted.
        parts: Rows to evaluate; empty ones are passed over. What is a whole call need not be tried.
    """
    apart = Evaluation(recorded.calls, recorded.order)
    size = recorded.calls[0].rows
    whole = [slice(call * size, (call + 1) * size) for call in range(len(recorded.calls))]
    mixed = [part for part in parts if part.stop > part.start and part not in whole]
    try:
        return all(are_close(apart.run(part), recorded.run(part)) for part in mixed)
    except (RuntimeError, ValueError, TypeError, IndexError):  # the network insists on all rows at once
        return False


def are_close(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Whether two predictions are the same but for rounding: batches of other sizes round otherwise."""
    tolerated = 2e-3 if one.dtype is torch.float32 else 5e-2
    return float((one.float() - other.float()).norm()) <= tolerated * float(other.float().norm())
