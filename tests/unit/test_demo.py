from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from hybridiff.cli.demo import RUNS, DemoRow, format_table, run_demo
from hybridiff.launch.protocol import Generation
from hybridiff.models.tiny import EMBEDDED
from support.reports import report


class FakeEngine:
    """Draws the same picture on one device and on two, twice as fast on two; remembers the order of requests."""

    asked: list[tuple[str, int]]

    def __init__(self, model: str, devices: int, config: Any, **options: Any) -> None:
        self.model, self.devices = model, devices
        assert config in [run.config for run in RUNS]
        assert options == {"device": "cpu"}

    def generate(
        self, prompt: str, *, seed: int, num_inference_steps: int, num_images_per_prompt: int, guidance_scale: float
    ) -> Generation:
        self.asked.append((self.model, self.devices))
        seconds = num_inference_steps / self.devices
        image = Image.new("RGB", (8, 8), "red")
        return Generation([image] * num_images_per_prompt, report([0.1], devices=self.devices, seconds=seconds), seed)

    def __enter__(self) -> FakeEngine:
        return self

    def __exit__(self, *_: object) -> None:
        pass


def test_ways_take_turns_and_are_compared_with_the_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = type("FreshFakeEngine", (FakeEngine,), {"asked": []})
    monkeypatch.setattr("hybridiff.cli.demo.Engine", engine)
    told: list[str] = []
    rows = list(run_demo(str(tmp_path), steps=8, repeats=2, on_progress=told.append, device="cpu"))
    assert [(row.model, row.run, row.seconds, row.speed_up, row.psnr) for row in rows] == [
        (model, run, 8.0 / run.devices, float(run.devices), math.inf) for model in EMBEDDED for run in RUNS
    ]
    devices = [run.devices for run in RUNS]
    assert engine.asked == [(model, count) for model in EMBEDDED for count in devices * 3]  # a warm-up, two repeats
    for row in rows:
        name = f"{row.model}-{row.run.name}-{row.run.devices}"
        assert row.path == tmp_path / f"{name}-sheet.png"
        assert row.path.exists()
        assert (tmp_path / f"{name}.json").exists()
    assert len({row.path for row in rows}) == len(rows)
    assert told[0].startswith(EMBEDDED[0])


def test_table_has_a_line_for_each_row() -> None:
    rows = [
        DemoRow("tiny-sdxl", RUNS[0], 6.0, 1.0, math.inf, Path()),
        DemoRow("tiny-sdxl", RUNS[2], 4.0, 1.5, 95.04, Path()),
        DemoRow("tiny-sd3", RUNS[3], 12.0, 0.5, math.inf, Path()),
    ]
    lines = format_table(rows).splitlines()
    assert [line.split()[-1] for line in lines] == ["first", "-", "dB", "identical"]
    assert lines[2].split() == ["tiny-sdxl", "cfg", "2", "4.00", "1.50x", "95.0", "dB"]
    assert len({len(line) for line in lines}) == 1
