"""`hybridiff evaluate`: bad input is refused before any rank starts; what it writes, with images by a fake engine."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from hybridiff.cli.main import main, parse
from hybridiff.evaluation.images import drawing
from hybridiff.evaluation.images.gallery import PictureRecord
from hybridiff.models.tiny.scenes import parse_caption, split_of

TINY = ["evaluate", "--model", "tiny-sdxl", "--device", "cpu"]


@pytest.fixture(autouse=True)
def no_ranks(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def start(*_: Any, **options: Any) -> None:
        pytest.fail("ranks started")

    monkeypatch.setattr(drawing, "Engine", start)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["evaluate"], "Missing option '--model'; see hybridiff evaluate --help"),
        (["evaluate", "--model", "some/model"], "give --prompts FILE: only tiny-sdxl and tiny-sd3 bring prompts"),
        ([*TINY, "--prompts", "/nowhere"], "cannot read the prompts file /nowhere"),
        ([*TINY, "--strategies", "magic"], "unknown strategy 'magic'; choose one of serial, cfg, hybrid, published"),
        (
            [*TINY, "--strategies", "hybrid:speed=3"],
            "hybrid:speed=3: unknown setting of 'hybrid' 'speed'",
        ),
        (
            [*TINY, "--strategies", "published", "--devices", "3"],
            "strategy 'published' needs an even number of ranks",
        ),
        ([*TINY, "--reference", "/nowhere"], "--reference /nowhere is no folder"),
        ([*TINY, "--lpips", "/nowhere"], "--lpips /nowhere cannot be used: its weights are not on this disk"),
        ([*TINY, "--inception", "/nowhere"], "--inception /nowhere cannot be used: its weights are not on this disk"),
        ([*TINY, "--limit", "0"], "--limit must be at least 1, got 0"),
        ([*TINY, "--images-per-prompt", "0"], "--images-per-prompt must be at least 1, got 0"),
        ([*TINY, "--arg", "num_images_per_prompt=2"], "has a flag of its own: use --images-per-prompt"),
        ([*TINY, "--arg", "output_type=latent"], "--arg output_type cannot be changed here"),
        ([*TINY, "--arg", "magic=1"], "unknown argument of StableDiffusionXLPipeline 'magic'"),
        ([*TINY, "--scheduler", "flow-euler"], "is for flow"),
        ([*TINY, "--height", "3"], "height must be a positive multiple of"),
        ([*TINY, "--output", "/proc/nowhere"], "cannot write to the output folder /proc/nowhere"),
    ],
)
def test_bad_input_is_one_sentence(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 2
    captured = capsys.readouterr()
    assert message in captured.err
    assert (captured.out, captured.err.count("\n")) == ("", 1)


def test_it_is_not_run_under_torchrun(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.setenv(name, "1")
    assert main(TINY) == 2
    assert "hybridiff evaluate starts ranks by itself; run it without torchrun" in capsys.readouterr().err


def test_embedded_models_bring_captions_that_no_model_was_trained_on() -> None:
    prompts = parse([*TINY, "--limit", "20", "--images-per-prompt", "2"]).all_prompts()
    assert [prompt.seed for prompt in prompts] == list(range(40))
    assert {len(parse_caption(prompt.prompt).objects) for prompt in prompts} == {1, 2}
    assert len({prompt.prompt for prompt in prompts}) == 20
    assert all(split_of(parse_caption(prompt.prompt)) in ("evaluation", "train", "calibration") for prompt in prompts)


def test_it_measures_and_writes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def draw(gallery: Any, model: Any, call: Any, on_progress: Any, **options: Any) -> None:
        assert (model.name, call["guidance_scale"], options["device"]) == ("tiny-sdxl", 2.0, "cpu")
        for strategy in gallery.configs:
            for number in gallery.missing(strategy):
                gallery.add(strategy, number, Image.new("RGB", (64, 64), "red"), PictureRecord("p", 0, "ff", None))

    monkeypatch.setattr(drawing, "draw_missing", draw)
    prompts = tmp_path / "prompts.json"
    prompts.write_text(json.dumps({"annotations": [{"image_id": n, "id": n, "caption": "a cat"} for n in range(3)]}))
    command = [
        *TINY,
        "--prompts",
        str(prompts),
        "--limit",
        "2",
        "--strategies",
        "cfg",
        "--output",
        str(tmp_path / "out"),
    ]
    assert main(command) == 0
    captured = capsys.readouterr()
    assert captured.out.startswith("strategy  images  full steps")
    assert "FID skipped: no weights at hand: give --inception FILE" in captured.out
    content = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert [row["strategy"] for row in content["rows"]] == ["serial", "cfg"]
    assert content["rows"][1]["psnr"] == 100.0
    assert content["run"] == {
        "model": "tiny-sdxl",
        "pipeline": "StableDiffusionXLPipeline",
        "dtype": "float32",
        "scheduler": "DDIMScheduler",
        "device": "cpu",
        "images_per_prompt": 1,
        "guidance_scale": 2.0,
    }
    assert content["machine"]["torch"] == torch.__version__
    assert {"metrics.json", "metrics.md", "index.html"} <= {path.name for path in (tmp_path / "out").iterdir()}
    assert main([*command, "--num-inference-steps", "9"]) == 2
    assert (
        "holds other images, with other num_inference_steps; use another --output, or --fresh"
        in capsys.readouterr().err
    )
