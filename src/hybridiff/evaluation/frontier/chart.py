"""The chart of a study: fidelity over ideal speed-up."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from typing import Any

from matplotlib.figure import Figure

from ..charts import COLORS, finish_plane, new_figure
from ..metrics import MOST_DECIBELS
from .rows import upper_envelope

OTHER_COLORS = ("#8c6d31", "#e69f00", "#cc79a7", "#27374d")
"""Of methods that are in a file, but not in the grid: one after the other."""


def frontier_figure(content: dict[str, Any]) -> Figure:
    """Draw fidelity over ideal speed-up: one dot per setting, one line per method that none of its settings beats.

    Args:
        content: Of a study's file, see `study.Study`.
    """
    figure = new_figure(9.5, 5.4)
    axes = figure.subplots()
    run, rows = content["run"], [row for row in content["rows"] if row["ideal_speedup"]]  # where it is known
    for method, color in _colors(row["method"] for row in rows).items():
        _draw_method(axes, method, color, [row for row in rows if row["method"] == method])
    _mark_published(axes, rows)
    scheduler, prompts = run["scheduler"].removesuffix("Scheduler"), len(run["prompts"])
    what = f"{run['model']}, {run['num_inference_steps']} steps, {scheduler}, {run['dtype']}, {prompts} prompts"
    finish_plane(axes, what)
    if rows:
        axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False, fontsize=9)
    return figure


def _colors(methods: Iterable[str]) -> dict[str, str]:
    """A color for each method, in the order of the legend."""
    found = set(methods)
    others = zip(sorted(found - COLORS.keys()), itertools.cycle(OTHER_COLORS))
    return {method: color for method, color in COLORS.items() if method in found} | dict(others)


def _draw_method(axes: Any, method: str, color: str, rows: Sequence[dict[str, Any]]) -> None:
    points = [_point(row) for row in rows if row["config"].get("devices") != 1]
    if points:
        best = upper_envelope(points)
        axes.scatter(*zip(*points, strict=True), color=color, alpha=0.3, s=14, linewidth=0)
        style = {"linewidth": 1.8, "marker": "o", "markersize": 4} if len(best) > 1 else {"linewidth": 0, "marker": "D"}
        axes.plot(*zip(*best, strict=True), color=color, label=method, **style)
    alone = [_point(row) for row in rows if row["config"].get("devices") == 1]
    if alone:
        style = {"linewidth": 0, "marker": "s", "markersize": 5, "markerfacecolor": "none"}
        axes.plot(*zip(*alone, strict=True), color=color, label=f"{method}, one device", **style)


def _point(row: dict[str, Any]) -> tuple[float, float]:
    return row["ideal_speedup"], min(row["psnr"], MOST_DECIBELS)


def _mark_published(axes: Any, rows: Sequence[dict[str, Any]]) -> None:
    """The published exchange at its best, and how far the others get before they fall below it."""
    published = [row for row in rows if row["method"] == "published"]
    if published:
        best, color = max(published, key=lambda row: row["psnr"]), COLORS["published"]
        speed, fidelity = best["ideal_speedup"], best["psnr"]
        label = f"published at its best:\n{speed:.2f}x, {fidelity:.1f} dB"
        axes.axhline(fidelity, color=color, linestyle=":", linewidth=1.2, zorder=0)
        axes.plot([speed], [fidelity], marker="*", markersize=13, color=color, linewidth=0, label=label)
