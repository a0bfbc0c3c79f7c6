"""Checkpoints in one file give what their folders give, or a sentence that says what is missing."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DiffusionPipeline
from safetensors.torch import save_file

from hybridiff import UsageError, load_pipeline
from hybridiff.models.loading import find_model
from hybridiff.models.loras import find_loras
from hybridiff.models.single_file import SingleFile
from support.checkpoints import save_checkpoint
from zoo import ZOO, run

SD = "StableDiffusionPipeline"
KNOWN = {
    "v1": ("model.diffusion_model.output_blocks.11.0.skip_connection.weight", "stable-diffusion-v1-5"),
    "xl": ("conditioner.embedders.1.model.transformer.resblocks.9.mlp.c_proj.bias", "stable-diffusion-xl-base-1.0"),
}


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Stable Diffusion as a folder, as its JSON files alone, and as one file."""
    place = tmp_path_factory.mktemp("saved")
    pipe = ZOO[SD].build()
    pipe.save_pretrained(place / "folder")
    shutil.copytree(place / "folder", place / "config", ignore=shutil.ignore_patterns("*.safetensors"))
    save_checkpoint(pipe, place / "all.safetensors", ["unet", "vae", "text_encoder"])
    save_checkpoint(pipe, place / "unet.safetensors", ["unet"])
    return place


def weights_of(pipe: Any) -> dict[str, torch.Tensor]:
    networks = {name: part for name, part in pipe.components.items() if isinstance(part, torch.nn.Module)}
    return {f"{part}.{name}": one for part, net in networks.items() for name, one in net.state_dict().items()}


def write_file(path: Path, *names: str) -> str:
    save_file({name: torch.zeros(1) for name in names}, path)
    return str(path)


@pytest.mark.parametrize(("file", "config"), [("all", "config"), ("unet", "folder")])
def test_the_image_is_that_of_the_folder(saved: Path, file: str, config: str) -> None:
    pipe = load_pipeline(saved / f"{file}.safetensors", model_config=str(saved / config))
    assert torch.equal(run(ZOO[SD], pipe), run(ZOO[SD], load_pipeline(saved / "folder")))


@pytest.mark.parametrize(
    "options",
    [
        {"dtype": "bfloat16"},
        {"scheduler": "euler"},
        {"task": "image-to-image"},
        {"task": "inpainting", "dtype": "float16"},
        {"controlnets": ["controlnet"]},
        {"controlnets": ["controlnet"], "task": "image-to-image"},
        {"loras": ["lora"]},
    ],
    ids=str,
)
def test_what_holds_for_folders_holds_for_files(saved: Path, options: dict[str, Any]) -> None:
    if "controlnets" in options:
        controlnet = ZOO["StableDiffusionControlNetPipeline"].build().controlnet
        controlnet.save_pretrained(saved / "controlnet")
        options = options | {"controlnets": [str(saved / "controlnet")]}
    if "loras" in options:
        pytest.importorskip("peft")
        from support.loras import save_lora

        options = options | {"loras": find_loras([save_lora(ZOO[SD].build(), saved / "lora", 1)])}
    of_file = load_pipeline(saved / "all.safetensors", model_config=str(saved / "config"), **options)
    of_folder = load_pipeline(saved / "folder", **options)
    assert type(of_file) is type(of_folder)
    assert type(of_file.scheduler) is type(of_folder.scheduler)
    one, other = weights_of(of_file), weights_of(of_folder)
    assert one.keys() == other.keys()
    assert [name for name in one if one[name].dtype != other[name].dtype or not one[name].equal(other[name])] == []


def test_sdxl_takes_its_text_encoders_from_the_folder(tmp_path: Path) -> None:
    stock = load_pipeline("tiny-sdxl")
    file = save_checkpoint(stock, tmp_path / "xl.safetensors", ["unet", "vae"])
    pipe = load_pipeline(file, model_config=str(find_model("tiny-sdxl").path))
    assert type(pipe) is type(stock)
    assert all(map(torch.equal, weights_of(pipe).values(), weights_of(stock).values()))


@pytest.mark.parametrize("name", ["StableDiffusion3Pipeline", "FluxPipeline", "QwenImagePipeline", "WanPipeline"])
def test_a_transformer_alone_takes_the_rest_from_the_folder(name: str, tmp_path: Path) -> None:
    ZOO[name].build().save_pretrained(tmp_path)
    pipe = load_pipeline(tmp_path / "transformer/diffusion_pytorch_model.safetensors", model_config=str(tmp_path))
    assert torch.equal(run(ZOO[name], pipe), run(ZOO[name], load_pipeline(tmp_path)))


def test_text_encoders_in_the_layout_of_sd3_and_flux(tmp_path: Path) -> None:
    pipe = ZOO["FluxPipeline"].build()
    pipe.save_pretrained(tmp_path)
    prefixes = {
        "text_encoder": "text_encoders.clip_l.transformer.",
        "text_encoder_2": "text_encoders.t5xxl.transformer.",
    }
    weights = {
        prefix + ("text_model." * (part == "text_encoder")) + name.removeprefix("text_model."): weight.clone()
        for part, prefix in prefixes.items()
        for name, weight in getattr(pipe, part).state_dict().items()
    }
    save_file(weights, tmp_path / "all.safetensors")
    found = find_model(tmp_path / "all.safetensors", model_config=str(tmp_path))
    assert isinstance(found, SingleFile)
    assert set(found.held) == {*prefixes, "transformer"}
    read = SingleFile(found.name, found.path, found.file, tuple(prefixes)).read_networks(torch.float32)
    for part, network in read.items():
        own = getattr(pipe, part).state_dict()
        assert [name for name, weight in network.state_dict().items() if not weight.equal(own[name])] == []


def downloads(monkeypatch: pytest.MonkeyPatch, answer: Path | Exception) -> list[str]:
    """Ids that the hub is asked for from now on."""
    asked: list[str] = []

    def download(name: str, allow_patterns: list[str]) -> str:
        asked.append(name)
        assert "*.safetensors" not in allow_patterns
        if isinstance(answer, Exception):
            raise answer
        return str(answer)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    return asked


@pytest.mark.parametrize("known", KNOWN)
def test_the_configuration_is_told_by_what_the_file_holds(
    known: str, saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    key, hub_id = KNOWN[known]
    asked = downloads(monkeypatch, saved / "folder")
    found = find_model(write_file(saved / f"{known}.safetensors", key))
    assert (found.path, [name.partition("/")[2] for name in asked]) == (saved / "folder", [hub_id])
    downloads(monkeypatch, OSError("no answer"))
    with pytest.raises(
        UsageError, match=rf"needs a model config, .*{hub_id}': no such file .*gave none \(no answer\)$"
    ):
        find_model(found.name)


def test_what_the_file_does_not_hold_is_downloaded(
    saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(saved / "config", tmp_path / "cache")
    downloads(monkeypatch, tmp_path / "cache")

    def download(name: str, variant: str, **passed: None) -> None:
        assert (name, variant, passed) == ("a/b", "fp16", {"unet": None, "safety_checker": None})
        for part in ("vae", "text_encoder"):
            shutil.copytree(saved / "folder" / part, tmp_path / "cache" / part, dirs_exist_ok=True)

    def refuse(name: str, **passed: Any) -> None:
        raise OSError("no answer")

    monkeypatch.setattr(DiffusionPipeline, "download", refuse)
    with pytest.raises(UsageError, match=r"the hub gave no text_encoder, vae of a/b \(no answer\)"):
        find_model(saved / "unet.safetensors", "fp16", "a/b")
    monkeypatch.setattr(DiffusionPipeline, "download", download)
    found = find_model(saved / "unet.safetensors", "fp16", "a/b")
    assert isinstance(found, SingleFile)
    assert (found.held, found.missing) == (("unet",), [])


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (("lora_unet_down.lora_up.weight",), "is a LoRA: give it as one"),
        (("unet.to_q.lora.up.weight",), "is a LoRA: give it as one"),
        (("model.diffusion_model.img_in.scale_weight",), "holds scaled fp8 weights, which diffusers cannot read"),
        (("something.else",), "cannot tell what model .* is of: give a model config, a folder or a hub id"),
    ],
)
def test_files_that_are_no_checkpoint_are_refused(names: tuple[str, ...], message: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=message):
        find_model(write_file(tmp_path / "a.safetensors", *names))


def test_a_model_config_is_for_files_alone(saved: Path) -> None:
    for name in (str(saved / "folder"), "tiny-sdxl", "owner/name"):
        with pytest.raises(UsageError, match=r"is no \.safetensors file: .*leave out the model config"):
            load_pipeline(name, model_config=str(saved / "folder"))


def test_what_cannot_be_had_is_said_with_the_remedy(saved: Path, tmp_path: Path) -> None:
    def refused(file: str | Path, config: str | Path) -> str:
        with pytest.raises(UsageError) as caught:
            find_model(file, model_config=str(config))
        assert "\n" not in str(caught.value)
        return str(caught.value)

    file = saved / "unet.safetensors"
    assert "holds weights for text_encoder, vae: give as model config a folder or a hub id of a" in refused(
        file, saved / "config"
    )
    assert "no checkpoint '/nowhere.safetensors': no such file" in refused("/nowhere.safetensors", saved / "config")
    assert "needs a model config, a folder or a hub id: no configuration './no'" in refused(file, "./no")
    assert "there is no model_index.json in" in refused(file, tmp_path)
    network = ["diffusers", "WanTransformer3DModel"]
    write_index(tmp_path / "wan", {"transformer": network, "transformer_2": network})
    assert "no file holds both transformer and transformer_2: load the folder or" in refused(file, tmp_path / "wan")
    write_index(tmp_path / "pixart", {"transformer": ["diffusers", "PixArtTransformer2DModel"]})
    assert "diffusers reads no PixArtTransformer2DModel from a file" in refused(file, tmp_path / "pixart")


def write_index(folder: Path, index: Mapping[str, Any]) -> None:
    folder.mkdir()
    (folder / "model_index.json").write_text(json.dumps(index))
    for part in index:
        (folder / part).mkdir()
        (folder / part / "config.json").write_text("{}")


def test_files_that_do_not_fit_are_one_sentence(saved: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    def refused(file: Path, config: str | Path) -> str:
        with pytest.raises(UsageError) as caught:
            load_pipeline(file, model_config=str(config))
        assert "\n" not in str(caught.value)
        return str(caught.value)

    weights = load_file(saved / "all.safetensors")
    weights.pop("first_stage_model.decoder.conv_in.weight")
    save_file(weights, tmp_path / "broken.safetensors")
    assert "cannot read the vae in" in (text := refused(tmp_path / "broken.safetensors", saved / "config"))
    assert text.endswith("(weights are missing)")
    assert "cannot read the text_encoder in" in refused(saved / "all.safetensors", find_model("tiny-sdxl").path)
