from __future__ import annotations

import math
from pathlib import Path

import pytest
from PIL import Image

from hybridiff import Phase
from hybridiff.plots import discrepancy_figure, image_sheet, plot_discrepancy
from support.reports import report

PHASES = [Phase.WARM_UP] * 3 + [Phase.PARALLEL] * 4 + [Phase.CONNECT] * 2


def test_curve_phases_and_taus_are_drawn() -> None:
    discrepancies = [0.3, 0.2, 0.1, None, None, 0.1, 0.1, 0.2, 0.3]  # a gap where one branch alone ran
    hybrid = report(discrepancies, PHASES, strategy="hybrid", tau1=2, tau2=6)
    (axes,) = discrepancy_figure(hybrid, "a ring").axes
    curve = axes.lines[0]
    assert list(curve.get_xdata()) == list(range(9))
    assert [None if math.isnan(value) else value for value in curve.get_ydata()] == discrepancies
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["warm-up", "parallel", "connect"]
    assert [line.get_xdata()[0] for line in axes.lines[1:]] == [2, 6]
    assert axes.get_title(loc="left") == "a ring\nhybrid, 2 devices, 9 steps, 0.90 s"


def test_taus_that_were_not_reached_are_not_drawn() -> None:
    (axes,) = discrepancy_figure(report([0.3, 0.2])).axes
    assert len(axes.lines) == 1


def test_a_run_without_guidance_says_so() -> None:
    (axes,) = discrepancy_figure(report([None, None])).axes
    assert not axes.lines
    assert "guidance was off" in axes.texts[0].get_text()


@pytest.mark.parametrize("discrepancies", [[], [0.0], [0.3, 0.1], [None]])
def test_every_run_can_be_written(tmp_path: Path, discrepancies: list[float | None]) -> None:
    path = tmp_path / "curve.png"
    plot_discrepancy(report(discrepancies), path, title="100% of $5 {sic} _x_ " * 9)
    with Image.open(path) as picture:
        assert picture.size == (960, 504)


def test_sheet_is_as_square_as_it_goes() -> None:
    red, blue = Image.new("RGB", (10, 6), "red"), Image.new("RGB", (10, 6), "blue")
    sheet = image_sheet([red, blue, red], gap=2)
    assert sheet.size == (22, 14)
    assert sheet.getpixel((12, 0)) == (0, 0, 255)
    assert sheet.getpixel((0, 8)) == (255, 0, 0)
    assert sheet.getpixel((12, 8)) == (255, 255, 255)
    assert image_sheet([red, blue], columns=5, gap=2).size == (22, 6)
    with pytest.raises(ValueError, match="no images"):
        image_sheet([])
