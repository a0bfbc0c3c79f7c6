"""Pictures of a run: the discrepancy curve with its phases, and sheets of several images."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .switching import Phase
from .trace import RunReport, StepRecord

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from PIL import Image

PHASE_COLORS = {Phase.WARM_UP: "#f4e3c1", Phase.PARALLEL: "#cfe8d5", Phase.CONNECT: "#d5dff2"}
LINE_COLOR = "#27374d"
MARK_COLOR = "#b3392f"


def plot_discrepancy(report: RunReport, path: str | Path, title: str = "") -> None:
    """Write the figure of a run's discrepancy; the path's suffix decides the format. See `discrepancy_figure`."""
    discrepancy_figure(report, title).savefig(path)


def discrepancy_figure(report: RunReport, title: str = "") -> Figure:
    """Draw how far the guidance branches are apart at every step, phases shaded, tau1 and tau2 marked.

    Args:
        report: What a run did. Without guidance there is no discrepancy, which the picture says.
        title: Shown above the strategy and the number of devices, such as the prompt.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8.0, 4.2), dpi=120, layout="constrained")
    axes = figure.subplots()
    _shade_phases(axes, report.steps)
    measured = [step.discrepancy for step in report.steps if step.discrepancy is not None]
    if measured:
        # Steps that evaluate one branch only measure nothing: the curve has a gap there.
        values = [math.nan if step.discrepancy is None else step.discrepancy for step in report.steps]
        indices = [step.index for step in report.steps]
        axes.plot(indices, values, color=LINE_COLOR, linewidth=1.8, marker="o", markersize=3)
        axes.set_ylim(0.0, 1.12 * max(measured) or 1.0)
    else:
        _say(axes, "no discrepancy: guidance was off" if report.steps else "no steps")
        axes.set_yticks([])
    _mark_taus(axes, report)
    _label(axes, report, title)
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


def _mark_taus(axes: Any, report: RunReport) -> None:
    for name, tau in (("$\\tau_1$", report.tau1), ("$\\tau_2$", report.tau2)):
        if tau is not None:
            axes.axvline(tau, color=MARK_COLOR, linestyle="--", linewidth=1.2)
            axes.annotate(
                f"{name} = {tau}",
                (tau, 0.96),
                xycoords=("data", "axes fraction"),
                xytext=(4, 0),
                textcoords="offset points",
                color=MARK_COLOR,
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
        axes.legend(handles.values(), handles.keys(), loc="lower right", frameon=True, framealpha=0.9, fontsize=9)


def _say(axes: Any, text: str) -> None:
    axes.text(0.5, 0.5, text, transform=axes.transAxes, ha="center", va="center", fontsize=12, color=LINE_COLOR)


def _shorten(text: str, length: int = 90) -> str:
    text = " ".join(text.split()).replace("$", r"\$")
    return text if len(text) <= length else text[: length - 3] + "..."
