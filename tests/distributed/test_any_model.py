"""Any diffusers folder through the command line, on two ranks."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import imageio
import numpy as np
import pytest
import torch
from PIL import Image

from hybridiff import Engine, ParallelConfig, UsageError, load_pipeline
from hybridiff.cli.main import main
from support.engines import wait_for_end
from support.loras import save_lora
from zoo import ZOO

pytestmark = pytest.mark.distributed

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


def test_a_lora_is_swapped_between_requests_of_one_engine(tmp_path: Path) -> None:
    model, pipe = saved("StableDiffusion3Pipeline", tmp_path), ZOO["StableDiffusion3Pipeline"].build()
    one, other = (save_lora(pipe, tmp_path / f"lora-{seed}", seed, 0.3) for seed in (1, 2))
    stranger = save_lora(ZOO["WanPipeline"].build(), tmp_path / "lora-wan", 1)
    call = ZOO["StableDiffusion3Pipeline"].call() | {"num_inference_steps": 3, "output_type": "latent", "seed": 0}
    with Engine(model, 2, ParallelConfig(strategy="cfg"), device="cpu", loras=[f"{one}:0.8"]) as engine:
        ranks = engine.pids
        first = engine.generate(**call).images
        engine.set_loras([other, f"{one}:0.2"])
        second = engine.generate(**call).images
        with pytest.raises(UsageError, match="lora-wan does not fit StableDiffusion3Pipeline"):
            engine.set_loras([one, stranger])
        assert torch.equal(engine.generate(**call).images, second)
        engine.set_loras([])
        plain = engine.generate(**call).images
        engine.set_loras([f"{one}:0.8"])
        assert torch.equal(engine.generate(**call).images, first)
        os.kill(engine.pids[1], signal.SIGKILL)
        wait_for_end(ranks[1:])
        assert torch.equal(engine.generate(**call).images, first)  # ranks started anew have what was set
    assert not torch.equal(first, second)
    assert not torch.equal(first, plain)


@pytest.mark.slow
def test_a_lora_through_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = "tiny-sdxl"
    lora = save_lora(load_pipeline(model), tmp_path / "lora", 1, 0.3)
    stranger = save_lora(ZOO["WanPipeline"].build(), tmp_path / "lora-wan", 1)
    for number, flags in enumerate(([], ["--lora", lora])):
        assert generate(model, *flags, "--output", tmp_path / f"{number}.png") == 0
    images = [np.asarray(Image.open(tmp_path / f"{number}.png")) for number in range(2)]
    assert not np.array_equal(*images)
    assert json.loads((tmp_path / "1.json").read_text())["settings"]["lora"] == [lora]
    capsys.readouterr()
    assert generate(model, "--lora", stranger, "--output", tmp_path / "3.png") == 2
    assert f"the LoRA {stranger} does not fit StableDiffusionXLPipeline" in capsys.readouterr().err
    assert generate(model, "--lora", "/nowhere", "--output", tmp_path / "3.png") == 2
    assert "no LoRA '/nowhere'" in capsys.readouterr().err


def test_an_edit_by_qwen_image_edit(tmp_path: Path) -> None:
    """Its processor of words and images needs torchvision: embeddings take the place of words."""
    specimen = ZOO["QwenImageEditPipeline"]
    model, call = saved("QwenImageEditPipeline", tmp_path), specimen.call()
    stock = specimen.build()(
        **call, num_inference_steps=3, generator=torch.Generator().manual_seed(1), output_type="np"
    )
    with Engine(model, 2, ParallelConfig(strategy="cfg"), device="cpu") as engine:
        edited = engine.generate(**call, num_inference_steps=3, seed=1, output_type="np")
    assert edited.report.branches == 2
    np.testing.assert_allclose(edited.images, stock.images, atol=1e-3)


def test_an_image_through_the_command_line(tmp_path: Path) -> None:
    for number, colour in enumerate(("red", "blue")):
        Image.new("RGB", (128, 128), colour).save(tmp_path / f"{colour}.png")
        output = tmp_path / f"{number}.jpg"
        assert (
            generate("tiny-sdxl", "--image", tmp_path / f"{colour}.png", "--arg", "strength=0.4", "--output", output)
            == 0
        )
    red, blue = (np.asarray(Image.open(tmp_path / f"{number}.jpg"), dtype=float) for number in range(2))
    assert (red - blue)[..., 0].mean() > 20, "what one starts from is seen"


@pytest.mark.slow
def test_a_controlnet_through_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, controlled = saved("QwenImagePipeline", tmp_path), ZOO["QwenImageControlNetPipeline"].build()
    controlled.controlnet.save_pretrained(tmp_path / "controlnet")
    Image.new("RGB", (64, 64), "red").save(tmp_path / "red.png")
    words = ["--negative-prompt", "blurred", "--height", 32, "--width", 32, "--arg", "true_cfg_scale=4"]
    control = ["--controlnet", tmp_path / "controlnet", "--control-image", tmp_path / "red.png"]
    assert generate(model, *words, "--output", tmp_path / "0.png") == 0
    assert generate(model, *words, *control, "--output", tmp_path / "1.png") == 0
    images = [np.asarray(Image.open(tmp_path / f"{number}.png")) for number in range(2)]
    assert not np.array_equal(*images)
    assert json.loads((tmp_path / "1.json").read_text())["settings"]["controlnet"] == [str(tmp_path / "controlnet")]
    capsys.readouterr()
    assert generate(model, *words, "--controlnet", model, "--output", tmp_path / "2.png") == 2
    assert "is not a ControlNet" in capsys.readouterr().err
