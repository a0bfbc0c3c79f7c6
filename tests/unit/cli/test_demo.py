from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from hybridiff import ParallelConfig
from hybridiff.cli.demo import RUNS, DemoRow, format_table, run_demo
from hybridiff.cli.main import main
from hybridiff.launch.protocol import Generation, OnStep
from hybridiff.models.tiny import EMBEDDED
from support.reports import report


class FakeEngine:
    """The same image on one device and on two, twice as fast on two; remembers the order of requests."""

    asked: list[tuple[str, int]]

    def __init__(self, model: str, devices: int, config: Any, **options: Any) -> None:
        self.model, self.devices = model, devices
        assert config in [ParallelConfig(strategy=run.strategy) for run in RUNS]
        assert options["device"] == "cpu"

    def generate(
        self,
        prompt: str,
        *,
        seed: int,
        num_inference_steps: int,
        num_images_per_prompt: int,
        guidance_scale: float,
        on_step: OnStep | None = None,
    ) -> Generation:
        if on_step is not None:  # it keeps a core busy
            on_step(1, num_inference_steps)
        else:
            self.asked.append((self.model, self.devices))
        seconds = num_inference_steps / self.devices
        image = Image.new("RGB", (8, 8), "red")
        return Generation([image] * num_images_per_prompt, report([0.1], devices=self.devices, seconds=seconds), seed)

    def drain(self) -> None:
        pass

    def __enter__(self) -> FakeEngine:
        return self

    def __exit__(self, *_: object) -> None:
        pass


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> type[FakeEngine]:
    fresh = type("FreshFakeEngine", (FakeEngine,), {"asked": []})
    monkeypatch.setattr("hybridiff.launch.engine.Engine", fresh)
    return fresh


def test_ways_take_turns_and_are_compared_with_the_first(
    tmp_path: Path, engine: type[FakeEngine], capsys: pytest.CaptureFixture[str]
) -> None:
    rows = list(run_demo(tmp_path, steps=8, repeats=2, device="cpu"))
    assert [(row.model, row.run, row.seconds, row.speed_up, row.psnr) for row in rows] == [
        (model, run, 8.0 / run.devices, float(run.devices), math.inf) for model in EMBEDDED for run in RUNS
    ]
    devices = [run.devices for run in RUNS]
    assert engine.asked == [(model, count) for model in EMBEDDED for count in devices * 3]  # a warm-up, two repeats
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
