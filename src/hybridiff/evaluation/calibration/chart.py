"""The chart of a calibration: what was measured, and the qualities."""

from __future__ import annotations

import math
from typing import Any

from matplotlib.figure import Figure

from ...report.plots import LINE_COLOR, MARK_COLOR
from ...schedule.calibration import Entry
from ..charts import COLORS, finish_plane, new_figure
from .bands import expectations


def calibration_figure(model: str, entry: Entry) -> Figure:
    """Draw what was measured: discrepancy and drift over the steps, and PSNR over ideal speed-up with the qualities.

    Args:
        model: What was calibrated.
        entry: What came of it.
    """
    figure = new_figure(12.0, 4.2)
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
    kinds, chosen = {point["step_kind"] for point in entry.measured}, {band.step_kind for band in entry.bands}
    for kind in sorted(kinds):
        points = sorted((p["ideal_speedup"], p["psnr"]) for p in entry.measured if p["step_kind"] == kind)
        style = {"linewidth": 1.8} if kind in chosen else {"linewidth": 1.2, "linestyle": "--"}
        label = f"{kind} (chosen)" if kind in chosen and kinds - chosen else kind
        axes.plot(*zip(*points, strict=True), color=COLORS[kind], marker="o", markersize=4, label=label, **style)
    marks: list[tuple[float, float, str]] = []
    for quality, point in expectations(entry).items():
        speedup, psnr, names = marks[-1] if marks else (math.inf, math.inf, "")
        axes.plot(point.ideal_speedup, point.psnr, marker="D", color=MARK_COLOR, markersize=6)
        is_near = abs(speedup - point.ideal_speedup) < 0.3 and abs(psnr - point.psnr) < 1  # labels would overlap
        name = f"{names}, {quality:g}" if is_near else f"quality {quality:g}"
        marks[len(marks) - is_near :] = [(point.ideal_speedup, point.psnr, name)]
    for speedup, psnr, name in marks:
        left = {"xytext": (-9, -3), "ha": "right", "va": "center"}  # the longer ones would leave the plane
        place = left if "," in name else {"xytext": (7, 4)}
        axes.annotate(name, (speedup, psnr), textcoords="offset points", fontsize=9, **place)
    axes.margins(x=0.12)
    finish_plane(axes)
    axes.legend(frameon=False, fontsize=9)
