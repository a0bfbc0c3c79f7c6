"""Charts of many runs: the frontier of a study, and what a calibration measured."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..report.plots import LINE_COLOR, MARK_COLOR
from ..schedule.calibration import Entry
from .bands import expectations
from .calibrate import MOST_DECIBELS
from .rows import upper_envelope

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLORS = {
    "quality": "#000000",
    "fidelity": "#cc3311",
    "cached": "#0072b2",
    "typical": "#56b4e9",
    "fixed": "#7a5195",
    "reuse": "#009e73",
    "fewer-steps": "#808080",
    "published": "#d55e00",
    "published-rule": "#d55e00",
    "exact": "#27374d",
}
OTHER_COLORS = ("#8c6d31", "#e69f00", "#cc79a7", "#27374d")
"""Of methods that are in a file, but not in the grid: one after the other."""


def plot_frontier(content: dict[str, Any], path: str | Path) -> None:
    """Write the chart of a study; the path's suffix decides the format. See `frontier_figure`."""
    frontier_figure(content).savefig(path)


def plot_calibration(model: str, entry: Entry, path: str | Path) -> None:
    """Write the chart of a calibration; the path's suffix decides the format. See `calibration_figure`."""
    calibration_figure(model, entry).savefig(path)


def frontier_figure(content: dict[str, Any]) -> Figure:
    """Draw fidelity over ideal speed-up: one dot per setting, one line per method that none of its settings beats.

    Args:
        content: Of a study's file, see `study.Study`.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.5, 5.4), dpi=120, layout="constrained")
    axes = figure.subplots()
    run, rows = content["run"], content["rows"]
    for method, color in _colors(row["method"] for row in rows).items():
        _draw_method(axes, method, color, [row for row in rows if row["method"] == method])
    _mark_published(axes, rows)
    axes.set_title(
        f"{run['model']}, {run['num_inference_steps']} steps, {run['scheduler'].removesuffix('Scheduler')}, "
        f"{run['dtype']}, {len(run['prompts'])} prompts",
        fontsize=10,
        loc="left",
    )
    _label_plane(axes)
    if rows:
        axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False, fontsize=9)
    return figure


def calibration_figure(model: str, entry: Entry) -> Figure:
    """Draw what was measured: discrepancy and drift over the steps, and PSNR over ideal speed-up with the qualities.

    Args:
        model: What was calibrated.
        entry: What came of it.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12.0, 4.2), dpi=120, layout="constrained")
    discrepancy, drift, plane = figure.subplots(1, 3, width_ratios=(1, 1, 1.3))
    _draw_curve(discrepancy, entry, "discrepancy", "discrepancy of the branches", first=0)
    cap = entry.published.tau_cap
    discrepancy.axvline(cap, color=MARK_COLOR, linestyle="--", linewidth=1.2, label=f"tau_cap = {cap}")
    discrepancy.legend(fontsize=9, loc="upper right", framealpha=1, edgecolor="white")
    _draw_curve(drift, entry, "drift", "drift from one step to the next", first=1)
    _draw_sweeps(plane, entry)
    discrepancy.set_title(
        f"{model}, {entry.scheduler.removesuffix('Scheduler')}, {entry.num_inference_steps} steps, {entry.prompts} "
        "prompts: mean and two standard deviations",
        fontsize=10,
        loc="left",
    )
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


def _draw_curve(axes: Any, entry: Entry, name: str, label: str, first: int) -> None:
    means, deviations = entry.curves[name], entry.curves[f"{name}_deviation"]
    steps = range(first, first + len(means))
    bottom = 0.5 * min(means) or 1e-3
    low = [max(bottom, mean - 2 * deviation) for mean, deviation in zip(means, deviations, strict=True)]
    high = [mean + 2 * deviation for mean, deviation in zip(means, deviations, strict=True)]
    axes.fill_between(steps, low, high, color=LINE_COLOR, alpha=0.18, linewidth=0)
    axes.plot(steps, means, color=LINE_COLOR, linewidth=1.8)
    axes.set(yscale="log", ylim=(bottom, None), xlabel="denoising step", ylabel=label)
    axes.yaxis.set_major_formatter("{x:g}")
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.spines[["top", "right"]].set_visible(False)


def _draw_sweeps(axes: Any, entry: Entry) -> None:
    for kind in dict.fromkeys(point["step_kind"] for point in entry.measured):
        points = sorted((p["ideal_speedup"], p["psnr"]) for p in entry.measured if p["step_kind"] == kind)
        is_chosen = any(band.step_kind == kind for band in entry.bands)
        style = {"linewidth": 1.8} if is_chosen else {"linewidth": 1.2, "linestyle": "--"}
        label = f"{kind} (chosen)" if is_chosen else kind
        axes.plot(*zip(*points, strict=True), color=COLORS[kind], marker="o", markersize=4, label=label, **style)
    for quality, point in expectations(entry).items():
        at = (point.ideal_speedup, point.psnr)
        axes.plot(*at, marker="D", color=MARK_COLOR, markersize=6)
        axes.annotate(f"quality {quality:g}", at, xytext=(7, 4), textcoords="offset points", fontsize=9)
    axes.margins(x=0.12)
    _label_plane(axes)
    axes.legend(frameon=False, fontsize=9)


def _label_plane(axes: Any) -> None:
    ylabel = f"PSNR against one device, dB, at most {MOST_DECIBELS:g}"
    axes.set(xlabel="ideal speed-up over one device", ylabel=ylabel, axisbelow=True)
    axes.xaxis.set_major_formatter("{x:g}x")
    axes.grid(color="#e6e6e6", linewidth=0.8)
    axes.spines[["top", "right"]].set_visible(False)
