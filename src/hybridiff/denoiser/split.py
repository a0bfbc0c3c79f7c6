"""Where a network is split into an outer and an inner stage, or more within each other, and what that costs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ..errors import UsageError
from .layers import Layer, NetworkCost

TIE = 0.02
"""Splits this near to the best, as a share of the network, count as equally good."""


@dataclass(frozen=True)
class SplitPoint:
    """A nested split.

    Attributes:
        entry: Index of the last outer layer before the inner stage.
        exit: Index of the last inner layer.
    """

    entry: int
    exit: int

    def is_inner(self, layer: int) -> bool:
        """Whether a layer belongs to the inner stage."""
        return self.entry < layer <= self.exit


@dataclass(frozen=True)
class Split:
    """A split point with its costs; or several within each other, which make more inner stages (`nesting.py`).

    Attributes:
        point: Where the network is split.
        entry: Name of the last outer layer before the inner stage.
        exit: Name of the last inner layer.
        outer: Time of the outer stage as a share of a whole evaluation; for reports, as times differ between runs.
        inner: That of the inner stage, likewise, or of the slowest one; what no stage owns (embeddings) counts in each.
        seconds: Time of a whole evaluation of one branch.
        down_bytes: Size of the boundary from the outer stage to the inner one; of all boundaries inwards.
        up_bytes: Size of the boundary back, likewise.
        outer_work: Counted work of the outer stage as a share of a whole evaluation: what split points are chosen by,
            as it is the same on every machine and at every call.
        inner_work: That of the inner stage, or of the largest one, likewise.
        deeper: Further split points, each within the one before it.
    """

    point: SplitPoint
    entry: str
    exit: str
    outer: float
    inner: float
    seconds: float
    down_bytes: int
    up_bytes: int
    outer_work: float
    inner_work: float
    deeper: tuple[SplitPoint, ...] = ()

    @property
    def points(self) -> tuple[SplitPoint, ...]:
        """All split points, the outermost first."""
        return (self.point, *self.deeper)

    def stage_of(self, layer: int) -> int:
        """The stage that a layer belongs to, 0 for the outer one."""
        return sum(point.is_inner(layer) for point in self.points)

    @property
    def larger_work(self) -> float:
        """Work of the larger stage: what a pipelined step waits for."""
        return max(self.outer_work, self.inner_work)


def make_split(point: SplitPoint, layers: Sequence[Layer], cost: NetworkCost) -> Split:
    """A split point of a measured network, with its costs."""
    inner_layers = [layer for i, layer in enumerate(cost.layers) if point.is_inner(i)]
    inner, inner_work = sum(layer.seconds for layer in inner_layers), sum(layer.work for layer in inner_layers)
    return Split(
        point=point,
        entry=layers[point.entry].name,
        exit=layers[point.exit].name,
        outer=(cost.seconds - inner) / cost.seconds,
        inner=(inner + cost.other_seconds) / cost.seconds,
        seconds=cost.seconds,
        down_bytes=cost.layers[point.entry].bytes,
        up_bytes=cost.layers[point.exit].bytes,
        outer_work=(cost.work - inner_work) / cost.work,
        inner_work=(inner_work + cost.other_work) / cost.work,
    )


def choose_balanced(splits: Sequence[Split]) -> Split:
    """The split whose larger stage has least work; among equals the one that sends fewest bytes.

    Raises:
        UsageError: there is none: the network is too small to be split.
    """
    return _choose(splits, lambda split: split.larger_work)


def choose_outer(splits: Sequence[Split], share: float) -> Split:
    """The split whose outer stage's work is nearest to a share of a whole evaluation; among equals the fewest bytes.

    Raises:
        UsageError: there is none: the network is too small to be split.
    """
    return _choose(splits, lambda split: abs(split.outer_work - share))


def _choose(splits: Sequence[Split], loss: Callable[[Split], float]) -> Split:
    if not splits:
        raise UsageError("the network is too small to be split into an outer and an inner stage")
    best = min(map(loss, splits))
    equal = [split for split in splits if loss(split) <= best + TIE]
    return min(equal, key=lambda split: (split.down_bytes + split.up_bytes, loss(split)))
