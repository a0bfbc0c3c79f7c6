from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from hybridiff import ParallelConfig
from hybridiff.cli.demo import RUNS, DemoRow, format_table, run_demo
from hybridiff.cli.main import main
from hybridiff.launch.protocol import Generation
from hybridiff.models.tiny import EMBEDDED
from support.fake_engine import FakeEngine
from support.reports import report


class SameImage(FakeEngine):
    """The same image on one device and on two, twice as fast on two."""

    def answer(self, seed: int, call: dict[str, Any]) -> Generation:
        images = [Image.new("RGB", (8, 8), "red")] * call["num_images_per_prompt"]
        seconds = call["num_inference_steps"] / self.devices
        return Generation(images, report([0.1], devices=self.devices, seconds=seconds), seed)


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> type[FakeEngine]:
    return SameImage.take_place(monkeypatch)


def test_ways_take_turns_and_are_compared_with_the_first(
    tmp_path: Path, engine: type[FakeEngine], capsys: pytest.CaptureFixture[str]
) -> None:
    rows = list(run_demo(tmp_path, steps=8, repeats=2, device="cpu"))
    assert [(row.model, row.run, row.seconds, row.speed_up, row.psnr) for row in rows] == [
        (model, run, 8.0 / run.devices, float(run.devices), math.inf) for model in EMBEDDED for run in RUNS
    ]
    devices = [run.devices for run in RUNS]
    asked = [(timed.model, timed.devices) for timed, _ in engine.asked]
    assert asked == [(model, count) for model in EMBEDDED for count in devices * 3]  # a warm-up, two repeats
    configs = [ParallelConfig(strategy=run.strategy) for run in RUNS]
    assert all(made.config in configs and options["device"] == "cpu" for made, options in engine.made)
    for row in rows:
        name = f"{row.model}-{row.run.strategy}-{row.run.devices}"
        assert row.path == tmp_path / f"{name}-sheet.png"
        for file in (f"{name}.png", f"{name}-3.png", f"{name}-sheet.png", f"{name}.json"):
            assert (tmp_path / file).exists()
    assert len({row.path for row in rows}) == len(rows)
    assert capsys.readouterr().err.startswith(EMBEDDED[0])


def test_table_has_a_line_for_each_row() -> None:
    rows = [
        DemoRow("tiny-sdxl", RUNS[0], 6.0, 1.0, math.inf, Path()),
        DemoRow("tiny-sdxl", RUNS[2], 4.0, 1.5, 95.04, Path()),
        DemoRow("tiny-sd3", RUNS[3], 12.0, 0.5, math.inf, Path()),
    ]
    lines = format_table(rows).splitlines()
    assert [line.split()[-1] for line in lines] == ["first", "-", "dB", "identical"]
    assert lines[2].split() == ["tiny-sdxl", "cfg", "2", "4.00", "1.50x", "95.0", "dB"]
    assert lines[3].split()[:3] == ["tiny-sd3", "published", "2"]
    assert len({len(line) for line in lines}) == 1


def test_the_command_tells_the_table_and_where_the_images_are(
    tmp_path: Path, engine: type[FakeEngine], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["demo", "--output", str(tmp_path), "--repeats", "1", "--num_inference_steps", "4"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == '"a large red ring at the left on a white background", 4 steps, cpu'
    assert lines[3].split()[:4] == ["tiny-sdxl", "serial", "1", "4.00"]
    assert lines[-1].strip() == str(tmp_path / "tiny-sd3-hybrid-2-sheet.png")
