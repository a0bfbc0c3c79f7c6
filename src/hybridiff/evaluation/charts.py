"""What charts have in common."""

from __future__ import annotations

from typing import Any

from matplotlib.figure import Figure

from .metrics import MOST_DECIBELS

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
"""Of methods and of step kinds."""


def new_figure(width: float, height: float) -> Figure:
    """An empty figure; its sides in inches."""
    return Figure(figsize=(width, height), dpi=120, layout="constrained")


def finish(axes: Any, title: str = "", **labels: str) -> None:
    """Give axes a title, labels and a grid."""
    axes.set_title(title, fontsize=10, loc="left")
    axes.set(**labels, axisbelow=True)
    axes.grid(color="#e6e6e6", linewidth=0.8)
    axes.spines[["top", "right"]].set_visible(False)


def finish_plane(axes: Any, title: str = "") -> None:
    """The same for axes of PSNR over ideal speed-up."""
    ylabel = f"PSNR against one device, dB, at most {MOST_DECIBELS:g}"
    finish(axes, title, xlabel="ideal speed-up over one device", ylabel=ylabel)
    axes.xaxis.set_major_formatter("{x:g}x")
