"""Columns of measurements, and how far long work is."""

from __future__ import annotations

from hybridiff.evaluation.progress import Progress
from hybridiff.evaluation.tables import Column, tabulate

COLUMNS = (
    Column("name", "name"),
    Column("PSNR", "psnr", "{:.1f} dB"),
    Column("SSIM", "ssim", "{:.2f}"),
    Column("right", "right", "{:.0%}", stays=True),
    Column("steps", "steps", lambda row: f"{row['steps']} of {row['name']}"),
)


def test_a_column_is_there_if_some_row_fills_it_or_it_stays() -> None:
    rows = [{"name": "a", "psnr": 41.26, "ssim": None}, {"name": "b", "psnr": None, "steps": 0}]
    assert tabulate(rows, COLUMNS) == [
        ("name", "PSNR", "right", "steps"),
        ("a", "41.3 dB", "-", "-"),
        ("b", "-", "-", "0 of b"),
    ]


def test_a_piece_is_done_when_the_next_is_asked_for() -> None:
    told: list[tuple[str, int, int]] = []
    progress = Progress(lambda *what: told.append(what), 3)
    pieces = progress.over("images", ["a", "b"])
    assert next(pieces) == "a"
    assert told == []
    assert list(pieces) == ["b"]
    progress.advance("page")
    assert told == [("images", 1, 3), ("images", 2, 3), ("page", 3, 3)]
