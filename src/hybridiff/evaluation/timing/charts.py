"""Charts of a comparison: speed-ups as bars, fidelity over speed-up, speed-up over resolution."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from ...report.plots import LINE_COLOR, MARK_COLOR
from ..charts import finish, new_figure
from ..tables import Row
from .page import name_of

COLORS = ("#27374d", "#56b4e9", "#0072b2", "#009e73", "#d55e00", "#7a5195", "#8c6d31", "#e69f00", "#cc79a7", "#808080")
"""Of strategies, in the order of the rows."""

_SPEEDUP = "speed-up of denoising over serial on one device"


def write_charts(content: Row, folder: Path, stem: str) -> list[Path]:
    """Write the charts that the rows give; the paths written.

    Args:
        content: What the JSON file holds.
        folder: Where they go.
        stem: What their names begin with.
    """
    measured = [row for row in content["rows"] if not row.get("is_predicted")]
    largest = max(row.get("resolution", 0) for row in measured)
    shown = [row for row in measured if row.get("resolution", 0) == largest]
    run = content["run"]
    title = f"{run['model']}, {run['num_inference_steps']} steps" + (f", {largest} x {largest}" if largest else "")
    figures = {"speed": bars_figure(shown, title)}
    if all(row.get("psnr") is not None for row in shown):
        figures["fidelity"] = scatter_figure(shown, title)
    if len({row.get("resolution") for row in content["rows"]}) > 1:
        figures["resolution"] = resolution_figure(content["rows"], run["model"])
    paths = [folder / f"{stem}-{name}.png" for name in figures]
    for figure, path in zip(figures.values(), paths, strict=True):
        figure.savefig(path)
    return paths


def bars_figure(rows: Sequence[Row], title: str) -> Figure:
    """Draw the speed-up of denoising as a bar for each row, its quartiles, and its ideal at the rho measured."""
    figure = new_figure(9.0, 1.4 + 0.42 * len(rows))
    axes = figure.subplots()
    places = range(len(rows))
    serial = rows[0]["denoising_seconds"]
    spreads = [row["spread"]["denoising_seconds"] for row in rows]
    errors = [
        [row["speedup"] - serial / spread["high"] for row, spread in zip(rows, spreads, strict=True)],
        [serial / spread["low"] - row["speedup"] for row, spread in zip(rows, spreads, strict=True)],
    ]
    colors = [LINE_COLOR if row["devices"] > 1 else "#a3b1c6" for row in rows]
    axes.barh(places, [row["speedup"] for row in rows], xerr=errors, color=colors, height=0.6, ecolor="#808080")
    axes.scatter(
        [row["ideal_speedup"] for row in rows], places, marker="|", s=260, color=MARK_COLOR, label="ideal", zorder=3
    )
    axes.set_yticks(places, [name_of(row) for row in rows])
    for place, row in zip(places, rows, strict=True):
        axes.annotate(
            f"{row['speedup']:.2f}x", (0, place), xytext=(4, 0), textcoords="offset points", va="center", color="white"
        )
    axes.invert_yaxis()
    finish(axes, f"{title}, rho {rows[0]['rho']:.2f}", xlabel=f"{_SPEEDUP} (light: one device)")
    axes.xaxis.set_major_formatter("{x:g}x")
    axes.legend(frameon=False, fontsize=9, loc="lower right")
    return figure


def scatter_figure(rows: Sequence[Row], title: str) -> Figure:
    """Draw fidelity over the measured speed-up of denoising: a dot for each row but serial, hollow on one device."""
    figure = new_figure(8.0, 5.0)
    axes = figure.subplots()
    for row, color in zip(rows[1:], _colors(rows[1:]), strict=True):
        point = row["speedup"], row["psnr"]
        fill = color if row["devices"] > 1 else "none"
        axes.plot(*point, marker="o", markersize=8, color=color, markerfacecolor=fill, linewidth=0)
        axes.annotate(name_of(row), point, xytext=(8, 5), textcoords="offset points", fontsize=9)
    axes.margins(x=0.2, y=0.12)
    title = f"{title}, rho {rows[0]['rho']:.2f}"
    finish(axes, title, xlabel=_SPEEDUP, ylabel="PSNR against serial, dB, at most 100")
    axes.xaxis.set_major_formatter("{x:g}x")
    return figure


def resolution_figure(rows: Sequence[Row], title: str) -> Figure:
    """Draw speed-up over resolution: a line for each strategy, dashed and hollow where it is predicted."""
    figure = new_figure(8.0, 5.0)
    axes = figure.subplots()
    names = list(dict.fromkeys(name_of(row) for row in rows))[1:]
    firsts = [next(row for row in rows if name_of(row) == name) for name in names]
    for name, color in zip(names, _colors(firsts), strict=True):
        own = sorted((row for row in rows if name_of(row) == name), key=lambda row: row["resolution"])
        measured = [row for row in own if not row.get("is_predicted")]
        _line(axes, measured, color=color, marker="o", label=name)
        _line(
            axes, own[len(measured) - 1 :], color=color, marker="o", markerfacecolor="white", linestyle="--", zorder=1
        )
    sizes = sorted({row["resolution"] for row in rows})
    axes.set_xticks(sizes, [str(size) for size in sizes])
    label = "side of the image in pixels (hollow: predicted from measured times)"
    finish(axes, title, xlabel=label, ylabel=_SPEEDUP)
    axes.xaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_major_formatter("{x:g}x")
    axes.legend(frameon=False, fontsize=9)
    return figure


def _line(axes: Any, rows: Sequence[Row], **style: Any) -> None:
    axes.plot(
        [row["resolution"] for row in rows], [row["speedup"] for row in rows], linewidth=1.6, markersize=5, **style
    )


def _colors(rows: Sequence[Row]) -> list[str]:
    """One color a strategy, whatever its number of devices."""
    names = list(dict.fromkeys(row["strategy"] for row in rows))
    return [COLORS[names.index(row["strategy"]) % len(COLORS)] for row in rows]
