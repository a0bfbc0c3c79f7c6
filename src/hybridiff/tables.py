"""A study as a table: aligned text for the terminal, Markdown for a file."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .study import Study

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
            _markdown_row(HEAD),
            _markdown_row(["---", "---", *["---:"] * (len(HEAD) - 2)]),
            *map(_markdown_row, _lines(study)),
            "",
        ]
    )


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
