from __future__ import annotations

from typing import Any

import pytest
import torch

from hybridiff import ParallelConfig, UsageError, load_pipeline, parallelize
from support.jobs import Generated, generate_parallel
from support.oracles import differences, relative_difference, state_of
from support.pipelines import build, generate
from support.schedules import guidance_except, guidance_until

EIGHT = {"num_inference_steps": 8}


def simulated(name: str, ranks: int, changes: dict[str, Any] = EIGHT, **settings: Any) -> Generated:
    config = {"strategy": "pipefusion", "devices": ranks, "simulate": True, "settings": settings}
    return generate_parallel(name, changes, **config)[0]


@pytest.mark.parametrize("name", ["sd3", "sd3.5"])
def test_one_patch_nothing_but_warm_up_and_one_rank_are_the_stock_pipeline(name: str) -> None:
    stock = generate(build(name), name, **EIGHT)
    for ranks, settings, expected in (
        (2, {"patches": 1}, "fppppppp"),
        (4, {"patches": 1, "warm_up": 2}, "ffpppppp"),
        (3, {"warm_up": 9}, "f" * 8),
        (1, {"patches": 3}, "f" * 8),
    ):
        generated = simulated(name, ranks, **settings)
        assert torch.equal(generated.latents, stock)
        assert generated.kinds == expected


@pytest.mark.parametrize("name", ["sd3", "sd3.5"])
@pytest.mark.parametrize(("ranks", "patches"), [(2, None), (2, 5), (3, None), (4, 8), (2, 64)])
def test_patches_in_stages(name: str, ranks: int, patches: int | None) -> None:
    generated = simulated(name, ranks, patches=patches)
    error = relative_difference(generated.latents, generate(build(name), name, **EIGHT))
    assert 1e-4 < error < 0.2
    report, count = generated.report, patches or ranks
    slots = count + ranks - 1
    assert report["stages"]["largest"] == pytest.approx(max(report["stages"]["shares"]) * slots / count)
    assert report["ideal_speedup"] == pytest.approx(8 / (1 + 7 * report["stages"]["largest"]))
    tokens, prediction = 64 + 24, 2 * 4 * 16 * 16 * 4  # both branches, in bytes
    assert report["bytes_by_purpose"]["boundary"] == 7 * (ranks - 1) * 2 * tokens * 16 * 4
    assert report["bytes_by_purpose"]["prediction"] == 7 * (ranks - 1) * prediction
    assert report["notes"] == [
        f"the pipeline drains in each step, which takes {slots} patches through one of {ranks} stages in place of "
        f"{count}; the ideal speed-up leaves out that each patch computes the text anew"
    ]


def test_the_more_warm_up_the_nearer_to_the_stock_pipeline() -> None:
    stock = generate(build("sd3"), "sd3", **EIGHT)
    errors = [relative_difference(simulated("sd3", 2, warm_up=warm_up).latents, stock) for warm_up in (1, 4, 6)]
    assert errors == sorted(errors, reverse=True)


def test_where_nothing_changes_stale_keys_and_values_are_fresh() -> None:
    def stand_still(pipe: Any) -> Any:
        for part in (pipe.transformer.pos_embed.proj, pipe.transformer.time_text_embed.timestep_embedder.linear_1):
            torch.nn.init.zeros_(part.weight)
        return pipe

    stock = generate(stand_still(build("sd3")), "sd3", **EIGHT)
    for ranks, patches in ((2, 2), (4, 3)):
        config = ParallelConfig(strategy="pipefusion", devices=ranks, simulate=True, settings={"patches": patches})
        with parallelize(stand_still(build("sd3")), config) as parallel:
            assert relative_difference(generate(parallel, "sd3", **EIGHT), stock) < 1e-5


def test_guidance_that_ends_or_pauses_and_skipped_layers() -> None:
    ended = simulated("sd3", 3, EIGHT | guidance_until("sd3", 4))
    assert ended.kinds == "fppppfff"
    paused = simulated("sd3", 2, EIGHT | guidance_except("sd3", (4, 5)))
    assert paused.kinds[4:6] == "ff"
    changes: dict[str, Any] = EIGHT | {"skip_guidance_layers": [1]}
    changes |= {"skip_layer_guidance_start": 0.35, "skip_layer_guidance_stop": 0.7}
    assert simulated("sd3", 2, changes, warm_up=2).kinds == "ffpfffpp"


def test_other_tasks_and_embedded_models() -> None:
    assert set(simulated("sd3 img2img", 2, EIGHT).kinds[1:]) == {"p"}
    pipe = load_pipeline("tiny-sd3")
    call = {"num_inference_steps": 8, "guidance_scale": 5.0, "max_sequence_length": 16, "output_type": "latent"}
    stock = pipe("a dog", generator=torch.Generator().manual_seed(1), **call).images
    config = ParallelConfig(strategy="pipefusion", devices=2, simulate=True, settings={"warm_up": 3})
    with parallelize(pipe, config) as parallel:
        made = parallel("a dog", generator=torch.Generator().manual_seed(1), **call).images
    assert 1e-5 < relative_difference(made, stock) < 0.2


def test_nothing_is_left_behind() -> None:
    pipe = build("sd3")
    generate(pipe, "sd3", **EIGHT)
    before = state_of(pipe)
    with parallelize(pipe, ParallelConfig(strategy="pipefusion", simulate=True)) as parallel:
        first, second = (generate(parallel, "sd3", **EIGHT) for _ in range(2))
    assert torch.equal(first, second)
    changed = [name for name in differences(before, state_of(pipe)) if not name.startswith(("scheduler", "pipe._"))]
    assert changed == []


@pytest.mark.parametrize(
    ("name", "ranks", "settings", "sentence"),
    [
        ("sdxl", 2, {}, "pipefusion needs a transformer such as SD3Transformer2DModel, got UNet2DConditionModel"),
        ("sd3", 2, {"patches": 65}, "a picture of 64 tokens cannot be cut into 65 patches; use fewer"),
        ("sd3", 5, {}, "a network of 4 layers has no 5 stages; use fewer ranks"),
        ("sd3", 2, {"patches": 0}, "patches must be at least 1, got 0"),
    ],
)
def test_what_does_not_fit(name: str, ranks: int, settings: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UsageError) as error:
        simulated(name, ranks, **settings)
    assert str(error.value).startswith(sentence)
