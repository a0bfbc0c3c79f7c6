"""Text tables."""

from __future__ import annotations

from collections.abc import Sequence


def align(rows: Sequence[Sequence[str]], words: int = 1) -> str:
    """Rows of equal length as text with aligned columns; the first one is the head.

    Args:
        rows: The cells.
        words: So many columns from the left hold words and are aligned to the left, the others to the right.
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = (
        "  ".join(
            cell.ljust(width) if place < words else cell.rjust(width)
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    )
    return "\n".join(line.rstrip() for line in lines)


def markdown_table(rows: Sequence[Sequence[str]], words: int = 1) -> str:
    """Rows of equal length as a table of Markdown; the first one is the head.

    Args:
        rows: The cells.
        words: So many columns from the left hold words and are aligned to the left, the others to the right.
    """
    rule = ["---"] * words + ["---:"] * (len(rows[0]) - words)
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (rows[0], rule, *rows[1:]))
