"""A study as a table: aligned text for the terminal, Markdown for a file."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..schedule.calibration import interpolate
from .frontier import upper_envelope
from .study import Study

SPEEDS = (2.1, 2.5, 3.0, 3.5, 4.0, 4.5, 5.0, 6.0, 7.0)
"""Ideal speed-ups at which families are compared."""

_NEAR = 0.05
"""A setting that is slower or faster by no more than this stands for a speed too."""

HEAD = ("family", "setting", "speed-up", "PSNR", "worst tenth", "SSIM", "right", "full steps")


def format_study(study: Study) -> str:
    """The rows as text with aligned columns, by family and speed."""
    columns = list(zip(HEAD, *_lines(study), strict=True))
    widths = [max(map(len, column)) for column in columns]
    lines = [
        "  ".join(cell.ljust(width) if index < 2 else cell.rjust(width) for index, (cell, width) in enumerate(row))
        for row in (list(zip(line, widths, strict=True)) for line in zip(*columns, strict=True))
    ]
    return "\n".join(line.rstrip() for line in lines)


def format_markdown(study: Study) -> str:
    """The same as a page of Markdown, with what was run and how."""
    run, reference = study.run, study.reference or {}
    title = (
        f"{run['model']}, {run['num_inference_steps']} steps, {run['scheduler']}, {run['dtype']}, "
        f"{len(run['prompts'])} prompts"
    )
    right = reference.get("right")
    return "\n".join(
        [
            f"# {title}",
            "",
            "Ideal speed-up and PSNR (dB, at most 100 a picture) against one device; worst tenth: mean PSNR of the",
            "worst tenth of the prompts; right: share of captions drawn right; full steps: fewest-median-most over the",
            "prompts." + ("" if right is None else f" One device draws {right:.0%} of the captions right."),
            "",
            f"    {study.made_with.get('command', '')}",
            "",
            "## At equal speed",
            "",
            "PSNR in dB of each family at its best settings; between settings along straight lines.",
            "",
            *_markdown_table(("family", *(f"{speed:g}x" for speed in SPEEDS)), _at_equal_speed(study.rows), words=1),
            "",
            "## All settings",
            "",
            *_markdown_table(HEAD, _lines(study), words=2),
            "",
        ]
    )


def _at_equal_speed(rows: Sequence[dict[str, Any]]) -> list[tuple[str, ...]]:
    """For each family its PSNR at `SPEEDS`, as far as its settings reach."""
    found = []
    for family in sorted({row["family"] for row in rows}):
        best = upper_envelope(
            (row["ideal_speedup"], row["psnr"])
            for row in rows
            if row["family"] == family and row["config"].get("devices") != 1
        )
        reached = [best and best[0][0] - _NEAR <= speed <= best[-1][0] + _NEAR for speed in SPEEDS]
        found.append(
            (
                family,
                *(f"{interpolate(best, at):.1f}" if ok else "" for at, ok in zip(SPEEDS, reached, strict=True)),
            )
        )
    return found


def _markdown_table(head: Sequence[str], lines: Sequence[Sequence[str]], words: int) -> list[str]:
    """Rows of Markdown; the first columns, `words` of them, hold words, the others numbers."""
    rule = ["---"] * words + ["---:"] * (len(head) - words)
    return [_markdown_row(line) for line in (head, rule, *lines)]


def _markdown_row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _lines(study: Study) -> list[tuple[str, ...]]:
    return [_cells(row) for row in sorted(study.rows, key=lambda row: (row["family"], row["ideal_speedup"]))]


def _cells(row: dict[str, Any]) -> tuple[str, ...]:
    return (
        row["family"],
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
