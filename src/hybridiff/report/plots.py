"""Figures of a run: the discrepancy curve with its phases, and sheets of several images."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..schedule.kinds import Phase, StepKind
from .report import RunReport, StepRecord

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from PIL import Image

PHASE_COLORS = {Phase.WARM_UP: "#f4e3c1", Phase.PARALLEL: "#cfe8d5", Phase.CONNECT: "#d5dff2"}
LINE_COLOR = "#27374d"
MARK_COLOR = "#b3392f"
WIDE = 30.0
"""Discrepancies whose extremes are this many times apart are drawn on a logarithmic scale."""
KIND_COLORS = {
    StepKind.PIPELINED: "#e69f00",
    StepKind.REUSE: "#009e73",
    StepKind.CACHED: "#0072b2",
    StepKind.AHEAD: "#cc79a7",
}


def plot_discrepancy(report: RunReport, path: str | Path, title: str = "") -> None:
    """Write the figure of a run's discrepancy; the path's suffix decides the format. See `discrepancy_figure`."""
    discrepancy_figure(report, title).savefig(path)


def discrepancy_figure(report: RunReport, title: str = "") -> Figure:
    """Draw how far the guidance branches are apart at every full step, phases shaded, tau1 and tau2 marked.

    Steps of other kinds are ticks at the bottom, and hollow points where they have a discrepancy too. Where a fidelity
    was promised, a panel below shows what was estimated of it after every full step.

    Args:
        report: What a run did. Without guidance there is no discrepancy, which the figure says.
        title: Shown above the strategy and the number of devices, such as the prompt.
    """
    from matplotlib.figure import Figure

    estimated = [step for step in report.steps if step.estimated is not None]
    figure = Figure(figsize=(8.0, 5.6 if estimated else 4.2), dpi=120, layout="constrained")
    axes = figure.subplots()
    _shade_phases(axes, report.steps)
    measured = [step for step in report.steps if step.discrepancy is not None]
    if measured:
        _draw_discrepancies(axes, measured)
    else:
        _say(axes, "no discrepancy: guidance was off" if report.steps else "no steps")
        axes.set_yticks([])
    _mark_kinds(axes, report.steps)
    _mark_taus(axes, report)
    _label(axes, report, title)
    if estimated:
        _draw_estimates(figure, axes, report, estimated)
    return figure


def image_sheet(images: Sequence[Image.Image], columns: int | None = None, gap: int = 8) -> Image.Image:
    """Several images of one size on one sheet, row by row.

    Args:
        images: At least one.
        columns: How many go side by side; as square as it goes unless given.
        gap: White pixels between images.
    """
    from PIL import Image

    if not images:
        raise ValueError("no images to put on a sheet")
    columns = min(columns or math.ceil(math.sqrt(len(images))), len(images))
    width, height = images[0].size
    rows = math.ceil(len(images) / columns)
    sheet = Image.new("RGB", (columns * (width + gap) - gap, rows * (height + gap) - gap), "white")
    for number, image in enumerate(images):
        sheet.paste(image, ((number % columns) * (width + gap), (number // columns) * (height + gap)))
    return sheet


def _shade_phases(axes: Any, steps: Sequence[StepRecord]) -> None:
    for phase, run in groupby(steps, key=lambda step: step.phase):
        indices = [step.index for step in run]
        axes.axvspan(indices[0] - 0.5, indices[-1] + 0.5, color=PHASE_COLORS[phase], linewidth=0, label=phase.value)
    if steps:
        axes.set_xlim(-0.5, len(steps) - 0.5)


def _draw_discrepancies(axes: Any, measured: Sequence[StepRecord]) -> None:
    full = [step for step in measured if step.kind is StepKind.FULL]
    others = [step for step in measured if step.kind is not StepKind.FULL]
    style = {"color": LINE_COLOR, "marker": "o", "markersize": 3}
    axes.plot([step.index for step in full], [step.discrepancy for step in full], linewidth=1.8, **style)
    if others:
        points = [step.index for step in others], [step.discrepancy for step in others]
        axes.plot(*points, linewidth=0, markerfacecolor="white", **style)
    values = [step.discrepancy or 0.0 for step in measured]
    lowest, highest = min(values), max(values) or 1.0
    if lowest > 0 and highest > WIDE * lowest:
        axes.set_yscale("log")
        axes.set_ylim(0.6 * lowest, 1.6 * highest)
        axes.yaxis.set_major_formatter("{x:g}")
    else:
        axes.set_ylim(-0.06 * highest, 1.12 * highest)


def _draw_estimates(figure: Figure, above: Any, report: RunReport, estimated: Sequence[StepRecord]) -> None:
    """A panel below the discrepancies: what is estimated of the promised fidelity, step by step."""
    grid = figure.add_gridspec(2, 1, height_ratios=(2.6, 1.0))
    above.set_subplotspec(grid[0])
    axes = figure.add_subplot(grid[1], sharex=above)
    values = [step.estimated or 0.0 for step in estimated]
    promised = report.fidelity["promised"]
    axes.step([step.index for step in estimated], values, where="post", color=LINE_COLOR, linewidth=1.8)
    axes.axhline(promised, color=MARK_COLOR, linestyle="--", linewidth=1.2)
    said = f"{promised:g} dB promised, {values[-1]:.1f} dB estimated"
    place: dict[str, Any] = {"xycoords": ("axes fraction", "data"), "xytext": (0, 3), "textcoords": "offset points"}
    axes.annotate(said, (0.01, promised), color=MARK_COLOR, fontsize=9, **place)
    axes.set(ylabel="fidelity (dB)", xlabel="denoising step")
    axes.set_ylim(min(promised, *values) - 4, max(promised, *values) + 4)
    axes.spines[["top", "right"]].set_visible(False)
    above.set_xlabel("")


def _mark_kinds(axes: Any, steps: Sequence[StepRecord]) -> None:
    """A tick at the bottom for every step that was not full."""
    for kind, color in KIND_COLORS.items():
        indices = [step.index for step in steps if step.kind is kind]
        if indices:
            axes.plot(
                indices,
                [0.015] * len(indices),
                transform=axes.get_xaxis_transform(),
                color=color,
                marker="|",
                markersize=8,
                markeredgewidth=2.2,
                linewidth=0,
                label=f"{len(indices)} {kind.value}",
            )


def _mark_taus(axes: Any, report: RunReport) -> None:
    for name, tau in (("$\\tau_1$", report.tau1), ("$\\tau_2$", report.tau2)):
        if tau is not None:
            is_late = tau > 0.85 * len(report.steps)
            axes.axvline(tau, color=MARK_COLOR, linestyle="--", linewidth=1.2)
            axes.annotate(
                f"{name} = {tau}",
                (tau, 0.96),
                xycoords=("data", "axes fraction"),
                xytext=(-4 if is_late else 4, 0),
                textcoords="offset points",
                color=MARK_COLOR,
                ha="right" if is_late else "left",
                va="top",
            )


def _label(axes: Any, report: RunReport, title: str) -> None:
    devices = f"{report.devices} device{'s' * (report.devices != 1)}"
    line = f"{report.strategy}, {devices}, {len(report.steps)} steps, {report.seconds:.2f} s"
    axes.set_title(f"{_shorten(title)}\n{line}" if title else line, fontsize=10, loc="left")
    axes.set_xlabel("denoising step")
    axes.set_ylabel("discrepancy of the branches")
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.spines[["top", "right"]].set_visible(False)
    handles = dict(zip(*reversed(axes.get_legend_handles_labels()), strict=True))  # each phase once
    if handles:
        axes.legend(
            handles.values(),
            handles.keys(),
            loc="lower right",
            bbox_to_anchor=(1.0, 1.0),
            ncols=len(handles),
            frameon=False,
            fontsize=9,
            columnspacing=1.2,
            borderaxespad=0.2,
        )


def _say(axes: Any, text: str) -> None:
    axes.text(0.5, 0.5, text, transform=axes.transAxes, ha="center", va="center", fontsize=12, color=LINE_COLOR)


def _shorten(text: str, length: int = 90) -> str:
    text = " ".join(text.split()).replace("$", r"\$")
    return text if len(text) <= length else text[: length - 3] + "..."
