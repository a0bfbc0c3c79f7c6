"""One call of a parallel pipeline, with all its ranks played in this process."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest
import torch
from diffusers.callbacks import MultiPipelineCallbacks, PipelineCallback, SD3CFGCutoffCallback, SDXLCFGCutoffCallback

from hybridiff import ParallelConfig, ParallelPipeline, Phase, RankError, UsageError, parallelize
from hybridiff.distributed.status import SLOT
from hybridiff.strategies import CfgStrategy, SerialStrategy, Strategy
from support.oracles import generated_one_part_after_another, relative_difference
from support.pipelines import build, call_arguments, generate
from support.schedules import capped, interrupt_after, split_at
from support.simulated import report_of
from zoo import ZOO, run

NAME = "sdxl two levels"


def simulate(name: str, strategy: str = "cfg", scheduler: str | None = None, **config: Any) -> ParallelPipeline:
    return parallelize(build(name, scheduler), ParallelConfig(strategy=strategy, simulate=True, **config))


@pytest.mark.parametrize("name", [NAME, "sd3"])
def test_one_record_a_step(name: str) -> None:
    parallel = simulate(name)
    assert parallel.report is None
    generate(parallel, name, num_inference_steps=5)
    report = report_of(parallel)
    assert (report.strategy, report.devices, report.tau1, report.tau2) == ("cfg", 2, None, None)
    assert [step.index for step in report.steps] == [0, 1, 2, 3, 4]
    assert all(step.phase is Phase.WARM_UP for step in report.steps)
    assert all(step.discrepancy is not None and step.discrepancy > 0 for step in report.steps)
    assert all(step.seconds > 0 for step in report.steps)
    assert report.seconds >= sum(step.seconds for step in report.steps)
    assert list(report.parts) == ["encoding", "denoising", "decoding"]
    (most,) = report.peak_memory
    assert 10**7 < most < 10**12, "bytes of a process that has torch"
    assert sum(report.parts.values()) == pytest.approx(report.seconds)
    assert report.parts["denoising"] >= sum(step.seconds for step in report.steps)
    assert min(report.parts.values()) > 0
    assert report.notes == []
    assert json.loads(report.to_json())["steps"][4]["index"] == 4


def test_a_first_step_whose_guidance_is_found_out_counts_whole() -> None:
    specimen = ZOO["PixArtAlphaPipeline"]
    pipe = specimen.build()
    pipe.transformer.transformer_blocks[0].register_forward_pre_hook(lambda *_: time.sleep(0.05))
    parallel = parallelize(pipe, ParallelConfig(simulate=True))
    run(specimen, parallel)
    assert report_of(parallel).steps[0].seconds >= 0.05


def test_a_scheduler_that_evaluates_twice_a_step_has_a_record_for_each() -> None:
    parallel = simulate(NAME, scheduler="heun")
    generate(parallel, NAME, num_inference_steps=5)
    assert len(report_of(parallel).steps) == 9


def test_a_second_call_has_a_report_of_its_own() -> None:
    parallel = simulate("sd3")
    generate(parallel, "sd3")
    first = report_of(parallel)
    generate(parallel, "sd3", num_inference_steps=2)
    assert report_of(parallel) is not first
    assert (len(first.steps), len(report_of(parallel).steps)) == (4, 2)


@pytest.mark.parametrize(
    ("ranks", "images", "rows"), [(2, 1, 1), (2, 3, 3), (4, 2, 1), (4, 3, 2)], ids=lambda value: str(value)
)
def test_bytes_of_a_step_are_one_buffer_to_each_other_rank(ranks: int, images: int, rows: int) -> None:
    parallel = simulate("sd3", devices=ranks)
    generate(parallel, "sd3", num_images_per_prompt=images)
    copies = ranks * (ranks - 1)
    prediction, slot = rows * 4 * 16 * 16 * 4, SLOT * 4  # most rows that a rank has, and its status; float32
    expected = {"prediction": copies * prediction, "control": copies * slot}
    assert [step.bytes_by_purpose for step in report_of(parallel).steps] == [expected] * 4


def test_serial_has_the_discrepancy_of_cfg_and_sends_nothing() -> None:
    serial = parallelize(build("sd3"), ParallelConfig(strategy="serial"))
    parallel = simulate("sd3")
    generate(serial, "sd3")
    generate(parallel, "sd3")
    for one, other in zip(report_of(serial).steps, report_of(parallel).steps, strict=True):
        assert one.discrepancy == pytest.approx(other.discrepancy, rel=1e-4)
        assert one.bytes == 0


@pytest.mark.parametrize("scale", [1.0, 5.0])
@pytest.mark.parametrize("strategy", [SerialStrategy, CfgStrategy])
def test_a_step_reads_what_the_step_before_left(
    strategy: type[Strategy], scale: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every number that is read from a tensor waits until the device has come that far: never for the step itself."""
    events: list[str] = []
    predict = strategy.predict

    def watched(self: Strategy, evaluation: Any, step: int) -> Any:
        with monkeypatch.context() as watch:
            for name in ("item", "tolist", "__float__", "__bool__"):
                read = getattr(torch.Tensor, name)
                watch.setattr(torch.Tensor, name, lambda tensor, read=read: events.append("read") or read(tensor))
            answer = predict(self, evaluation, step)
        events.append("answered")
        return answer

    monkeypatch.setattr(strategy, "predict", watched)
    generate(simulate(NAME, strategy.name), NAME, guidance_scale=scale, num_inference_steps=5)
    assert events == ["answered", *["read", "answered"] * 4]


@pytest.mark.parametrize(
    ("ranks", "images", "speedup"), [(2, 1, 2), (2, 2, 2), (4, 2, 4), (4, 1, 2), (4, 3, 3), (6, 3, 6)]
)
def test_the_ideal_speedup_counts_the_partition_of_the_images(ranks: int, images: int, speedup: float) -> None:
    parallel = simulate("sd3", devices=ranks)
    generate(parallel, "sd3", num_images_per_prompt=images)
    assert report_of(parallel).ideal_speedup == pytest.approx(speedup)
    partition = {
        "rows": 2 * images,
        "largest": 2 * images // speedup,
        "largest_extra": None,
        "branches": 2,
        "shards": 1,
    }
    assert json.loads(report_of(parallel).to_json())["partition"] == partition


@pytest.mark.parametrize("images", [1, 2])
def test_full_steps_on_one_device_gain_nothing(images: int) -> None:
    parallel = simulate("sd3", "hybrid", devices=1, quality="exact")
    generate(parallel, "sd3", num_images_per_prompt=images)
    assert report_of(parallel).ideal_speedup == 1.0


@pytest.mark.parametrize(("ranks", "speedup"), [(1, 2.0), (2, 4.0), (4, 8.0)])
def test_cached_steps_and_the_partition_of_the_images_multiply(ranks: int, speedup: float) -> None:
    parallel = simulate("sd3", "hybrid", devices=ranks, full_steps="0,3,5")
    generate(parallel, "sd3", num_images_per_prompt=2, num_inference_steps=6)
    assert report_of(parallel).ideal_speedup == pytest.approx(speedup)


def test_serial_has_no_partition() -> None:
    serial = parallelize(build("sd3"), ParallelConfig(strategy="serial"))
    generate(serial, "sd3")
    assert (report_of(serial).partition, report_of(serial).ideal_speedup) == (None, None)


SKIP_LAYERS = {"skip_guidance_layers": [1], "skip_layer_guidance_start": 0.0, "skip_layer_guidance_stop": 0.9}


@pytest.mark.parametrize("images", [1, 2])
def test_skip_layer_guidance_is_part_of_its_step(images: int) -> None:
    parallel = simulate("sd3")
    changes = SKIP_LAYERS | {"num_images_per_prompt": images, "num_inference_steps": 6}
    latents = generate(parallel, "sd3", **changes)
    assert relative_difference(latents, generate(build("sd3"), "sd3", **changes)) < 1e-4
    assert [step.index for step in report_of(parallel).steps] == list(range(6))
    plain = simulate("sd3")
    generate(plain, "sd3", **(changes | {"skip_guidance_layers": None}))
    assert report_of(parallel).steps[0].discrepancy == report_of(plain).steps[0].discrepancy


CACHING = {"strategy": "hybrid", "full_steps": "0,3,5"}
"""Of six steps; 1 and 2 are full where they have an extra evaluation."""


@pytest.mark.parametrize(
    ("config", "ranks", "images", "stop", "speedup"),
    [
        ({}, 2, 1, 0.9, (12 + 5) / (6 + 5)),
        ({}, 2, 2, 0.9, (12 + 5) / (6 + 5 / 2)),
        ({}, 4, 2, 0.9, (12 + 5) / (6 / 2 + 5 / 2)),
        ({}, 4, 4, 0.9, (12 + 5) / (6 / 2 + 5 / 4)),
        (CACHING, 1, 1, 0.5, (12 + 2) / (2 * 5 + 2)),
        (CACHING, 2, 1, 0.5, (12 + 2) / (5 + 2)),
        (CACHING, 2, 2, 0.5, (12 + 2) / (5 + 2 / 2)),
        (CACHING, 2, 1, 0.9, (12 + 5) / (6 + 5)),
        (CACHING | {"full_steps": "0-5"}, 1, 2, 0.9, 1.0),
    ],
)
def test_extra_evaluations_are_not_free(
    config: dict[str, Any], ranks: int, images: int, stop: float, speedup: float
) -> None:
    """Their images are split over all ranks, and the steps that have them are full."""
    parallel = simulate("sd3", devices=ranks, **config)
    changes = SKIP_LAYERS | {"skip_layer_guidance_stop": stop, "num_images_per_prompt": images}
    generate(parallel, "sd3", num_inference_steps=6, **changes)
    report = report_of(parallel)
    assert [step.extra_evaluations for step in report.steps] == [int(0 < step < 6 * stop) for step in range(6)]
    assert report.ideal_speedup == pytest.approx(speedup)


@pytest.mark.parametrize("strategy", ["cfg", "serial"])
@pytest.mark.parametrize("name", [NAME, "sd3"])
@pytest.mark.parametrize("images", [1, 3])
@pytest.mark.parametrize("scale", [0.0, 1.0])
def test_without_guidance_it_runs_and_says_so(name: str, strategy: str, images: int, scale: float) -> None:
    parallel = simulate(name, strategy)
    changes = {"guidance_scale": scale, "num_images_per_prompt": images}
    latents = generate(parallel, name, **changes)
    stock = generate(build(name), name, **changes)
    assert relative_difference(latents, stock) < 1e-4
    if images == 1 or strategy == "serial":
        assert torch.equal(latents, stock)
    report = report_of(parallel)
    assert all(step.discrepancy is None for step in report.steps)
    assert len(report.steps) == 4
    assert len(report.notes) == 1
    assert f"guidance is off (guidance_scale {scale})" in report.notes[0]


def end_guidance_after_step_3(pipe: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
    """As the cutoff callbacks of diffusers, which keep one row of text and so are right for one image only."""
    if step != 3:
        return tensors
    pipe._guidance_scale = 0.0
    texts = {name: tensor.chunk(2)[1] for name, tensor in tensors.items() if name != "latents"}
    return tensors | texts


@pytest.mark.parametrize(
    ("name", "images", "callback"),
    [
        (NAME, 1, SDXLCFGCutoffCallback(cutoff_step_ratio=0.5)),
        ("sd3", 1, SD3CFGCutoffCallback(cutoff_step_ratio=0.5)),
        (NAME, 2, end_guidance_after_step_3),
        (NAME, 3, end_guidance_after_step_3),
        ("sd3", 3, end_guidance_after_step_3),
    ],
)
def test_guidance_that_ends_midway(name: str, images: int, callback: Any) -> None:
    tensors = SDXLCFGCutoffCallback.tensor_inputs if name == NAME else SD3CFGCutoffCallback.tensor_inputs
    changes = {"num_images_per_prompt": images, "num_inference_steps": 6}
    cutoff = {"callback_on_step_end": callback, "callback_on_step_end_tensor_inputs": ["latents", *tensors]}
    parallel = simulate(name)
    latents = generate(parallel, name, **changes, **cutoff)
    assert relative_difference(latents, generate(build(name), name, **changes, **cutoff)) < 1e-4
    assert relative_difference(latents, generate(build(name), name, **changes)) > 1e-3
    known = [step.discrepancy is not None for step in report_of(parallel).steps]
    assert known == [True] * 4 + [False] * 2


class Brighten(PipelineCallback):
    """A callback class that asks for tensors and changes them."""

    tensor_inputs = ["latents"]  # noqa: RUF012 - diffusers' own form

    def callback_fn(self, pipeline: Any, step_index: int, timesteps: Any, callback_kwargs: Any) -> Any:
        callback_kwargs["latents"] = callback_kwargs["latents"] + 0.5
        return callback_kwargs


def brighten(pipe: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
    return tensors | {"latents": tensors["latents"] + 0.5}


@pytest.mark.parametrize(
    "callback",
    [brighten, Brighten(), MultiPipelineCallbacks([Brighten(), SDXLCFGCutoffCallback(cutoff_step_ratio=0.5)])],
    ids=["function", "class", "several"],
)
def test_callbacks_do_what_they_do_in_the_stock_pipeline(callback: Any) -> None:
    parallel = simulate(NAME)
    latents = generate(parallel, NAME, callback_on_step_end=callback)
    assert relative_difference(latents, generate(build(NAME), NAME, callback_on_step_end=callback)) < 1e-4
    assert relative_difference(latents, generate(build(NAME), NAME)) > 1e-3
    assert len(report_of(parallel).steps) == 4


def test_a_callback_is_given_what_it_asks_for() -> None:
    seen: list[tuple[Any, int, set[str]]] = []

    def callback(pipe: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        seen.append((pipe, step, set(tensors)))
        return tensors

    parallel = simulate(NAME)
    wanted = ["latents", "prompt_embeds"]
    generate(parallel, NAME, callback_on_step_end=callback, callback_on_step_end_tensor_inputs=wanted)
    assert [(step, tensors) for _, step, tensors in seen] == [(step, set(wanted)) for step in range(4)]
    assert all(pipe is parallel.pipe for pipe, _, _ in seen)


@pytest.mark.parametrize("strategy", ["cfg", "serial"])
@pytest.mark.parametrize("scale", [1.0, 5.0])
def test_an_interrupt_takes_effect_after_two_further_steps_with_several_ranks(strategy: str, scale: float) -> None:
    """It rides with the message of the next step, which is read before that of the step after it."""
    parallel = simulate(NAME, strategy)
    generate(parallel, NAME, num_inference_steps=8, guidance_scale=scale, callback_on_step_end=interrupt_after(2))
    assert len(report_of(parallel).steps) == 5
    generate(parallel, NAME, num_inference_steps=8, guidance_scale=scale)
    assert len(report_of(parallel).steps) == 8


def test_an_interrupt_of_one_rank_takes_effect_as_in_the_stock_pipeline() -> None:
    parallel = parallelize(build(NAME), ParallelConfig(strategy="serial"))
    changes = {"num_inference_steps": 8, "callback_on_step_end": interrupt_after(2)}
    assert torch.equal(generate(parallel, NAME, **changes), generate(build(NAME), NAME, **changes))
    assert len(report_of(parallel).steps) == 3


def test_an_interrupt_after_guidance_ended_is_heard() -> None:
    def cut_and_interrupt(pipe: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        return interrupt_after(4)(pipe, step, timestep, cutoff(pipe, step, timestep, tensors))  # type: ignore[no-any-return]

    cutoff = SDXLCFGCutoffCallback(cutoff_step_ratio=0.2)
    parallel = simulate(NAME)
    generate(
        parallel,
        NAME,
        num_inference_steps=10,
        callback_on_step_end=cut_and_interrupt,
        callback_on_step_end_tensor_inputs=cutoff.tensor_inputs,
    )
    assert len(report_of(parallel).steps) == 7


@pytest.mark.parametrize("last", [1, 2, 3])
def test_an_interrupt_at_one_of_the_last_steps_changes_nothing(last: int) -> None:
    parallel = simulate(NAME)
    latents = generate(parallel, NAME, callback_on_step_end=interrupt_after(last))
    assert torch.equal(latents, generated_one_part_after_another(NAME))


def test_positional_arguments() -> None:
    parallel = simulate(NAME)
    arguments = call_arguments(NAME)
    prompt = arguments.pop("prompt")
    assert torch.equal(parallel(prompt, **arguments).images, generated_one_part_after_another(NAME))


def test_an_error_leaves_the_last_report_and_the_next_call_in_order() -> None:
    parallel = simulate(NAME)
    first = generate(parallel, NAME)
    report = report_of(parallel)
    with pytest.raises(ValueError, match="divisible by 8") as caught:
        generate(parallel, NAME, height=33)
    assert not isinstance(caught.value, UsageError), "the stock pipeline's own error, as it was"
    assert parallel.report is report
    assert torch.equal(generate(parallel, NAME), first)


def test_a_simulation_decodes_images() -> None:
    images = simulate(NAME)(**call_arguments(NAME, output_type="np")).images
    assert images.shape == (1, 32, 32, 3)


def spoil(module: torch.nn.Module, call: int, value: float) -> Any:
    """Let a layer answer with a number that is none, in one of its calls (from 1)."""
    calls: list[int] = []

    def hook(module: Any, inputs: Any, output: torch.Tensor) -> torch.Tensor:
        calls.append(1)
        return output * value if len(calls) == call else output

    return module.register_forward_hook(hook)


NAN_CASES: dict[str, tuple[dict[str, Any], str, int, str]] = {
    "serial": ({"strategy": "serial"}, "conv_out", 3, "rank 0 predicted NaN or infinity in warm-up, step 2"),
    "cfg": ({"strategy": "cfg"}, "conv_out", 4, "rank 1 predicted NaN or infinity in warm-up, step 1"),
    "the last step": ({"strategy": "cfg"}, "conv_out", 11, "rank 0 predicted NaN or infinity in warm-up, step 5"),
    "full": (
        {"strategy": "hybrid", "full_steps": "0-1,3,5"},
        "conv_out",
        5,
        "rank 0 predicted NaN or infinity in parallel, step 3",
    ),
    "reuse": (
        {"strategy": "hybrid", "step_kind": "reuse", "full_steps": "0-1,4-5", "calibration": split_at("reuse", 1)},
        "conv_out",
        6,
        "rank 1 predicted NaN or infinity in parallel, step 2",
    ),
    "outer stage": (capped(6, 1, 3, 1), "conv_out", 6, "rank 1 predicted NaN or infinity in parallel, step 3"),
    "inner stage": (capped(6, 1, 3, 1), "mid_block", 5, "rank 0 predicted NaN or infinity in parallel, step 3"),
}
"""What runs, which layer fails in which of its calls, what is said; of an inner stage it shows with the next swap."""


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("case", NAN_CASES)
def test_a_prediction_that_is_no_number_is_an_error_with_rank_and_step(case: str, value: float) -> None:
    config, layer, call, sentence = NAN_CASES[case]
    parallel = simulate(NAME, **config)
    good = generate(parallel, NAME, num_inference_steps=6)  # and the network, where need be, is split
    hook = spoil(parallel.pipe.unet.get_submodule(layer), call, value)
    with pytest.raises(RankError, match=sentence):
        generate(parallel, NAME, num_inference_steps=6)
    hook.remove()
    assert torch.equal(generate(parallel, NAME, num_inference_steps=6), good)
