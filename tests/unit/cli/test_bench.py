"""`hybridiff bench`: what it writes, and what it refuses before anything starts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hybridiff.cli.main import main
from hybridiff.launch.protocol import Generation
from support.fake_engine import FakeEngine
from support.reports import report


class TwiceAsFast(FakeEngine):
    """Two ranks are twice as fast; an unguided call takes half, a smaller picture less."""

    def answer(self, seed: int, call: dict[str, Any]) -> Generation:
        branches = 1 if call["guidance_scale"] == 1.0 else 2
        seconds = branches * call.get("height", 512) / 512 / self.devices
        parts = {"encoding": 0.0, "denoising": seconds, "decoding": 0.5}
        told = report(
            [0.1] * 3, strategy=self.config.strategy, devices=self.devices, seconds=seconds + 0.5, parts=parts
        )
        return Generation(np.zeros((1, 16, 16, 3)), told, seed)


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> type[FakeEngine]:
    return TwiceAsFast.take_place(monkeypatch)


def bench(*arguments: object, model: str = "tiny-sdxl") -> int:
    common = ["bench", "--model", model, "--num-inference-steps", 3, "--device", "cpu", "--repeats", 2, "--limit", 1]
    return main([str(argument) for argument in (*common, *arguments)])


def test_rows_page_and_charts_are_written(
    tmp_path: Path, engine: type[FakeEngine], capsys: pytest.CaptureFixture[str]
) -> None:
    assert (
        bench("--strategies", "cfg,hybrid:fidelity=50", "--output", tmp_path / "a", "--json", tmp_path / "r.json") == 0
    )
    content = json.loads((tmp_path / "r.json").read_text())
    assert [(row["strategy"], row["devices"], row["speedup"], row["psnr"]) for row in content["rows"]] == [
        ("serial", 1, 1.0, 100.0),
        ("cfg", 2, 2.0, 100.0),
        ("hybrid:fidelity=50", 2, 2.0, 100.0),
        ("hybrid:fidelity=50", 1, 1.0, 100.0),
    ]
    assert content["rows"][1]["rho"] == content["rows"][1]["ideal_speedup"] == 2.0
    assert content["rows"][1]["efficiency"] == 1.0
    assert content["command"].startswith("hybridiff ")
    assert content["machine"]["device"] == "cpu"
    assert content["run"]["prompts"][0]["seed"] == 0
    assert {path.name for path in (tmp_path / "a").iterdir()} == {"r.md", "r-speed.png", "r-fidelity.png"}
    assert str(tmp_path / "a" / "r.md") in capsys.readouterr().out
    timed = [made.config for made, _ in engine.made if made.config.trace]
    assert [config.fidelity for config in timed] == [None, None, 50, 50]
    assert all(options["device"] == "cpu" for _, options in engine.made)


def test_all_engines_compile_and_the_page_says_so(tmp_path: Path, engine: type[FakeEngine]) -> None:
    assert bench("--strategies", "cfg", "--compile", "blocks", "--output", tmp_path) == 0
    assert {options["compile"] for _, options in engine.made} == {"blocks"}
    assert "Denoisers are compiled (blocks) for all rows" in (tmp_path / "bench.md").read_text()


def test_resolutions_are_measured_up_to_the_largest_and_predicted_beyond(
    tmp_path: Path, engine: type[FakeEngine]
) -> None:
    sizes = ("--resolutions", "256,512,768,1024", "--largest", 768)
    assert bench("--strategies", "cfg", *sizes, "--output", tmp_path) == 0
    content = json.loads((tmp_path / "bench.json").read_text())
    found = [(row["resolution"], row["strategy"], row.get("is_predicted", False)) for row in content["rows"]]
    assert found == [(side, strategy, side == 1024) for side in (256, 512, 768, 1024) for strategy in ("serial", "cfg")]
    assert len(content["prediction"]) == 1
    assert {call["height"] for _, call in engine.asked} == {call["width"] for _, call in engine.asked}
    assert (tmp_path / "bench-resolution.png").exists()


def test_bench_models_show_no_fidelity_and_replay_schedules_of_trained_ones(
    tmp_path: Path, engine: type[FakeEngine], capsys: pytest.CaptureFixture[str]
) -> None:
    assert bench("--strategies", "hybrid", "--output", tmp_path, model="bench-sd3") == 0
    content = json.loads((tmp_path / "bench.json").read_text())
    assert not any("psnr" in row for row in content["rows"])
    assert not (tmp_path / "bench-fidelity.png").exists()
    configs = [made.config for made, _ in engine.made if made.config.strategy == "hybrid"]
    assert all(config.full_steps and config.quality is None for config in configs)
    said = capsys.readouterr().out
    assert f"hybrid: full steps {configs[0].full_steps}, as tiny-sd3 typically chooses them in 3 steps" in said
    assert "No fidelity: the weights of bench-sd3 are random" in said


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--strategies", "magic"], "unknown strategy 'magic'; choose one of serial, cfg, hybrid, published"),
        (["--devices", 3], "strategy 'published' needs an even number of ranks, 2 at least, got 3"),
        (["--strategies", "hybrid:full_steps=0-4"], "full step 4 lies beyond the last of 3 steps (2)"),
        (["--guidance-scale", 1], "guidance_scale must be above 1, got 1"),
        (["--num-inference-steps", 2], "num_inference_steps must be at least 3, got 2"),
        (["--size", "full"], "--size full is for bench-sdxl, bench-sd3, bench-qwen-image, got 'tiny-sdxl'"),
        (
            ["--model", "bench-sd3", "--size", "full"],
            "bench-sd3-full is for a GPU; on a CPU use bench-sdxl or bench-sd3",
        ),
        (["--resolutions", "512,large"], "--resolutions must look like 512,1024,2048, got '512,large'"),
        (["--resolutions", "512,513"], "height must be"),
        (["--resolutions", "512", "--height", 512], "give either --resolutions or --height and --width"),
        (["--resolutions", "512,2048"], "predictions need two measured resolutions or more, got 1 of at most 1024"),
        (["--arg", "magic=1"], "unknown argument of StableDiffusionXLPipeline 'magic'"),
        (["--repeats", 0], "--repeats must be at least 1, got 0"),
        (["--json", "rows.txt"], "'rows.txt' must name a .json file"),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_starts(
    arguments: list[Any], message: str, engine: type[FakeEngine], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert bench("--output", tmp_path, *arguments) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"hybridiff: {message}")
    assert len(said.splitlines()) == 1
    assert engine.made == []


def test_torchrun_is_refused(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.setenv(name, "1")
    assert bench() == 2
    assert capsys.readouterr().err == "hybridiff: bench starts ranks of its own: run it without torchrun\n"
