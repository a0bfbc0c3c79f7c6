"""How `published` behaves where it cannot pipeline, or must stop doing so; all ranks played in this process."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from hybridiff import ParallelConfig, PublishedSettings, UsageError, parallelize
from support.jobs import Generated, generate_parallel
from support.oracles import differences, generated_one_part_after_another, relative_difference, state_of
from support.pipelines import build, denoiser_of, generate
from support.schedules import callback_at, capped, guidance_until, split_at

STEPS = {"num_inference_steps": 10}
NAMES = ["sd15", "sd3"]


def simulated(name: str, config: dict[str, Any], changes: dict[str, Any] | None = None, **rest: Any) -> Generated:
    return generate_parallel(name, STEPS | (changes or {}), simulate=True, **config, **rest)[0]


@pytest.mark.parametrize("name", NAMES)
def test_the_phases_of_a_run(name: str) -> None:
    generated = simulated(name, capped(10, 3, 4, split_point=1))
    assert generated.kinds == "ffffppppff"
    assert (generated.report["tau1"], generated.report["tau2"]) == (3, 7)
    assert generated.report["phases"] == {"warm-up": 4, "parallel": 4, "connect": 2}
    assert [step["discrepancy"] is None for step in generated.report["steps"]] == [False] * 4 + [True] * 4 + [False] * 2
    stages = generated.report["stages"]
    expected = 20 / (6 + stages["outer"] + 3 * max(stages["outer"], stages["inner"]))
    assert generated.report["ideal_speedup"] == pytest.approx(expected)


@pytest.mark.parametrize("name", ["sd3"])
def test_guidance_vanishes_while_the_parallel_phase_lasts(name: str) -> None:
    scales = [
        simulated(name, capped(10, 1, 8, split_point=1), {"guidance_scale": scale}).latents for scale in (5.0, 5.5)
    ]
    guided = [generated_one_part_after_another(name, guidance_scale=scale, **STEPS) for scale in (5.0, 5.5)]
    assert relative_difference(*scales) < relative_difference(*guided)
    assert not torch.equal(scales[0], guided[0])


@pytest.mark.parametrize("name", ["sd3"])
def test_a_flat_discrepancy_starts_the_phase_by_the_slope_rule(name: str) -> None:
    # A window of 1 spans no step: its slope is 0.
    falls = simulated(name, capped(10, 7, 2, 1, rule={"slope_window": 1, "slope_threshold": 1e9}))
    assert falls.kinds == "ffppffffff"
    assert falls.report["notes"] == []


def test_a_cap_that_decided_is_reported() -> None:
    (note,) = simulated("sd15", capped(10, 3, 4, split_point=1)).report["notes"]
    assert "tau_cap set tau1 = 3" in note


def test_a_second_order_scheduler_runs_partitioned_and_says_so() -> None:
    changes = {"num_inference_steps": 6}
    generated = simulated("sd15", capped(6, 1, 2), changes, scheduler="heun")
    assert torch.equal(generated.latents, generated_one_part_after_another("sd15", scheduler="heun", **changes))
    assert generated.kinds == "f" * 11
    assert (generated.report["tau1"], generated.report["tau2"]) == (None, None)
    (note,) = generated.report["notes"]
    assert note.startswith("HeunDiscreteScheduler is of order 2: ")
    assert note.endswith("all ran partitioned")
    assert generated.report["stages"] == {}
    assert generated.report["ideal_speedup"] == 2.0


@pytest.mark.parametrize(("name", "images"), [("sd15", 1), ("sd3", 1), ("sd3", 2)])
def test_without_guidance(name: str, images: int) -> None:
    changes = {"guidance_scale": 1.0, "num_images_per_prompt": images}
    generated = simulated(name, capped(10, 3, 4), changes)
    assert torch.equal(generated.latents, simulated(name, {"strategy": "cfg"}, changes).latents)
    assert generated.kinds == "f" * 10
    assert (generated.report["tau1"], generated.report["tau2"]) == (None, None)
    assert "guidance is off" in generated.report["notes"][0]
    assert generated.report["ideal_speedup"] == (None if images == 1 else 2.0), "images of a batch are split"


@pytest.mark.parametrize(("name", "images"), [("sd15", 1), ("sd3", 1), ("sd3", 2)])
def test_guidance_that_ends_in_the_warm_up(name: str, images: int) -> None:
    changes = guidance_until(name, 1) | {"num_images_per_prompt": images}
    generated = simulated(name, capped(10, 3, 4, split_point=1), changes)
    assert torch.equal(generated.latents, simulated(name, {"strategy": "cfg"}, changes).latents)
    assert generated.kinds == "f" * 10
    assert generated.report["tau1"] is None
    assert generated.report["ideal_speedup"] == pytest.approx((2 * 2 + 8) / 10)


@pytest.mark.parametrize("last", [3, 5, 7], ids=["before its first step", "in the middle", "at its last step"])
@pytest.mark.parametrize(("name", "images"), [("sd15", 1), ("sd3", 1), ("sd3", 2)])
def test_guidance_that_ends_in_the_parallel_phase(name: str, last: int, images: int) -> None:
    """Equal to a phase that ends there of itself, as what follows has one branch only."""
    changes = guidance_until(name, last) | {"num_images_per_prompt": images}
    generated = simulated(name, capped(10, 3, 4, split_point=1), changes)
    assert generated.kinds == ("ffff" + "p" * (last - 3)).ljust(10, "f")
    assert (generated.report["tau1"], generated.report["tau2"]) == (3, last)
    if last > 3:
        assert torch.equal(generated.latents, simulated(name, capped(10, 3, last - 3, split_point=1), changes).latents)
    else:
        assert torch.equal(generated.latents, simulated(name, {"strategy": "cfg"}, changes).latents)


def test_skip_layer_guidance_in_every_step_is_cfg() -> None:
    changes = {"skip_guidance_layers": [1], "skip_layer_guidance_start": 0.0, "skip_layer_guidance_stop": 1.0}
    generated = simulated("sd3", capped(10, 3, 4, split_point=1), changes)
    assert generated.kinds == "f" * 10
    assert torch.equal(generated.latents, generated_one_part_after_another("sd3", **STEPS, **changes))


@pytest.mark.parametrize("name", ["sd3"])
@pytest.mark.parametrize(("last", "steps"), [(1, 3), (2, 4), (3, 6), (4, 7), (6, 9), (7, 9), (8, 10)])
def test_an_interrupt(name: str, last: int, steps: int) -> None:
    """The request rides with the next step; a full step is read at once, a pipelined one before the one after it."""
    kept: list[torch.Tensor] = []

    def keep(pipe: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        kept.append(tensors["latents"].clone())
        return tensors

    config = capped(10, 3, 4, split_point=1)
    simulated(name, config, {"callback_on_step_end": keep})
    stop = callback_at(last, lambda pipe: setattr(pipe, "_interrupt", True))
    generated = simulated(name, config, {"callback_on_step_end": stop})
    assert generated.kinds == "ffffppppff"[:steps]
    assert torch.equal(generated.latents, kept[steps - 1])


@pytest.mark.parametrize("name", NAMES)
def test_a_stock_call_and_other_runs_after_a_parallel_phase(name: str) -> None:
    """The network stays split between calls; whoever calls it otherwise finds it whole."""
    pipe = build(name)
    stock, unguided = generate(build(name), name), generate(build(name), name, guidance_scale=1.0)
    with parallelize(pipe, ParallelConfig(simulate=True, **capped(4, 1, 2, split_point=1))) as parallel:
        first = generate(parallel, name)
        assert torch.equal(generate(pipe, name), stock)
        assert torch.equal(generate(parallel, name, guidance_scale=1.0), unguided)
        assert torch.equal(generate(parallel, name), first)
    assert torch.equal(generate(pipe, name), stock)


@pytest.mark.parametrize("name", NAMES)
def test_an_error_in_a_stage_leaves_the_network_whole(name: str) -> None:
    pipe = build(name)
    stock = generate(build(name), name)
    block = pipe.unet.mid_block.resnets[0] if name == "sd15" else pipe.transformer.transformer_blocks[1].attn
    hooks: list[Any] = []

    def fail(*_: Any) -> None:
        hooks.pop().remove()
        raise RuntimeError("planted")

    plant = callback_at(1, lambda _: hooks.append(block.register_forward_pre_hook(fail)))
    with parallelize(pipe, ParallelConfig(simulate=True, **capped(4, 1, 2, split_point=1))) as parallel:
        first = generate(parallel, name)
        with pytest.raises(RuntimeError, match="planted"):
            generate(parallel, name, callback_on_step_end=plant)
        assert torch.equal(generate(pipe, name), stock)
        assert torch.equal(generate(parallel, name), first)


@pytest.mark.parametrize("name", NAMES)
def test_other_sizes_and_batches_one_after_the_other(name: str) -> None:
    """Boundaries have other shapes then: each is the same as in a pipeline of its own."""
    changes: list[dict[str, Any]] = [{}, {"height": 24, "width": 48}, {"num_images_per_prompt": 2}]
    with parallelize(build(name), ParallelConfig(simulate=True, **capped(4, 1, 2, split_point=1))) as parallel:
        together = [generate(parallel, name, **change) for change in changes]
    for latents, change in zip(together, changes, strict=True):
        alone = generate_parallel(name, change, simulate=True, **capped(4, 1, 2, split_point=1))[0]
        assert torch.equal(latents, alone.latents)


@pytest.mark.parametrize("name", ["sd3"])
def test_a_longer_prompt_in_the_next_run(name: str) -> None:
    """Prompt embeddings of another length change the text that crosses a transformer's split."""
    width = 32
    random = torch.Generator().manual_seed(1)

    def texts(length: int) -> dict[str, Any]:
        names = {"prompt_embeds": (1, length, width), "negative_prompt_embeds": (1, length, width)}
        names |= {"pooled_prompt_embeds": (1, width), "negative_pooled_prompt_embeds": (1, width)}
        tensors = {text: torch.randn(*shape, generator=random) for text, shape in names.items()}
        return tensors | {"prompt": None, "negative_prompt": None}

    calls = [texts(5), texts(9)]
    with parallelize(build(name), ParallelConfig(simulate=True, **capped(4, 1, 2, split_point=1))) as parallel:
        together = [generate(parallel, name, **call) for call in calls]
    for latents, call in zip(together, calls, strict=True):
        assert torch.equal(
            latents, generate_parallel(name, call, simulate=True, **capped(4, 1, 2, split_point=1))[0].latents
        )


@pytest.mark.parametrize("name", ["sdxl", "sd3.5"])
def test_detach_restores_the_stock_pipeline(name: str) -> None:
    pipe = build(name)
    stock = generate(pipe, name)
    before = state_of(pipe)
    parallel = parallelize(pipe, ParallelConfig(simulate=True, **capped(4, 1, 2)))
    generate(parallel, name)
    parallel.detach()
    changed = [entry for entry in differences(before, state_of(pipe)) if not _belongs_to_calls(entry)]
    assert changed == []
    assert torch.equal(generate(pipe, name), stock)


def _belongs_to_calls(entry: str) -> bool:
    """What any call of the stock pipeline changes: its own settings, and the scheduler's."""
    return entry.startswith(("pipe._", "scheduler."))


@pytest.mark.parametrize("name", NAMES)
def test_a_split_point_of_another_network_is_none(name: str) -> None:
    """A calibration of a larger one, say: counted work decides then."""
    generated = simulated(name, {"strategy": "published", "calibration": split_at("pipelined", 10**6)})
    chosen = simulated(name, {"strategy": "published"})
    assert generated.report["stages"]["point"] == chosen.report["stages"]["point"]
    assert torch.equal(generated.latents, chosen.latents)


@pytest.mark.parametrize("devices", [1, 3, 5])
def test_other_numbers_of_ranks_are_refused(devices: int) -> None:
    with pytest.raises(UsageError, match=rf"needs an even number of ranks, 2 at least, got {devices}; use --devices"):
        parallelize(build("sd3"), ParallelConfig("published", simulate=True, devices=devices))


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        ({"parallel_steps": 9}, r"tau_cap \d+ \+ parallel_steps 9 = \d+ lies beyond the last of 10 steps \(9\)"),
        ({"tau_cap": 9}, r"tau_cap 9 \+ parallel_steps 1 = 10 lies beyond the last of 10 steps \(9\)"),
    ],
)
@pytest.mark.parametrize("name", NAMES)
def test_a_schedule_beyond_the_end_is_refused_before_any_network_runs(
    name: str, rule: dict[str, int], message: str
) -> None:
    pipe = build(name)
    for module in (denoiser_of(pipe), pipe.text_encoder):
        module.register_forward_pre_hook(lambda *_: pytest.fail("a network ran"))
    config = ParallelConfig("published", simulate=True, published=PublishedSettings(**rule))  # type: ignore[arg-type]
    with parallelize(pipe, config) as parallel, pytest.raises(UsageError, match=message):
        generate(parallel, name, num_inference_steps=10)


@pytest.mark.parametrize("name", ["sd3"])
@pytest.mark.parametrize("steps", [3, 4, 20])
def test_the_presets_fit_any_number_of_steps(name: str, steps: int) -> None:
    generated = generate_parallel(name, {"num_inference_steps": steps}, simulate=True, strategy="published")[0]
    assert len(generated.report["steps"]) == steps
    assert "p" in generated.kinds


@pytest.mark.parametrize("name", ["sd15 img2img", "sd3 img2img"])
def test_a_run_that_starts_in_the_middle(name: str) -> None:
    """Fewer steps than asked for: the schedule is that of the steps there are."""
    generated = generate_parallel(name, {"num_inference_steps": 10}, simulate=True, strategy="published")[0]
    assert len(generated.report["steps"]) == 8
    assert "p" in generated.kinds
