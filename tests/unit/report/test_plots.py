from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from hybridiff import Phase
from hybridiff.report.plots import KIND_COLORS, PHASE_COLORS, discrepancy_figure, image_sheet, plot_discrepancy
from hybridiff.schedule.kinds import StepKind
from support.reports import report

PHASES = [Phase.WARM_UP] * 3 + [Phase.PARALLEL] * 4 + [Phase.CONNECT] * 2
FULL, REUSE, CACHED = StepKind.FULL, StepKind.REUSE, StepKind.CACHED


def test_curve_phases_kinds_and_taus_are_drawn() -> None:
    discrepancies = [0.3, 0.2, 0.1, None, 0.15, 0.1, None, 0.2, 0.3]
    kinds = [FULL] * 3 + [CACHED, REUSE, FULL, CACHED] + [FULL] * 2
    hybrid = report(discrepancies, PHASES, kinds, strategy="hybrid", tau1=2, tau2=6)
    (axes,) = discrepancy_figure(hybrid, "a ring").axes
    full, reuse, *others = axes.lines
    assert list(full.get_xdata()) == [0, 1, 2, 5, 7, 8], "the curve has no gap where nothing was measured"
    assert list(full.get_ydata()) == [0.3, 0.2, 0.1, 0.1, 0.2, 0.3]
    assert (list(reuse.get_xdata()), list(reuse.get_ydata())) == ([4], [0.15])
    assert reuse.get_linewidth() == 0
    ticks = {line.get_label(): list(line.get_xdata()) for line in others[:2]}
    assert ticks == {"1 reuse": [4], "2 cached": [3, 6]}
    labels = [text.get_text() for text in axes.get_legend().get_texts()]
    assert labels == ["warm-up", "parallel", "connect", "1 reuse", "2 cached"]
    assert [line.get_xdata()[0] for line in others[2:]] == [2, 6]
    assert axes.get_title(loc="left") == "a ring\nhybrid, 2 devices, 9 steps, 0.90 s"


def test_what_is_estimated_of_a_promise_is_drawn_below(tmp_path: Path) -> None:
    run = report([0.3, 0.2, None, 0.1], [Phase.WARM_UP] * 4, [FULL, FULL, CACHED, FULL], strategy="hybrid")
    run.steps = [replace(step, estimated=dict(enumerate((100.0, 80.0, None, 50.5)))[step.index]) for step in run.steps]
    run.fidelity = {"promised": 45.0, "estimated": 50.5}
    above, below = discrepancy_figure(run).axes
    curve, promise = below.lines
    assert (list(curve.get_xdata()), list(curve.get_ydata())) == ([0, 1, 3], [100.0, 80.0, 50.5])
    assert set(promise.get_ydata()) == {45.0}
    assert below.texts[0].get_text() == "45 dB promised, 50.5 dB estimated"
    assert below.get_xlim() == above.get_xlim()
    plot_discrepancy(run, tmp_path / "curve.png")
    with Image.open(tmp_path / "curve.png") as image:
        assert image.size == (960, 672)


def test_every_phase_and_kind_has_a_colour_of_its_own() -> None:
    assert set(PHASE_COLORS) == set(Phase)
    assert set(KIND_COLORS) == set(StepKind) - {FULL}
    colours = [*PHASE_COLORS.values(), *KIND_COLORS.values()]
    assert len(set(colours)) == len(colours)


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
    with Image.open(path) as image:
        assert image.size == (960, 504)


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
