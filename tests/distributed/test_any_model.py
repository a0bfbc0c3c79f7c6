"""Any diffusers folder through the command line, on two ranks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import imageio
import pytest

from hybridiff.cli.main import main
from zoo import ZOO

pytestmark = [pytest.mark.distributed, pytest.mark.slow]

ON_TWO = ["--devices", "2", "--device", "cpu", "--num-inference-steps", "3", "--seed", "1"]


def saved(name: str, folder: Path) -> str:
    """The folder of a specimen of the zoo."""
    ZOO[name].build().save_pretrained(folder / name)
    return str(folder / name)


def generate(model: str, *flags: Any) -> int:
    return main(["generate", "--model", model, "--prompt", "a red ring", *ON_TWO, *map(str, flags)])


def test_a_video_file_of_a_tiny_wan(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = saved("WanPipeline", tmp_path)
    call = ["--negative-prompt", "blurred", "--height", 32, "--width", 32, "--arg", "max_sequence_length=16"]
    call += ["--arg", "num_frames=5"]
    assert generate(model, *call, "--output", tmp_path / "ring.png") == 2
    assert "cannot write a video as 'ring.png'; use one of .mp4, .gif" in capsys.readouterr().err
    assert generate(model, *call, "--output", tmp_path / "ring.mp4", "--fps", 8) == 0
    with imageio.get_reader(tmp_path / "ring.mp4") as film:
        assert (film.count_frames(), film.get_meta_data()["size"]) == (5, (32, 32))
    written = json.loads((tmp_path / "ring.json").read_text())
    assert (written["frames"], written["devices"], written["partition"]["rows"]) == (["ring.mp4"], 2, 2)
