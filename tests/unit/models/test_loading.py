from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler, DiffusionPipeline, EulerDiscreteScheduler, FlowMatchEulerDiscreteScheduler

from hybridiff import UsageError
from hybridiff.denoiser.adapters.unet import UNetAdapter
from hybridiff.models.folder import open_folder
from hybridiff.models.loading import choose_dtype, find_model, load_pipeline
from hybridiff.models.schedulers import (
    SCHEDULERS,
    build_scheduler,
    check_scheduler,
    exchanged_scheduler,
    scheduler_kind,
    scheduler_name,
)
from hybridiff.models.tiny import EMBEDDED
from hybridiff.schedule.presets import ModelSettings, model_name
from zoo import ZOO

CLASSES = {"tiny-sdxl": "StableDiffusionXLPipeline", "tiny-sd3": "StableDiffusion3Pipeline"}


def write_pipeline(folder: Path, **index: Any) -> Path:
    folder.mkdir()
    (folder / "model_index.json").write_text(json.dumps(index))
    return folder


@pytest.mark.parametrize("name", EMBEDDED)
def test_embedded_models_are_stock_pipelines(name: str) -> None:
    pipe = load_pipeline(name)
    assert type(pipe).__name__ == CLASSES[name]
    assert {part.dtype for part in pipe.components.values() if isinstance(part, torch.nn.Module)} == {torch.float32}
    by_path = load_pipeline(find_model(name).path, dtype="float16", scheduler=None)
    assert by_path.vae.dtype == torch.float16


@pytest.mark.parametrize("name", EMBEDDED)
@pytest.mark.parametrize("task", ["image-to-image", "inpainting"])
def test_other_tasks_take_their_pipelines(name: str, task: str) -> None:
    ending = {"image-to-image": "Img2ImgPipeline", "inpainting": "InpaintPipeline"}[task]
    assert type(load_pipeline(name, task=task)).__name__ == CLASSES[name].removesuffix("Pipeline") + ending


def test_scheduler_by_name_keeps_the_models_own_configuration() -> None:
    pipe = load_pipeline("tiny-sdxl", scheduler="ddim")
    own = find_model("tiny-sdxl").scheduler_config
    assert isinstance(pipe.scheduler, DDIMScheduler)
    assert pipe.scheduler.config.prediction_type == own["prediction_type"]
    assert pipe.scheduler.config.clip_sample is False


def test_every_scheduler_is_built_for_its_kind_of_model_and_refused_for_the_other() -> None:
    owners = {"diffusion": EulerDiscreteScheduler(), "flow": FlowMatchEulerDiscreteScheduler()}
    for name, choice in SCHEDULERS.items():
        assert type(build_scheduler(name, owners[choice.kind])).__name__ == choice.class_name
        other = owners["flow" if choice.kind == "diffusion" else "diffusion"]
        with pytest.raises(UsageError, match="choose one of"):
            build_scheduler(name, other)


def test_what_a_scheduler_cannot_keep_is_said(caplog: pytest.LogCaptureFixture) -> None:
    own = DDIMScheduler(rescale_betas_zero_snr=True)
    for name in ("ddim", "euler", "dpmsolver++", "unipc"):
        build_scheduler(name, own)
    build_scheduler("heun", DDIMScheduler())
    assert caplog.messages == []
    build_scheduler("heun", own)
    (message,) = caplog.messages
    assert message.startswith("HeunDiscreteScheduler has no rescale_betas_zero_snr, which the model was trained with")


def test_a_scheduler_is_called_by_its_class_and_what_makes_its_solver_another() -> None:
    own = DDIMScheduler(rescale_betas_zero_snr=True, timestep_spacing="trailing", prediction_type="v_prediction")
    names = {name: scheduler_name(build_scheduler(name, own)) for name in ("ddim", "dpmsolver++", "dpmsolver++-sde")}
    assert names == {
        "ddim": "DDIMScheduler",
        "dpmsolver++": "DPMSolverMultistepScheduler",
        "dpmsolver++-sde": "DPMSolverMultistepScheduler (algorithm_type=sde-dpmsolver++)",
    }
    karras = EulerDiscreteScheduler(use_karras_sigmas=True)
    assert scheduler_name(karras) == "EulerDiscreteScheduler (use_karras_sigmas=True)"


def test_a_pipeline_is_called_what_the_user_called_it(tmp_path: Path) -> None:
    path = tmp_path / "snapshots" / ("0123456789" * 4)
    shutil.copytree(find_model("tiny-sdxl").path, path)
    assert model_name(load_pipeline(open_folder("somebody/a-model", path))) == "a-model"
    assert ModelSettings.find(load_pipeline(open_folder("mine/tiny-sdxl", path)), UNetAdapter()).calibration is None
    assert ModelSettings.find(load_pipeline("tiny-sdxl"), UNetAdapter()).calibration is not None


@pytest.mark.parametrize("name", ["flow-dpmsolver++", "flow-unipc"])
def test_flow_solvers_step_as_the_models_own_flow_does(name: str) -> None:
    own = FlowMatchEulerDiscreteScheduler(shift=3.0)
    built = build_scheduler(name, own)
    assert (built.config.prediction_type, built.config.use_flow_sigmas) == ("flow_prediction", True)
    own.set_timesteps(11)  # the last of its steps is but a hundredth of the way
    built.set_timesteps(10)
    # With the shift, which they call otherwise.
    torch.testing.assert_close(built.sigmas[:-1], own.sigmas[:-2], atol=0.01, rtol=0)
    back = build_scheduler("flow-euler", built)
    assert back.config.shift == 3.0
    assert scheduler_kind({"_class_name": type(built).__name__, **built.config}) == "flow"


def test_an_exchanged_scheduler_comes_back_whatever_happens() -> None:
    pipe = load_pipeline("tiny-sdxl")
    own = pipe.scheduler

    def interrupted(name: str | None, expected: type) -> None:
        with exchanged_scheduler(pipe, name):
            assert type(pipe.scheduler) is expected
            raise KeyboardInterrupt

    for name, expected in ((None, type(own)), ("euler", EulerDiscreteScheduler)):
        with pytest.raises(KeyboardInterrupt):
            interrupted(name, expected)
        assert pipe.scheduler is own
    with pytest.raises(UsageError, match="is for flow-matching models"):
        interrupted("flow-unipc", EulerDiscreteScheduler)
    assert pipe.scheduler is own


def test_scheduler_kind_knows_flows_that_hide_in_other_classes() -> None:
    assert scheduler_kind({"_class_name": "DPMSolverMultistepScheduler", "use_flow_sigmas": True}) == "flow"
    assert scheduler_kind({"_class_name": "UniPCMultistepScheduler", "prediction_type": "epsilon"}) == "diffusion"


def test_unknown_scheduler_dtype_and_task_are_refused_by_name() -> None:
    with pytest.raises(UsageError, match="unknown scheduler 'quick'; choose one of ddim"):
        check_scheduler("quick", {})
    with pytest.raises(UsageError, match="unknown dtype 'float7'"):
        load_pipeline("tiny-sdxl", dtype="float7")
    with pytest.raises(UsageError, match="unknown task 'music'"):
        load_pipeline("tiny-sdxl", task="music")


def test_dtype_follows_the_device_and_the_family() -> None:
    assert choose_dtype(None, "cpu", "unet") is torch.float32
    assert choose_dtype(None, "cuda:1", "unet") is torch.float16
    assert choose_dtype(None, "cuda:1", "transformer") is torch.bfloat16
    assert choose_dtype(torch.float64, "cuda:1", "unet") is torch.float64


@pytest.mark.parametrize("name", ["tiny-sdxx", "./nowhere", "/nowhere/at/all", "a/b/c"])
def test_unknown_model_says_what_was_tried(name: str) -> None:
    with pytest.raises(UsageError, match=r"unknown model .*tiny-sdxl, tiny-sd3.*no such folder"):
        find_model(name)


def test_a_hub_that_does_not_answer_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    def download(name: str, **options: Any) -> str:
        raise OSError("Cannot load model: it is not cached (a long story)\nover many\nlines")

    monkeypatch.setattr(DiffusionPipeline, "download", download)
    with pytest.raises(
        UsageError, match=r"the hub gave no pipeline of that id \(Cannot load model: it is not cached\)$"
    ):
        find_model("someone/something")


def test_a_hub_id_is_downloaded_once_into_a_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    path = find_model("tiny-sdxl").path
    monkeypatch.setattr(DiffusionPipeline, "download", lambda name, variant: str(path))
    assert find_model("someone/something", variant="fp16").path == path


def test_folders_that_hold_no_pipeline_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"no model_index\.json"):
        find_model(tmp_path)
    file = tmp_path / "weights.safetensors"
    file.touch()
    with pytest.raises(UsageError, match=r"cannot read .*weights\.safetensors"):
        find_model(file)
    with pytest.raises(UsageError, match=r"weights\.ckpt is a file; a folder .* or a \.safetensors file is needed"):
        find_model(file.rename(tmp_path / "weights.ckpt"))
    with pytest.raises(UsageError, match="StableAudioUpscaler without a unet or transformer"):
        find_model(write_pipeline(tmp_path / "a", _class_name="StableAudioUpscaler"))
    (tmp_path / "a" / "model_index.json").write_text("{")
    with pytest.raises(UsageError, match=r"cannot read .*model_index.json"):
        find_model(tmp_path / "a")


def test_a_denoiser_may_have_other_names(tmp_path: Path) -> None:
    ZOO["StableCascadeDecoderPipeline"].build().save_pretrained(tmp_path)
    assert find_model(tmp_path).denoiser == "decoder"


def test_an_incomplete_folder_is_one_sentence(tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(find_model("tiny-sd3").path, broken)
    (broken / "vae" / "config.json").unlink()
    with pytest.raises(UsageError, match="cannot load a pipeline from") as caught:
        load_pipeline(broken)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("model", "call", "message"),
    [
        ("tiny-sdxl", {"height": 100}, "height must be a positive multiple of 8 for tiny-sdxl, got 100"),
        ("tiny-sd3", {"width": -16}, "width must be a positive multiple of 16 for tiny-sd3, got -16"),
        ("tiny-sd3", {"height": 10_000_000}, r"height must be at most \d+ pixels for tiny-sd3, got 10000000"),
        ("tiny-sdxl", {"height": 10_000_000}, "height must be at most 16384 pixels for tiny-sdxl, got 10000000"),
        ("tiny-sd3", {"num_inference_steps": 0}, "num_inference_steps must be an integer from 1 to 10000, got 0"),
        ("tiny-sdxl", {"num_images_per_prompt": 1.5}, "num_images_per_prompt must be an integer from 1 to 1024"),
        ("tiny-sdxl", {"guidance_scale": float("nan")}, "guidance_scale must be a finite number, got nan"),
    ],
)
def test_calls_that_cannot_work_are_refused_from_the_folder_alone(
    model: str, call: dict[str, Any], message: str
) -> None:
    folder = find_model(model)
    folder.check_call({"height": 128, "width": 128, "num_inference_steps": 50})
    with pytest.raises(UsageError, match=message):
        folder.check_call(call)
