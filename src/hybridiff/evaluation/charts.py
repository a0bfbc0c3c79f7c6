"""What charts of fidelity over speed-up have in common."""

from __future__ import annotations

from typing import Any

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


def label_plane(axes: Any) -> None:
    """Label the axes of a chart of PSNR over ideal speed-up."""
    ylabel = f"PSNR against one device, dB, at most {MOST_DECIBELS:g}"
    axes.set(xlabel="ideal speed-up over one device", ylabel=ylabel, axisbelow=True)
    axes.xaxis.set_major_formatter("{x:g}x")
    axes.grid(color="#e6e6e6", linewidth=0.8)
    axes.spines[["top", "right"]].set_visible(False)
