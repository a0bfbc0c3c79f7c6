"""A chart of solvers: fidelity against evaluations, each solver alone and with `hybrid` on it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from ..charts import finish, new_figure
from ..metrics import MOST_DECIBELS
from .solvers import least_evaluations, solver_lines

_COLORS = ("#0072b2", "#d55e00", "#009e73", "#7a5195")
"""One per solver, alone and with hybrid."""

_LEAST_DECIBELS = 25.0
"""What lies below is another picture, and would leave no room for the others."""

_ALONE = {"linestyle": "--", "marker": "o", "markerfacecolor": "white", "linewidth": 1.4, "markersize": 5}
_HYBRID = {"linestyle": "-", "marker": "o", "linewidth": 2.0, "markersize": 5}


def solver_figure(content: Mapping[str, Any]) -> Figure:
    """Draw fidelity over evaluations, against the converged image where there is one, and against the full-step image.

    Args:
        content: Of a study's file, see `study.Study`.
    """
    run, lines = content["run"], solver_lines(content)
    steps, own = run["num_inference_steps"], run["scheduler"].removesuffix("Scheduler")
    panels = {"psnr": f"PSNR against the full-step image, dB, at most {MOST_DECIBELS:g}"}
    if any("psnr_converged" in row for rows in lines.values() for row in rows):
        panels = {"psnr_converged": f"PSNR against the converged image ({run['converged_steps']} steps), dB"} | panels
    figure = new_figure(1.5 + 5.6 * len(panels), 5.4)
    drawn = figure.subplots(1, len(panels), squeeze=False)[0]
    for axes, (fidelity, label) in zip(drawn, panels.items(), strict=True):
        _draw_lines(axes, lines, fidelity, own)
        _label(axes, label, steps)
    if "psnr_converged" in panels:
        _mark_own(drawn[0], lines.get(own, []), f"{own}, {steps} steps")
    title = f"{run['model']}, {own} with {steps} steps, {run['dtype']}, {len(run['prompts'])} prompts"
    figure.suptitle(title, fontsize=10, x=0.01, ha="left")
    handles, labels = drawn[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(handles) // 2 or 1, frameon=False, fontsize=9)
    return figure


def _draw_lines(axes: Any, lines: Mapping[str, list[dict[str, Any]]], fidelity: str, own: str) -> None:
    solvers = list(dict.fromkeys([own, *(name.removeprefix("hybrid on ") for name in lines)]))
    for number, solver in enumerate(solvers):
        color = _COLORS[number % len(_COLORS)]
        for name, style in ((solver, _ALONE), (f"hybrid on {solver}", _HYBRID)):
            points = least_evaluations(lines.get(name, []), fidelity)
            if points:
                places, heights = zip(*points, strict=True)
                axes.plot(places, [min(height, MOST_DECIBELS) for height in heights], color=color, label=name, **style)


def _mark_own(axes: Any, rows: list[dict[str, Any]], label: str) -> None:
    """How near the full-step image itself comes: no nearer gets what only follows it."""
    for height in (row["psnr_converged"] for row in rows if row["method"] == "exact" and "psnr_converged" in row):
        axes.axhline(height, color="#808080", linestyle=":", linewidth=1.2, zorder=0)
        style = {"xytext": (6, 3), "textcoords": "offset points", "color": "#606060", "fontsize": 9}
        axes.annotate(f"{label}: {height:.1f} dB", (axes.get_xlim()[0], height), **style)


def _label(axes: Any, label: str, steps: int) -> None:
    finish(axes, xlabel="evaluations of both branches (mean)", ylabel=label)
    axes.set_ylim(bottom=max(_LEAST_DECIBELS, axes.get_ylim()[0]))
    # A step on one device costs two evaluations of one branch, a full step on two devices one.
    ideal = axes.secondary_xaxis("top", functions=(_two_over(steps), _two_over(steps)))
    ideal.set_xticks([speed for speed in (2, 2.5, 3, 4, 5, 6, 8, 12, 16) if speed <= 2 * steps / axes.get_xlim()[0]])
    ideal.xaxis.set_major_formatter("{x:g}x")
    ideal.set_xlabel("ideal speed-up on two devices", fontsize=9)
    ideal.tick_params(labelsize=8)
    ideal.spines["top"].set_visible(False)


def _two_over(steps: int) -> Any:
    return lambda places: 2 * steps / np.maximum(places, 1e-6)  # axes are tried from 0 on
