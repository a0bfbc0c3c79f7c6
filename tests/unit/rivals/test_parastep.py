from __future__ import annotations

import inspect
from typing import Any

import pytest
import torch

from hybridiff import ParallelConfig, UsageError, parallelize
from support.jobs import Generated, generate_parallel
from support.oracles import differences, relative_difference, state_of
from support.pipelines import build, denoiser_of, generate
from support.schedules import guidance_except, guidance_until

TWELVE = {"num_inference_steps": 12}
SAMPLERS = [
    ("sd3", None),
    ("sd3 img2img", None),
    ("sdxl", "euler"),
    ("sdxl", "euler-ancestral"),
    ("sd15", "ddim"),
    ("sd15", "dpmsolver++"),
    ("sd15", "unipc"),
    ("sd15", "heun"),
]


def simulated(name: str, ranks: int, changes: dict[str, Any] = TWELVE, scheduler: Any = None, **own: Any) -> Generated:
    config = {"strategy": "parastep", "devices": ranks, "simulate": True, "settings": own}
    return generate_parallel(name, changes, scheduler, **config)[0]


@pytest.mark.parametrize(("name", "scheduler"), SAMPLERS)
def test_nothing_but_warm_up_and_one_rank_are_the_stock_pipeline(name: str, scheduler: str | None) -> None:
    stock = generate(build(name, scheduler), name, **TWELVE)
    for ranks, warm_up in ((3, 99), (1, 1)):
        generated = simulated(name, ranks, TWELVE, scheduler, warm_up=warm_up)
        assert torch.equal(generated.latents, stock)
        assert set(generated.kinds) == {"f"}


@pytest.mark.parametrize("reuse", ["own", "latest"])
@pytest.mark.parametrize(("name", "scheduler"), SAMPLERS)
def test_a_constant_network_gives_the_stock_latents(name: str, scheduler: str | None, reuse: str) -> None:
    """The copies of the scheduler take the steps that the real one does, with its history and its noise."""
    expected = generate(constant(build(name, scheduler)), name, **TWELVE)
    config = ParallelConfig(strategy="parastep", devices=3, simulate=True, settings={"warm_up": 2, "reuse": reuse})
    inputs: list[torch.Tensor] = []
    pipe = constant(build(name, scheduler), inputs)
    with parallelize(pipe, config) as parallel:
        assert torch.equal(generate(parallel, name, **TWELVE), expected)
    alone: list[torch.Tensor] = []
    generate(constant(build(name, scheduler), alone), name, **TWELVE)
    assert len(inputs) == len(alone)
    for mine, stock in zip(inputs, alone, strict=True):  # every sample was foreseen rightly
        assert torch.equal(mine, stock)


def test_noise_without_a_generator_is_foreseen_as_well() -> None:
    changes = TWELVE | {"generator": None}
    pipe = constant(build("sdxl", "euler-ancestral"))  # which seeds the generator for its weights
    torch.manual_seed(5)
    expected = generate(pipe, "sdxl", **changes)
    config = ParallelConfig(strategy="parastep", devices=3, simulate=True, settings={"warm_up": 2})
    with parallelize(pipe, config) as parallel:
        torch.manual_seed(5)
        assert torch.equal(generate(parallel, "sdxl", **changes), expected)


def constant(pipe: Any, inputs: list[torch.Tensor] | None = None) -> Any:
    """A pipeline whose network predicts the same whatever it is given; keeps what that was."""
    network = denoiser_of(pipe)

    def forward(*args: Any, **kwargs: Any) -> tuple[torch.Tensor]:
        sample = args[0] if args else kwargs.get("sample", kwargs.get("hidden_states"))
        if inputs is not None:
            inputs.append(sample.clone())
        held = torch.randn(sample.shape[1:], generator=torch.Generator().manual_seed(1))
        return (torch.stack([held * (1 + row) for row in range(len(sample))]),)

    forward.__signature__ = inspect.signature(network.forward)  # type: ignore[attr-defined]
    network.forward = forward
    return pipe


@pytest.mark.parametrize("reuse", ["own", "latest"])
def test_what_ranks_evaluate_and_what_steps_are_answered(reuse: str) -> None:
    """By hand for flow matching with Euler: the first step of a cycle is exact, the others extrapolate a line."""
    ranks, steps, warm_up = 3, 12, 2
    inputs: list[torch.Tensor] = []
    pipe = build("sd3")
    pipe.transformer.pos_embed.register_forward_pre_hook(lambda _, given: inputs.append(given[0][:1].clone()))
    latents: dict[int, torch.Tensor] = {}

    def keep(_: Any, step: int, __: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        latents[step + 1] = tensors["latents"].clone()
        return tensors

    config = ParallelConfig(
        strategy="parastep", devices=ranks, simulate=True, settings={"warm_up": warm_up, "reuse": reuse}
    )
    with parallelize(pipe, config) as parallel:
        generate(parallel, "sd3", num_inference_steps=steps, callback_on_step_end=keep)
    sigmas = pipe.scheduler.sigmas
    slopes = {step: (latents[step + 1] - latents[step]) / (sigmas[step + 1] - sigmas[step]) for step in range(1, steps)}
    inputs = inputs[warm_up:]
    for start in range(warm_up, steps, ranks):
        for rank in range(min(ranks, steps - start)):
            seen = inputs.pop(0)
            if rank == 0:
                assert torch.equal(seen, latents[start])
                continue
            before = start - ranks + rank if reuse == "own" and start > warm_up else start - 1
            foreseen = latents[start] + (sigmas[start + rank] - sigmas[start]) * slopes[before]
            assert relative_difference(seen, foreseen) < 1e-5
    assert inputs == []


@pytest.mark.parametrize(("ranks", "expected"), [(2, "fffacacacaca"), (3, "fffaccaccacc"), (4, "fffacccaccca")])
def test_the_schedule_and_its_ideal_speedup(ranks: int, expected: str) -> None:
    generated = simulated("sd3", ranks, warm_up=3)
    assert generated.kinds == expected
    evaluations = sum(letter in "fa" for letter in expected)
    assert generated.report["ideal_speedup"] == pytest.approx(12 / evaluations)
    prediction = 2 * 4 * 16 * 16 * 4  # both branches, in bytes
    sent = expected.count("a") * ranks * (ranks - 1) * prediction
    assert generated.report["bytes_by_purpose"]["prediction"] == sent
    stock = generate(build("sd3"), "sd3", **TWELVE)
    assert 1e-5 < relative_difference(generated.latents, stock) < 0.1


@pytest.mark.parametrize("name", ["sd15", "sd3"])
def test_guidance_that_ends_or_pauses(name: str) -> None:
    for last in (5, 6):  # before the first step of a cycle, and within one
        ended = simulated(name, 3, TWELVE | guidance_until(name, last), warm_up=3)
        assert ended.kinds == "fffaccaccacc"[: last + 1] + "f" * (11 - last)
    paused = simulated(name, 3, TWELVE | guidance_except(name, (4, 5)), warm_up=3)
    assert paused.kinds[4:] == "f" * 8


def test_steps_of_skip_layer_guidance_are_full() -> None:
    changes: dict[str, Any] = TWELVE | {"skip_guidance_layers": [1]}
    changes |= {"skip_layer_guidance_start": 0.4, "skip_layer_guidance_stop": 0.6}
    assert simulated("sd3", 2, changes, warm_up=2).kinds == "ffacafffacac"


@pytest.mark.parametrize("name", ["sdxl inpaint", "sdxl inpaint 9 channels", "sd3 inpaint"])
def test_latents_that_others_change_make_all_steps_full(name: str) -> None:
    stock = generate(build(name), name, **TWELVE)
    generated = simulated(name, 2, warm_up=2)
    assert torch.equal(generated.latents, stock)
    assert generated.report["notes"] == [
        "the denoiser is given something else than the scheduler returned (inpainting, or a callback): from step 2 on "
        "every step is full"
    ]


def test_nothing_is_left_behind() -> None:
    pipe = build("sd3")
    generate(pipe, "sd3", **TWELVE)
    before = state_of(pipe)
    with parallelize(pipe, ParallelConfig(strategy="parastep", simulate=True)) as parallel:
        first, second = (generate(parallel, "sd3", **TWELVE) for _ in range(2))
    assert torch.equal(first, second)
    assert "step" not in vars(pipe.scheduler)
    changed = [name for name in differences(before, state_of(pipe)) if not name.startswith(("scheduler", "pipe._"))]
    assert changed == []


def test_bad_settings() -> None:
    with pytest.raises(UsageError, match=r"^unknown reuse 'none'; choose one of own, latest$"):
        simulated("sd3", 2, reuse="none")
    with pytest.raises(UsageError, match=r"^warm_up must be at least 1, got 0$"):
        simulated("sd3", 2, warm_up=0)
