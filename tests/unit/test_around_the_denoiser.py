"""What users put around a denoiser, on two simulated ranks: the stock pipeline's images."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch

from hybridiff import RunReport, UsageError
from support.oracles import relative_difference
from support.simulated import report_of, simulate
from zoo import ZOO, run

LAYOUTS = [
    "StableDiffusionPipeline",
    "StableDiffusion3Pipeline",
    "PixArtSigmaPipeline",
    "LTXPipeline",
    "FluxPipeline",
    "QwenImagePipeline",
    "WanPipeline:two-transformers",
    "StableDiffusionInstructPix2PixPipeline",
    "ZImagePipeline",
]
"""Known, watched, a call for each branch, two networks, three branches, the conditional one first."""

ROUNDING = 1e-5
STEPS = 6


def require_stock(name: str, build: Callable[[], Any] | None = None, **changes: Any) -> RunReport:
    """The first call, which may be watched, and a second one make what the stock pipeline makes; the last report."""
    build = build or ZOO[name].build
    alone = run(ZOO[name], build(), **{"steps": STEPS} | changes)
    with simulate(build()) as parallel:
        for _ in range(2):
            result = run(ZOO[name], parallel, **{"steps": STEPS} | changes)
            assert relative_difference(result, alone) < ROUNDING
        return report_of(parallel)


def guided_steps(report: RunReport) -> int:
    return sum(step.discrepancy is not None for step in report.steps)


TOLERATED = {torch.bfloat16: 5e-2, torch.float16: 1e-2}
"""Several times what the dtype itself costs, as these networks amplify it."""


@pytest.mark.parametrize("dtype", TOLERATED, ids=str)
@pytest.mark.parametrize("name", LAYOUTS)
def test_half_precision_is_that_of_the_stock_pipeline(name: str, dtype: torch.dtype) -> None:
    pipe = ZOO[name].build().to(dtype)
    alone = run(ZOO[name], pipe)
    with simulate(pipe) as parallel:
        assert relative_difference(run(ZOO[name], parallel).float(), alone.float()) < TOLERATED[dtype]
        measured = [step.discrepancy for step in report_of(parallel).steps]
    with simulate(ZOO[name].build()) as precise:
        run(ZOO[name], precise)
        expected = [step.discrepancy for step in report_of(precise).steps]
    assert measured == pytest.approx(expected, rel=0.2, abs=0.02)
    with simulate(pipe, "hybrid", full_steps="0-1,3") as cached:
        assert run(ZOO[name], cached).isfinite().all()


@pytest.mark.parametrize(
    "name", ["StableDiffusion3Pipeline", "StableDiffusionXLPipeline", "FluxPipeline", "WanPipeline"]
)
def test_quantised_weights(name: str) -> None:
    quantization = pytest.importorskip("torchao.quantization")

    def build() -> Any:
        pipe = ZOO[name].build()
        network = getattr(pipe, "transformer", None) or pipe.unet
        quantization.quantize_(network, quantization.Int8WeightOnlyConfig())
        return pipe

    require_stock(name, build)


@pytest.mark.parametrize(
    ("name", "layer"),
    [
        ("StableDiffusion3Pipeline", "Linear8bitLt"),
        ("StableDiffusion3Pipeline", "Linear4bit"),
        ("FluxPipeline", "Linear8bitLt"),
        ("FluxPipeline", "Linear4bit"),
        ("WanPipeline", "Linear8bitLt"),
    ],
)
def test_weights_of_bitsandbytes(name: str, layer: str) -> None:
    bitsandbytes = pytest.importorskip("bitsandbytes")

    def build() -> Any:
        pipe = ZOO[name].build()
        quantise(pipe.transformer, getattr(bitsandbytes.nn, layer))
        return pipe

    require_stock(name, build)


def quantise(network: torch.nn.Module, layer: Any) -> None:
    """Put quantised layers in the place of linear ones, as diffusers does on a GPU."""
    options = {"has_fp16_weights": False} if layer.__name__ == "Linear8bitLt" else {"compute_dtype": torch.float32}
    linear = [
        (parent, name, child)
        for parent in network.modules()
        for name, child in parent.named_children()
        if type(child) is torch.nn.Linear and child.in_features % 8 == 0
    ]
    for parent, name, child in linear:
        quantised = layer(child.in_features, child.out_features, child.bias is not None, **options)
        quantised.load_state_dict(child.state_dict())
        setattr(parent, name, quantised.to("cpu"))  # which packs the weights


@pytest.mark.parametrize("name", LAYOUTS)
def test_several_images_a_prompt(name: str) -> None:
    films = {"LTXPipeline", "WanPipeline:two-transformers"}
    changes: dict[str, Any] = {"num_videos_per_prompt" if name in films else "num_images_per_prompt": 2}
    require_stock(name, **changes)


@pytest.mark.parametrize("name", ["StableDiffusionPipeline", "StableDiffusionXLPipeline", "LTXPipeline"])
def test_rescaled_guidance(name: str) -> None:
    require_stock(name, guidance_rescale=0.7)


def change_latents(pipe: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
    return tensors | ({"latents": tensors["latents"] * 1.05} if step == 2 else {})


def change_text(pipe: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
    text = tensors["prompt_embeds"]
    changed = [one * 0.5 for one in text] if isinstance(text, list) else text * 0.5
    return tensors | ({"prompt_embeds": changed} if step == 2 else {})


def halve_guidance(pipe: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
    if step == 2:
        pipe._guidance_scale = pipe._guidance_scale and pipe._guidance_scale / 2
    return tensors


@pytest.mark.parametrize("change", [change_latents, change_text, halve_guidance])
@pytest.mark.parametrize("name", LAYOUTS)
def test_callbacks_that_change_things(name: str, change: Callable[..., dict[str, Any]]) -> None:
    wanted = ["latents", "prompt_embeds"] if change is change_text else ["latents"]
    report = require_stock(name, callback_on_step_end=change, callback_on_step_end_tensor_inputs=wanted)
    assert guided_steps(report) == STEPS
    assert not any(step.extra_evaluations for step in report.steps[:2])


@pytest.mark.parametrize("name", ["StableDiffusionPipeline", "LTXPipeline", "WanPipeline"])
def test_a_promise_says_that_guidance_was_changed(name: str) -> None:
    with simulate(ZOO[name].build(), "hybrid", fidelity=40) as parallel:
        run(ZOO[name], parallel, steps=STEPS)
        assert not any("guidance_scale went" in note for note in report_of(parallel).notes)
        run(ZOO[name], parallel, steps=STEPS, callback_on_step_end=halve_guidance)
        assert (
            "guidance_scale went from 5.0 to 2.5: the promise was reckoned with the former" in report_of(parallel).notes
        )


def end_guidance(pipe: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
    if step != 2:
        return tensors
    pipe._guidance_scale = 1.0
    cut = {name: value[len(value) // 2 :] for name, value in tensors.items() if name != "latents"}
    return tensors | cut


@pytest.mark.parametrize(
    ("name", "cut"),
    [
        ("StableDiffusionPipeline", ["prompt_embeds"]),
        ("StableDiffusionXLPipeline", ["prompt_embeds", "add_text_embeds", "add_time_ids"]),
        ("StableDiffusion3Pipeline", ["prompt_embeds", "pooled_prompt_embeds"]),
        ("LTXPipeline", ["prompt_embeds"]),
        ("WanPipeline:two-transformers", []),
        ("Lumina2Pipeline", []),
    ],
)
def test_a_callback_that_ends_guidance(name: str, cut: list[str]) -> None:
    inputs = ["latents", *cut]
    report = require_stock(name, callback_on_step_end=end_guidance, callback_on_step_end_tensor_inputs=inputs)
    assert guided_steps(report) == (4 if not cut else 3)  # nobody foresees that a second call will not come


def interrupt(pipe: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
    if step == 1:
        pipe._interrupt = True
    return tensors


@pytest.mark.parametrize("name", ["LTXPipeline", "FluxPipeline", "WanPipeline:two-transformers", "ZImagePipeline"])
def test_an_interrupt_stops_two_steps_later_at_the_latest(name: str) -> None:
    with simulate(ZOO[name].build()) as parallel:
        for _ in range(2):
            stopped = run(ZOO[name], parallel, steps=STEPS, callback_on_step_end=interrupt)
            assert stopped.isfinite().all()
            assert 2 <= len(report_of(parallel).steps) <= 4
        assert (
            relative_difference(run(ZOO[name], parallel, steps=STEPS), run(ZOO[name], ZOO[name].build(), steps=STEPS))
            < ROUNDING
        )


@pytest.mark.parametrize(
    ("name", "scheduler", "may_be_cached"),
    [
        ("PixArtSigmaPipeline", "HeunDiscreteScheduler", True),
        ("StableDiffusionInstructPix2PixPipeline", "HeunDiscreteScheduler", True),
        ("WanPipeline", "FlowMatchHeunDiscreteScheduler", True),
        ("PixArtSigmaPipeline", "EulerAncestralDiscreteScheduler", True),
        ("StableDiffusionXLModularPipeline", "EulerAncestralDiscreteScheduler", True),
        ("PixArtSigmaPipeline", "DDPMScheduler", False),
    ],
)
def test_schedulers_of_second_order_and_with_noise(name: str, scheduler: str, may_be_cached: bool) -> None:
    def build() -> Any:
        pipe = ZOO[name].build()
        other = getattr(diffusers, scheduler).from_config(pipe.scheduler.config)
        pipe.register_modules(scheduler=other) if name.startswith("Wan") else setattr(pipe, "scheduler", other)
        return pipe

    report = require_stock(name, build, steps=12)
    with simulate(build(), "hybrid", **{"tolerance": 0.3} if may_be_cached else {}) as hybrid:
        assert relative_difference(run(ZOO[name], hybrid, steps=12), run(ZOO[name], build(), steps=12)) < 0.1
        assert len(report_of(hybrid).steps) == len(report.steps)
        assert ("cached" in report_of(hybrid).kinds) is may_be_cached


def test_checkpoints_of_one_file(tmp_path: Path) -> None:
    """A network that was read from one file and a configuration beside it is one like others."""
    name = "StableDiffusionPipeline"
    pipe = ZOO[name].build()
    pipe.unet.save_pretrained(tmp_path / "unet", safe_serialization=True)
    weights = next((tmp_path / "unet").glob("*.safetensors"))
    loaded = type(pipe.unet).from_single_file(str(weights), config=str(tmp_path / "unet"))
    pipe.unet = loaded
    assert relative_difference(run(ZOO[name], simulate(pipe)), run(ZOO[name], ZOO[name].build())) < ROUNDING


@pytest.mark.parametrize("strategy", ["serial", "cfg"])
def test_caches_of_diffusers_are_refused(strategy: str) -> None:
    pipe = ZOO["FluxPipeline"].build()
    with simulate(pipe, strategy, 1 if strategy == "serial" else 2) as parallel:
        plain = run(ZOO["FluxPipeline"], parallel)
        pipe.transformer.enable_cache(diffusers.FirstBlockCacheConfig(threshold=0.3))
        with pytest.raises(UsageError, match=r"FluxTransformer2DModel has a cache \(FBC\w+\), .* take it off"):
            run(ZOO["FluxPipeline"], parallel)
        pipe.transformer.disable_cache()
        assert torch.equal(run(ZOO["FluxPipeline"], parallel), plain)


def test_another_denoiser_needs_another_parallel_pipeline() -> None:
    specimen = ZOO["StableDiffusionPipeline"]
    pipe = specimen.build()
    with simulate(pipe) as parallel:
        first = pipe.unet
        pipe.unet = specimen.build().unet
        with pytest.raises(
            UsageError, match=r"has another denoiser than when it became parallel; detach\(\) it before"
        ):
            run(specimen, parallel)
        pipe.unet = first
        assert run(specimen, parallel).isfinite().all()


@pytest.mark.parametrize("number", [float, np.float32, torch.tensor])
def test_what_one_guidance_scale_showed_is_not_taken_for_another(number: Callable[[float], Any]) -> None:
    """Two rows may be two branches, or two images without guidance."""
    with simulate(ZOO["SanaPipeline"].build()) as parallel:
        run(ZOO["SanaPipeline"], parallel, guidance_scale=number(5.0))
        assert report_of(parallel).branches == 2
        run(ZOO["SanaPipeline"], parallel, guidance_scale=number(1.0), num_images_per_prompt=2)
        assert report_of(parallel).branches == 1


@pytest.mark.parametrize(
    ("name", "changes", "why"),
    [
        ("FluxPipeline:distilled", {}, "(true_cfg_scale 1.0; it takes more than 1, and a negative prompt)"),
        ("Flux2Pipeline", {"guidance_scale": 4.0}, "(guidance_scale 4.0 adds no branch here)"),
    ],
)
def test_why_guidance_is_off_names_the_scale_that_would_turn_it_on(name: str, changes: Any, why: str) -> None:
    with simulate(ZOO[name].build()) as parallel:
        run(ZOO[name], parallel, **changes)
        assert f"guidance is off {why}: there is one branch only" in report_of(parallel).notes[0]
