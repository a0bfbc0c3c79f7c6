"""Figures of many runs: the frontier of a study, and what a calibration measured."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..report.plots import LINE_COLOR, MARK_COLOR
from ..schedule.calibration import Entry
from .calibrate import MOST_DECIBELS, expectations
from .frontier import upper_envelope

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FAMILY_COLORS = {
    "pipelined": "#e69f00",
    "quality": "#000000",
    "skipped": "#0072b2",
    "typical": "#56b4e9",
    "fixed": "#7a5195",
    "mixed": "#cc79a7",
    "reuse": "#009e73",
    "carry": "#e69f00",
    "cache": "#8c6d31",
    "fewer-steps": "#808080",
    "published": "#d55e00",
    "published-rule": "#d55e00",
    "exact": "#27374d",
}


def plot_frontier(content: dict[str, Any], path: str | Path) -> None:
    """Write the figure of a study; the path's suffix decides the format. See `frontier_figure`."""
    frontier_figure(content).savefig(path)


def frontier_figure(content: dict[str, Any]) -> Figure:
    """Draw fidelity over ideal speed-up: a dot a setting, and for each family the line that none of its settings beats.

    Args:
        content: Of a study's file, see `study.Study`.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.5, 5.4), dpi=120, layout="constrained")
    axes = figure.subplots()
    rows = content["rows"]
    known = [family for family in FAMILY_COLORS if any(row["family"] == family for row in rows)]
    others = sorted({row["family"] for row in rows} - set(known))
    for family in known + others:
        _draw_family(axes, family, [row for row in rows if row["family"] == family])
    _mark_published(axes, rows)
    _label_frontier(axes, content)
    return figure


def _draw_family(axes: Any, family: str, rows: Sequence[dict[str, Any]]) -> None:
    color = FAMILY_COLORS.get(family, LINE_COLOR)
    points = [_point(row) for row in rows if row["config"].get("devices") != 1]
    if points:
        best = upper_envelope(points)
        axes.scatter(*zip(*points, strict=True), color=color, alpha=0.3, s=14, linewidth=0)
        style = {"linewidth": 1.8, "marker": "o", "markersize": 4} if len(best) > 1 else {"linewidth": 0, "marker": "D"}
        axes.plot(*zip(*best, strict=True), color=color, label=family, **style)
    alone = [_point(row) for row in rows if row["config"].get("devices") == 1]
    if alone:
        style = {"linewidth": 0, "marker": "s", "markersize": 5, "markerfacecolor": "none"}
        axes.plot(*zip(*alone, strict=True), color=color, label=f"{family}, one device", **style)


def _point(row: dict[str, Any]) -> tuple[float, float]:
    return row["ideal_speedup"], min(row["psnr"], MOST_DECIBELS)


def _mark_published(axes: Any, rows: Sequence[dict[str, Any]]) -> None:
    """The published exchange at its best, and how far the others get before they fall below it."""
    published = [row for row in rows if row["family"] == "published"]
    if not published:
        return
    best = max(published, key=lambda row: row["psnr"])
    speed, fidelity = best["ideal_speedup"], best["psnr"]
    axes.axhline(fidelity, color=FAMILY_COLORS["published"], linestyle=":", linewidth=1.2, zorder=0)
    axes.plot([speed], [fidelity], marker="*", markersize=15, color=FAMILY_COLORS["published"], linewidth=0)
    axes.annotate(
        f"published exchange at its best: {speed:.2f}x, {fidelity:.1f} dB",
        (speed, fidelity),
        xytext=(10, -10),
        textcoords="offset points",
        fontsize=8,
        color=FAMILY_COLORS["published"],
        bbox={"facecolor": "white", "alpha": 0.8, "linewidth": 0, "pad": 1},
    )


def _label_frontier(axes: Any, content: dict[str, Any]) -> None:
    run = content["run"]
    if any(row["psnr"] > MOST_DECIBELS for row in content["rows"]):
        axes.axhline(MOST_DECIBELS, color=LINE_COLOR, linewidth=0.8, zorder=0)
        axes.annotate(
            f"{MOST_DECIBELS:g} dB and nearer",
            (1.0, MOST_DECIBELS),
            xycoords=("axes fraction", "data"),
            xytext=(-4, 3),
            textcoords="offset points",
            ha="right",
            fontsize=8,
            color=LINE_COLOR,
        )
    axes.set_title(
        f"{run['model']}, {run['num_inference_steps']} steps, {run['scheduler'].removesuffix('Scheduler')}, "
        f"{run['dtype']}, {len(run['prompts'])} prompts",
        fontsize=10,
        loc="left",
    )
    _label_plane(axes)
    if content["rows"]:
        axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False, fontsize=9)


def _label_plane(axes: Any) -> None:
    axes.set_xlabel("ideal speed-up over one device")
    axes.set_ylabel("PSNR against the picture of one device, dB")
    axes.xaxis.set_major_formatter("{x:g}x")
    axes.grid(color="#e6e6e6", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def plot_calibration(model: str, entry: Entry, path: str | Path) -> None:
    """Write the figure of a calibration; the path's suffix decides the format. See `calibration_figure`."""
    calibration_figure(model, entry).savefig(path)


def calibration_figure(model: str, entry: Entry) -> Figure:
    """Draw what was measured: discrepancy and drift over the steps, and PSNR over ideal speed-up with the qualities.

    Args:
        model: What was calibrated.
        entry: What came of it.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12.0, 4.2), dpi=120, layout="constrained")
    discrepancy, drift, ladder = figure.subplots(1, 3, width_ratios=(1, 1, 1.3))
    _draw_band(discrepancy, entry, "discrepancy", "discrepancy of the branches", first=0)
    discrepancy.axvline(entry.tau_cap, color=MARK_COLOR, linestyle="--", linewidth=1.2)
    discrepancy.annotate(
        f"tau_cap = {entry.tau_cap}",
        (entry.tau_cap, 0.96),
        xycoords=("data", "axes fraction"),
        xytext=(-4, 0),
        textcoords="offset points",
        color=MARK_COLOR,
        ha="right",
        va="top",
        fontsize=9,
    )
    _draw_band(drift, entry, "drift", "drift from one step to the next", first=1)
    _draw_ladder(ladder, entry)
    discrepancy.set_title(
        f"{model}, {entry.scheduler.removesuffix('Scheduler')}, {entry.num_inference_steps} steps, {entry.prompts} "
        "prompts: mean and two standard deviations",
        fontsize=10,
        loc="left",
    )
    for axes in (discrepancy, drift, ladder):
        axes.spines[["top", "right"]].set_visible(False)
    return figure


def _draw_band(axes: Any, entry: Entry, name: str, label: str, first: int) -> None:
    means, deviations = entry.curves[name], entry.curves[f"{name}_deviation"]
    steps = range(first, first + len(means))
    bottom = 0.5 * min(means) or 1e-3
    low = [max(bottom, mean - 2 * deviation) for mean, deviation in zip(means, deviations, strict=True)]
    high = [mean + 2 * deviation for mean, deviation in zip(means, deviations, strict=True)]
    axes.fill_between(steps, low, high, color=LINE_COLOR, alpha=0.18, linewidth=0)
    axes.plot(steps, means, color=LINE_COLOR, linewidth=1.8)
    axes.set_yscale("log")
    axes.set_ylim(bottom=bottom)
    axes.yaxis.set_major_formatter("{x:g}")
    axes.set_xlabel("denoising step")
    axes.set_ylabel(label)
    axes.xaxis.get_major_locator().set_params(integer=True)


def _draw_ladder(axes: Any, entry: Entry) -> None:
    for between in dict.fromkeys(rung["between"] for rung in entry.measured):
        rungs = [rung for rung in entry.measured if rung["between"] == between]
        points = sorted((rung["ideal_speedup"], rung["psnr"]) for rung in rungs)
        chosen = any(band.between == between for band in entry.bands)
        style = {"linewidth": 1.8} if chosen else {"linewidth": 1.2, "linestyle": "--"}
        label = f"{between} (chosen)" if chosen else between
        color = FAMILY_COLORS.get(between, LINE_COLOR)
        axes.plot(*zip(*points, strict=True), color=color, marker="o", markersize=4, label=label, **style)
    for found in expectations(entry):
        at = (found.ideal_speedup, found.psnr)
        axes.plot(*at, marker="D", color=MARK_COLOR, markersize=6)
        axes.annotate(f"quality {found.quality:g}", at, xytext=(7, 4), textcoords="offset points", fontsize=9)
    axes.margins(x=0.12)
    _label_plane(axes)
    axes.legend(frameon=False, fontsize=9)
