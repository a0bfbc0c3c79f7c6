"""A ControlNet is evaluated where the denoiser is: the rows that a rank has, each once, and none at cached steps."""

from __future__ import annotations

import functools
import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import diffusers
import pytest
import torch
from diffusers import MultiControlNetModel, SparseControlNetModel

from hybridiff.denoiser.control import ControlCall, ControlNets
from hybridiff.denoiser.deferred import DeferredTensor, mapped
from hybridiff.denoiser.replay import leaves
from support.oracles import relative_difference
from support.pipelines import start_image
from support.simulated import simulate
from zoo import ZOO, Specimen, run
from zoo.networks import copied_controlnet

ROUNDING = 3e-5
"""Difference that comes of evaluating the branches in batches of their own."""

CONTROLLED = "StableDiffusionControlNetPipeline"


@contextmanager
def counted(module: torch.nn.Module) -> Iterator[list[int]]:
    """Rows of each evaluation of a module."""
    rows: list[int] = []
    hook = module.register_forward_hook(lambda *given: rows.append(len(given[-1])))
    yield rows
    hook.remove()


def with_two_controlnets(name: str = CONTROLLED) -> Any:
    pipe = ZOO[name].build()
    pipe.register_modules(controlnet=MultiControlNetModel([pipe.controlnet, ZOO[name].build().controlnet]))
    return pipe


TWO = {"image": [start_image(), start_image().rotate(90)], "controlnet_conditioning_scale": [0.8, 0.3]}

# What is called how, where its rows are counted, and how many in each step after the first.
COUNTED: dict[str, tuple[Callable[[], Any], dict[str, Any], Callable[[Any], torch.nn.Module]]] = {
    CONTROLLED: (ZOO[CONTROLLED].build, {}, lambda pipe: pipe.controlnet.conv_in),
    "StableDiffusionXLControlNetUnionPipeline": (
        ZOO["StableDiffusionXLControlNetUnionPipeline"].build,
        {},
        lambda pipe: pipe.controlnet.conv_in,
    ),
    "StableDiffusion3ControlNetPipeline": (
        ZOO["StableDiffusion3ControlNetPipeline"].build,
        {},
        lambda pipe: pipe.controlnet.pos_embed.proj,
    ),
    "SanaControlNetPipeline": (ZOO["SanaControlNetPipeline"].build, {}, lambda pipe: pipe.controlnet.input_block),
    "HunyuanDiTControlNetPipeline": (
        ZOO["HunyuanDiTControlNetPipeline"].build,
        {},
        lambda pipe: pipe.controlnet.input_block,
    ),
}


@pytest.mark.parametrize("name", COUNTED)
def test_each_row_is_evaluated_once(name: str) -> None:
    build, changes, place = COUNTED[name]
    with simulate(build()) as parallel, counted(place(parallel.pipe)) as rows:
        run(ZOO[name], parallel, **changes)
        assert rows == [2, 1] + [1, 1] * 3
        rows.clear()
        run(ZOO[name], parallel, **changes)
        assert rows == [2] + [1, 1] * 3


@pytest.mark.parametrize("name", COUNTED)
def test_cached_steps_evaluate_none(name: str) -> None:
    build, changes, place = COUNTED[name]
    with simulate(build(), "hybrid", full_steps="0,3") as parallel, counted(place(parallel.pipe)) as rows:
        run(ZOO[name], parallel, **changes)
    assert rows == [2, 1, 1, 1]


def test_one_rank_evaluates_whole_batches_and_none_at_cached_steps() -> None:
    specimen = ZOO[CONTROLLED]
    parallel = simulate(specimen.build(), "hybrid", devices=1, full_steps="0,3")
    with parallel, counted(parallel.pipe.controlnet.conv_in) as rows:
        run(specimen, parallel)
    assert rows == [2, 1, 2]


def test_calls_of_their_own_share_one_evaluation() -> None:
    """The ControlNet of FLUX serves both branches: each rank needs all its rows."""
    specimen = ZOO["FluxControlNetPipeline"]
    with simulate(specimen.build(), "hybrid", full_steps="0,3") as parallel:
        with counted(parallel.pipe.controlnet.x_embedder) as rows:
            run(specimen, parallel)
        assert rows == [1, 1]
        assert parallel.report is not None
        assert [step.extra_evaluations for step in parallel.report.steps] == [0] * 4


@pytest.mark.parametrize(
    ("build", "changes", "expected"),
    [
        pytest.param(ZOO[CONTROLLED].build, {"guess_mode": True}, [1] * 4, id="guess mode"),
        pytest.param(with_two_controlnets, TWO, [2, 1] + [1, 1] * 3, id="two ControlNets"),
        pytest.param(with_two_controlnets, TWO | {"guess_mode": True}, [1] * 4, id="two ControlNets, guess mode"),
        pytest.param(
            with_two_controlnets,
            TWO | {"control_guidance_end": [1.0, 0.5]},
            [2, 1, 1, 1, 2, 1, 1, 1],
            id="end",
        ),
        pytest.param(ZOO[CONTROLLED].build, {"guidance_scale": 1.0}, [1] * 4, id="no guidance"),
        pytest.param(
            ZOO[CONTROLLED].build,
            {"guidance_scale": 1.0, "num_images_per_prompt": 2},
            [2, 1] + [1, 1] * 3,
            id="two images without guidance",
        ),
        pytest.param(ZOO[CONTROLLED].build, {"num_images_per_prompt": 3}, [6, 3] + [3, 3] * 3, id="three images"),
    ],
)
def test_it_is_the_stock_pipeline(build: Callable[[], Any], changes: dict[str, Any], expected: list[int]) -> None:
    specimen, pipe = ZOO[CONTROLLED], build()
    alone = run(specimen, pipe, **changes)
    network = pipe.controlnet.nets[0] if isinstance(pipe.controlnet, MultiControlNetModel) else pipe.controlnet
    with simulate(pipe) as parallel, counted(network.conv_in) as rows:
        result = run(specimen, parallel, **changes)
    assert relative_difference(result, alone) <= ROUNDING
    assert rows == expected


def test_a_controlnet_for_each_branch_leaves_all_to_every_rank() -> None:
    specimen = ZOO["StableDiffusionXLModularPipeline"]
    pipe = specimen.build()
    pipe.update_components(controlnet=copied_controlnet(pipe))
    alone = run(specimen, pipe, control_image=start_image())
    with simulate(pipe, "hybrid", full_steps="0,3") as parallel, counted(pipe.controlnet.conv_in) as rows:
        assert torch.equal(run(specimen, parallel, control_image=start_image()), alone)
        assert parallel.report is not None
        assert "it calls its ControlNet for each guidance branch" in parallel.report.notes[0]
    assert rows == [1] * 8


def sparsely_controlled() -> tuple[Specimen, Any]:
    """AnimateDiff with a ControlNet of its own kind, which has a film for a row and a line for each frame."""
    specimen = ZOO["AnimateDiffControlNetPipeline"]
    pipe = specimen.build()
    torch.manual_seed(4)
    settings = pipe.controlnet.config
    names = ("block_out_channels", "layers_per_block", "cross_attention_dim", "norm_num_groups")
    blocks = tuple(block.replace("2D", "Motion") for block in settings.down_block_types)
    network = SparseControlNetModel(
        in_channels=4,
        down_block_types=blocks,
        conditioning_channels=3,
        attention_head_dim=settings.attention_head_dim,
        motion_num_attention_heads=2,
        concat_conditioning_mask=True,
        use_simplified_condition_embedding=False,
        conditioning_embedding_out_channels=(8, 16),
        **{name: settings[name] for name in names},
    )
    with torch.no_grad():
        for weight in network.parameters():
            if not weight.any():
                weight.copy_(torch.randn_like(weight) * 0.05)
    parts = {name: part for name, part in pipe.components.items() if name != "controlnet"}
    return specimen, diffusers.AnimateDiffSparseControlNetPipeline(**parts, controlnet=network.eval())


def test_a_film_has_several_lines_a_row() -> None:
    specimen, pipe = sparsely_controlled()
    frames = len(specimen.call()["conditioning_frames"])
    changes: dict[str, Any] = {
        "conditioning_frames": [start_image()],
        "controlnet_frame_indices": [0],
        "num_frames": frames,
    }
    alone = run(specimen, pipe, **changes)
    with simulate(pipe) as parallel, counted(pipe.controlnet.conv_in) as rows:
        result = run(specimen, parallel, **changes)
    assert relative_difference(result, alone) <= ROUNDING
    assert [count // frames for count in rows] == [2, 1] + [1, 1] * 3


@pytest.mark.parametrize("config", [{}, {"strategy": "hybrid", "full_steps": "0,2-3"}], ids=["cfg", "cached"])
@pytest.mark.parametrize("name", [CONTROLLED, "StableDiffusion3ControlNetPipeline", "SanaControlNetPipeline"])
def test_deferred_is_what_is_evaluated_at_once(
    name: str, config: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bit for bit the same as a ControlNet that is evaluated at every call, in the same parts, without deferring."""
    with simulate(ZOO[name].build(), **config) as parallel:
        deferred = run(ZOO[name], parallel)
    monkeypatch.setattr(ControlCall, "defer", evaluate_in_halves)
    with simulate(ZOO[name].build(), **config) as parallel:
        assert torch.equal(run(ZOO[name], parallel), deferred)


def evaluate_in_halves(self: ControlCall, form: Any) -> Any:
    half = self.rows // 2
    parts = [list(leaves(self.run(part))) for part in (slice(0, half), slice(half, self.rows))]
    joined = iter([torch.cat(pieces) for pieces in zip(*parts, strict=True)])
    return mapped(form, lambda _: next(joined))


def test_nothing_is_left_behind() -> None:
    specimen = ZOO[CONTROLLED]
    pipe = specimen.build()
    names = {name: set(vars(module)) for name, module in pipe.controlnet.named_modules()}
    parallel = simulate(pipe)
    run(specimen, parallel)
    gc.collect()
    held = (DeferredTensor, ControlCall)
    assert not [one for one in gc.get_objects() if issubclass(type(one), held)]
    alone = run(specimen, pipe)  # called directly it is the stock pipeline
    again = simulate(pipe)  # which detaches the one before
    again.detach()
    assert {name: set(vars(module)) for name, module in pipe.controlnet.named_modules()} == names
    assert torch.equal(run(specimen, pipe), alone)


def test_two_pipelines_may_share_a_controlnet() -> None:
    """The one that is made parallel later detaches the other."""
    specimen, one, other = ZOO[CONTROLLED], ZOO[CONTROLLED].build(), ZOO[CONTROLLED].build()
    other.register_modules(controlnet=one.controlnet)
    earlier, later = simulate(one), simulate(other)
    with pytest.raises(ValueError, match="detached"):
        run(specimen, earlier)
    run(specimen, later)


def test_what_others_wrap_around_it_is_there_when_it_runs() -> None:
    """As accelerate does, which moves a network to the device for the time of its call only."""
    specimen, pipe = ZOO[CONTROLLED], ZOO[CONTROLLED].build()
    is_there: list[bool] = []
    with simulate(pipe) as parallel:
        inner, placed = pipe.controlnet.forward, []

        @functools.wraps(inner)
        def moved(*args: Any, **kwargs: Any) -> Any:
            placed.append(True)
            try:
                return inner(*args, **kwargs)
            finally:
                placed.clear()

        pipe.controlnet.forward = moved
        hook = pipe.controlnet.conv_in.register_forward_hook(lambda *_: is_there.append(bool(placed)))
        run(specimen, parallel)
        hook.remove()
        pipe.controlnet.forward = inner
    assert is_there == [True] * 4


def forward_of(hidden_states: torch.Tensor, scale: float = 1.0, mask: torch.Tensor | None = None) -> Any:
    return [hidden_states * scale], hidden_states.sum(dim=1), None


def ask(forward: Any, *args: Any, **kwargs: Any) -> list[Any]:
    """What a network with that forward is answered in three calls of a run."""
    network = torch.nn.Identity()
    vars(network)["forward"] = forward
    controls = ControlNets(type("Pipe", (), {"controlnet": network})(), None, "test")
    with controls.deferring():
        return [network(*args, **kwargs) for _ in range(3)]


def test_the_first_call_shows_the_form_of_the_others() -> None:
    samples = torch.arange(8.0).reshape(4, 2)
    first, *others = ask(forward_of, samples, scale=2.0)
    for (residual,), total, nothing in others:
        assert isinstance(residual, DeferredTensor)
        assert isinstance(total, DeferredTensor)
        assert nothing is None
        assert torch.equal(residual[1:3], samples[1:3] * 2)
        assert torch.equal(total, samples.sum(dim=1))
    assert not isinstance(first[0][0], DeferredTensor)


def mixing(hidden_states: torch.Tensor) -> Any:
    return (hidden_states - hidden_states.mean(dim=0),)


def insisting(hidden_states: torch.Tensor) -> Any:
    return (hidden_states.reshape(4, 2),)


@pytest.mark.parametrize("forward", [mixing, insisting])
def test_rows_that_depend_on_each_other_are_evaluated_together(forward: Any) -> None:
    samples = torch.arange(8.0).reshape(4, 2)
    for (residual,) in ask(forward, samples):
        assert torch.equal(residual[2:], forward(samples)[0][2:])


def summing(hidden_states: torch.Tensor) -> Any:
    return hidden_states.sum()


def telling(hidden_states: torch.Tensor) -> Any:
    return hidden_states, "more"


def with_rest(*args: Any, **kwargs: Any) -> Any:
    return (args[0] + kwargs["shift"],)


def without_samples(image: torch.Tensor) -> Any:
    return (image,)


@pytest.mark.parametrize(
    ("forward", "more"), [(summing, {}), (telling, {}), (with_rest, {"shift": 1}), (without_samples, {})]
)
def test_what_is_not_understood_is_evaluated_at_once(forward: Any, more: dict[str, Any]) -> None:
    for answered in ask(forward, torch.ones(4, 2), **more):
        assert not [leaf for leaf in leaves(answered) if isinstance(leaf, DeferredTensor)]


def test_inputs_that_changed_since_are_an_error() -> None:
    samples = torch.ones(4, 2)
    _, _, (_, total, _) = ask(forward_of, samples)
    samples += 1
    with pytest.raises(RuntimeError, match="changed in place"):
        total.sum()
