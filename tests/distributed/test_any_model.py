"""Any diffusers folder through the command line, on two ranks."""

from __future__ import annotations

import json
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import imageio
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from hybridiff import Engine, ParallelConfig, UsageError, load_pipeline
from hybridiff.cli.main import main
from hybridiff.models.loading import find_model
from support.checkpoints import save_checkpoint
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
        Path(other).rename(tmp_path / "elsewhere")
        with pytest.raises(UsageError, match=r"lora-wan does not fit .*; nor can it .*, so it has no LoRA now"):
            engine.set_loras([stranger])
        without = engine.generate(**call).images
        engine.set_loras([])
        plain = engine.generate(**call).images
        engine.set_loras([f"{one}:0.8"])
        assert torch.equal(engine.generate(**call).images, first)
        os.kill(engine.pids[1], signal.SIGKILL)
        wait_for_end(ranks[1:])
        assert torch.equal(engine.generate(**call).images, first)  # ranks started anew have what was set
    assert not torch.equal(first, second)
    assert not torch.equal(first, plain)
    assert torch.equal(without, plain)


def test_pipelines_that_iterate_over_their_bar_tell_their_steps(tmp_path: Path) -> None:
    specimen, told = ZOO["KandinskyV22Pipeline"], []
    call = specimen.call() | {"num_inference_steps": 3, "output_type": "pt", "seed": 0}
    with Engine(saved("KandinskyV22Pipeline", tmp_path), 2, ParallelConfig(strategy="cfg"), device="cpu") as engine:
        call.pop("generator", None)
        images = engine.generate(**call, on_step=lambda *step: told.append(step)).images
    assert told == [(1, 3), (2, 3), (3, 3)]
    assert images.isfinite().all()


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


def test_a_checkpoint_through_the_command_line_and_an_engine(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, pipe = saved("StableDiffusionPipeline", tmp_path), ZOO["StableDiffusionPipeline"].build()
    lora = save_lora(pipe, tmp_path / "lora", 1, 0.3)
    file = save_checkpoint(pipe, tmp_path / "all.safetensors", ["unet", "vae", "text_encoder"])
    shutil.copytree(model, config := tmp_path / "config", ignore=shutil.ignore_patterns("*.safetensors"))
    Image.new("RGB", (32, 32), "red").save(tmp_path / "red.png")
    call = ["--height", 32, "--width", 32, "--image", tmp_path / "red.png", "--lora", lora, "--scheduler", "euler"]
    assert generate(model, *call, "--output", tmp_path / "0.png") == 0
    assert generate(file, *call, "--model-config", config, "--output", tmp_path / "1.png") == 0
    of_folder, of_file = (np.asarray(Image.open(tmp_path / f"{number}.png")) for number in range(2))
    assert np.array_equal(of_folder, of_file)
    assert json.loads((tmp_path / "1.json").read_text())["settings"]["model_config"] == str(config)
    capsys.readouterr()
    assert generate(model, "--model-config", config) == 2
    assert "is no .safetensors file" in capsys.readouterr().err
    small = save_checkpoint(pipe, tmp_path / "unet.safetensors", ["unet"])
    assert generate(small, "--model-config", config) == 2
    assert "holds weights for text_encoder, vae: give as model config" in capsys.readouterr().err
    broken = load_file(file)
    del broken["first_stage_model.decoder.conv_in.weight"]
    save_file(broken, tmp_path / "broken.safetensors")
    with pytest.raises(UsageError, match=r"cannot read the vae in .*broken\.safetensors .*weights are missing"):
        Engine(tmp_path / "broken.safetensors", 2, device="cpu", model_config=str(config))


def test_a_checkpoint_is_inspected_and_simulated(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pipe = load_pipeline("tiny-sdxl")
    file = save_checkpoint(pipe, tmp_path / "xl.safetensors", ["unet", "vae"])
    flags = ["--model", file, "--model-config", str(find_model("tiny-sdxl").path), "--device", "cpu"]
    flags += ["--num-inference-steps", "4"]
    assert main(["inspect", *flags]) == 0
    assert "StableDiffusionXLPipeline" in capsys.readouterr().out
    (tmp_path / "prompts.txt").write_text("a red ring\n")
    some = ["--prompts", str(tmp_path / "prompts.txt"), "--methods", "exact", "--output", str(tmp_path / "a.json")]
    assert main(["simulate", *flags, *some]) == 0
    assert json.loads((tmp_path / "a.json").read_text())["run"]["model"] == file


def test_a_film_of_an_image(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = saved("LTXImageToVideoPipeline", tmp_path)
    call = ["--height", 32, "--width", 32, "--arg", "num_frames=9", "--guidance-scale", 5]
    films = []
    for colour in ("red", "blue"):
        Image.new("RGB", (64, 64), colour).save(tmp_path / f"{colour}.png")
        film = tmp_path / f"{colour}.mp4"
        assert generate(model, *call, "--image", tmp_path / f"{colour}.png", "--output", film) == 0
        with imageio.get_reader(film) as frames:
            shown: Any = frames
            films.append(np.stack([np.asarray(frame, dtype=float) for frame in shown]))
        written = json.loads(film.with_suffix(".json").read_text())
        assert (written["frames"], written["partition"]["rows"]) == ([film.name], 2)
    assert films[0].shape == (9, 32, 32, 3)
    assert abs(films[0] - films[1]).mean() > 1, "what one starts from is seen"
    capsys.readouterr()
    refused = {
        "needs an image: give one by --image": ["--output", tmp_path / "no.mp4"],
        "cannot write a video as 'no.png'": ["--image", tmp_path / "red.png", "--output", tmp_path / "no.png"],
    }
    for why, flags in refused.items():
        assert generate(model, *call, *flags) == 2
        assert why in capsys.readouterr().err
    assert (
        generate(saved("WanPipeline", tmp_path), "--image", tmp_path / "red.png", "--output", tmp_path / "no.mp4") == 2
    )
    assert "WanPipeline takes no --image" in capsys.readouterr().err


def test_inpainting_leaves_what_is_not_masked_as_it_was(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    image, mask, small = (tmp_path / f"{name}.png" for name in ("image", "mask", "small"))
    Image.new("RGB", (128, 128), "white").save(image)
    painted = Image.new("L", (128, 128))
    painted.paste(255, (64, 0, 128, 128))
    painted.save(mask)
    painted.resize((64, 64)).save(small)
    output = tmp_path / "painted.png"
    flags = ["--image", image, "--mask-image", mask, "--num-inference-steps", 10, "--seed", 2, "--guidance-scale", 5]
    assert generate("tiny-sdxl", *flags, "--output", output) == 0
    change = abs(np.asarray(Image.open(output), dtype=float) - np.asarray(Image.open(image), dtype=float))
    assert change[:, :56].mean() < 10, "but for what encoding and decoding cost"
    assert change[:, 72:].max() > 100, "there is a ring"
    capsys.readouterr()
    refused = {
        "--mask-image says where an image is to be painted anew; give that one too": ["--mask-image", mask],
        "--mask-image has 64x64 pixels, --image has 128x128": ["--image", image, "--mask-image", small],
    }
    for why, wrong in refused.items():
        assert generate("tiny-sdxl", *wrong, "--output", output) == 2
        assert why in capsys.readouterr().err
