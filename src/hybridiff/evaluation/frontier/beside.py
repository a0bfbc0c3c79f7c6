"""Promises beside tolerances: how much faster one is where both keep the same."""

from __future__ import annotations

from collections.abc import Sequence

from ...numerics.interpolation import interpolate
from ..tables import Row
from .rows import upper_envelope

MEASURES = {
    "mean": "psnr",
    "mean, as calibrated": "psnr_counted",
    "all images as one": "psnr_pooled",
    "worst tenth": "psnr_worst_tenth",
}
"""What fidelity may be measured by, and its name in rows of a study."""


def beside_tolerances(rows: Sequence[Row]) -> list[tuple[str, ...]]:
    """For each promise of a study its ideal speed-up over that of a tolerance with the same fidelity; with a head.

    Only what has the reference's scheduler and steps is compared. A measure is left out where rows of an older study
    lack it, and an entry where a promise keeps less than any tolerance.
    """
    tolerances = [row for row in rows if row["method"] == "cached" and row["config"].get("devices") != 1]
    exact = [row for row in rows if row["config"].get("quality") == 1]
    promises = sorted((row for row in rows if row["method"] == "fidelity"), key=lambda row: -_promised(row))
    if not (tolerances and exact and promises):
        return []
    compared = [*tolerances, *exact, *promises]
    measures = {name: entry for name, entry in MEASURES.items() if all(entry in row for row in compared)}
    known = {entry: _speeds([*tolerances, *exact], entry) for entry in measures.values()}
    table = [[f"{_promised(row):g}", *(_faster(row, *one) for one in known.items())] for row in promises]
    return [("promised", *measures), *map(tuple, table)]


def _promised(row: Row) -> float:
    return float(row["config"]["fidelity"])


def _speeds(rows: Sequence[Row], measure: str) -> list[tuple[float, float]]:
    """The fastest settings, (fidelity, ideal speed-up), from low to high fidelity."""
    best = upper_envelope((row["ideal_speedup"], row[measure]) for row in rows)
    return [(fidelity, speed) for speed, fidelity in reversed(best)]


def _faster(row: Row, measure: str, speeds: Sequence[tuple[float, float]]) -> str:
    if row[measure] < speeds[0][0]:
        return "-"
    faster = round(row["ideal_speedup"] / interpolate(speeds, row[measure]) - 1, 2)
    return f"{faster + 0.0:+.0%}"  # not -0%
