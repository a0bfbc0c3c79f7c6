"""A study as a table: aligned text for the terminal, Markdown for a file."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..numerics.interpolation import interpolate
from ..utils.tables import align
from .rows import upper_envelope
from .study import Study

SPEEDS = (2.1, 2.5, 3.0, 3.5, 4.0, 4.5, 5.0, 6.0, 7.0)
"""Ideal speed-ups at which methods are compared."""

_NEAR = 0.05
"""A setting that is slower or faster by no more than this stands for a speed too."""

HEAD = ("method", "setting", "speed-up", "PSNR", "worst tenth", "SSIM", "right", "full steps")

_EXPLANATION = """\
Ideal speed-up and PSNR (dB, at most 100 an image) against one device; worst tenth: mean PSNR of the worst tenth of the
prompts; full steps: fewest-median-most over the prompts; right: share of captions whose image is right."""


def format_study(study: Study) -> str:
    """The rows as text with aligned columns, by method and speed."""
    return align([HEAD, *_lines(study)], words=2)


def format_markdown(study: Study) -> str:
    """The same as a page of Markdown, with what was run and how."""
    run, right = study.run, (study.reference or {}).get("right")
    head = run["model"], f"{run['num_inference_steps']} steps", run["scheduler"], run["dtype"]
    return "\n".join(
        [
            f"# {', '.join(head)}, {len(run['prompts'])} prompts\n",
            _EXPLANATION + ("" if right is None else f"\nOn one device {right:.0%} are right.") + "\n",
            f"    {study.made_with.get('command', '')}\n",
            "## At equal speed\n",
            "PSNR in dB of each method at its best settings; between settings along straight lines.\n",
            markdown_table([("method", *(f"{speed:g}x" for speed in SPEEDS)), *_at_equal_speed(study.rows)], words=1),
            "\n## All settings\n",
            markdown_table([HEAD, *_lines(study)], words=2) + "\n",
        ]
    )


def markdown_table(rows: Sequence[Sequence[str]], words: int = 1) -> str:
    """Rows of equal length as a table of Markdown; the first one is the head.

    Args:
        rows: The cells.
        words: So many columns from the left hold words and are aligned to the left, the others to the right.
    """
    rule = ["---"] * words + ["---:"] * (len(rows[0]) - words)
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (rows[0], rule, *rows[1:]))


def _at_equal_speed(rows: Sequence[dict[str, Any]]) -> list[tuple[str, ...]]:
    """For each method its PSNR at `SPEEDS`, as far as its settings reach."""
    found = []
    for method in sorted({row["method"] for row in rows}):
        own = [row for row in rows if row["method"] == method and row["config"].get("devices") != 1]
        best = upper_envelope((row["ideal_speedup"], row["psnr"]) for row in own)
        found.append((method, *(_psnr_at(best, speed) for speed in SPEEDS)))
    return found


def _psnr_at(best: Sequence[tuple[float, float]], speed: float) -> str:
    if not best or not best[0][0] - _NEAR <= speed <= best[-1][0] + _NEAR:
        return ""
    return f"{interpolate(best, speed):.1f}"


def _lines(study: Study) -> list[tuple[str, ...]]:
    return [_cells(row) for row in sorted(study.rows, key=lambda row: (row["method"], row["ideal_speedup"]))]


def _cells(row: dict[str, Any]) -> tuple[str, ...]:
    return (
        row["method"],
        row["label"],
        f"{row['ideal_speedup']:.2f}x",
        f"{row['psnr']:.1f} dB",
        f"{row['psnr_worst_tenth']:.1f} dB",
        "-" if row["ssim"] is None else f"{row['ssim']:.4f}",
        "-" if row["right"] is None else f"{row['right']:.0%}",
        _full_steps(row),
    )


def _full_steps(row: dict[str, Any]) -> str:
    """How many steps were full: `17`, or over the prompts `14-17-22` (fewest, median, most)."""
    spread = row.get("full_steps")
    if spread is None:
        return str(next(iter(row["schedules"])).count("f"))
    if spread["min"] == spread["max"]:
        return str(spread["min"])
    return f"{spread['min']}-{spread['median']:g}-{spread['max']}"
