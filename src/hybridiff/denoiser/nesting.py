"""Splits within each other, for more than two stages that run at once (Jung et al. 2026, layer-wise extension).

Each stage has layers before and behind the next one, like the skins of an onion: skip connections stay within their
stage, whatever the network.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import replace

from ..errors import UsageError
from .split import TIE, Split

Chain = tuple[Split, ...]
"""Splits from the outermost to the innermost one."""


def choose_nested(splits: Sequence[Split], stages: int) -> Split:
    """The splits within each other whose largest stage has least work, as counted; among equals the fewest bytes.

    Args:
        splits: The legal ones.
        stages: Number of stages, at least 2.

    Raises:
        UsageError: the network is too small for so many.
    """
    least = _search(splits, stages)
    if least is None:
        raise UsageError(f"the network is too small to be cut into {stages} stages; use fewer ranks, or more images")
    chain = _search(splits, stages, limit=nest(least).larger_work + TIE)
    assert chain is not None
    return nest(chain)


def nest(chain: Chain) -> Split:
    """Splits within each other as one."""
    outer, *deeper = chain
    return replace(
        outer,
        inner=max(_inner_shares([(split.outer, split.inner) for split in chain])),
        inner_work=max(_inner_shares([(split.outer_work, split.inner_work) for split in chain])),
        down_bytes=sum(split.down_bytes for split in chain),
        up_bytes=sum(split.up_bytes for split in chain),
        deeper=tuple(split.point for split in deeper),
    )


def _search(splits: Sequence[Split], stages: int, limit: float | None = None) -> Chain | None:
    """The chain whose largest stage has least work, or that sends fewest bytes while no stage has more than a limit.

    By dynamic programming over the innermost split: bytes add up, and the largest work only grows.

    Returns:
        The splits; None where there are not so many within each other.
    """
    most, weight = (math.inf, 0) if limit is None else (limit, 1)
    best: list[tuple[tuple[int, float], Chain]] = [
        ((weight * _bytes(split), split.outer_work), (split,)) for split in splits if split.outer_work <= most
    ]
    for _ in range(stages - 2):
        longer = []
        for split in splits:
            found = [
                ((sent + weight * _bytes(split), max(work, _ring(chain[-1], split))), chain)
                for (sent, work), chain in best
                if _holds(chain[-1], split) and _ring(chain[-1], split) <= most
            ]
            if found:
                loss, chain = min(found, key=lambda one: one[0])
                longer.append((loss, (*chain, split)))
        best = longer
    whole = [
        ((sent, max(work, chain[-1].inner_work)), chain) for (sent, work), chain in best if chain[-1].inner_work <= most
    ]
    return min(whole, key=lambda one: one[0])[1] if whole else None


def _holds(outer: Split, inner: Split) -> bool:
    """Whether a split lies within another one, with layers of the stage between them on both sides."""
    return outer.point.entry < inner.point.entry and inner.point.exit < outer.point.exit


def _ring(outer: Split, inner: Split) -> float:
    """Work of the stage between two splits."""
    return outer.inner_work - inner.inner_work + outer.outer_work + outer.inner_work - 1


def _inner_shares(shares: Sequence[tuple[float, float]]) -> list[float]:
    """Of each inner stage, from what lies outside and inside of each split; what no stage owns counts in each."""
    owned_by_none = shares[0][0] + shares[0][1] - 1
    inside = [inner for _, inner in shares]
    return [one - within + owned_by_none for one, within in itertools.pairwise(inside)] + inside[-1:]


def _bytes(split: Split) -> int:
    return split.down_bytes + split.up_bytes
