from __future__ import annotations

from typing import Any

import pytest
import torch

from hybridiff import ParallelConfig, UsageError, parallelize
from hybridiff.denoiser.adapters import find_denoiser
from hybridiff.rivals.plan import plan_groups
from hybridiff.rivals.transfers import pair_up
from hybridiff.schedule.calibration import Calibration
from hybridiff.schedule.kinds import StepKind
from support.jobs import Generated, generate_parallel
from support.oracles import differences, relative_difference, state_of
from support.pipelines import build, generate
from support.schedules import guidance_except, guidance_until

TEN = {"num_inference_steps": 10}


def simulated(name: str, ranks: int, changes: dict[str, Any] = TEN, **settings: Any) -> Generated:
    config = {"strategy": "asyncdiff", "devices": ranks, "simulate": True, "settings": settings}
    return generate_parallel(name, changes, **config)[0]


@pytest.mark.parametrize("name", ["sdxl", "sd15", "sd3", "sd3.5"])
def test_nothing_but_warm_up_and_one_stage_are_the_stock_pipeline(name: str) -> None:
    stock = generate(build(name), name, **TEN)
    for ranks, settings in ((2, {"warm_up": 10}), (3, {"warm_up": 99, "stride": 2}), (1, {})):
        generated = simulated(name, ranks, **settings)
        assert torch.equal(generated.latents, stock)
        assert generated.kinds == "f" * 10


@pytest.mark.parametrize("name", ["sdxl", "sd15", "sd3"])
@pytest.mark.parametrize(
    ("ranks", "settings", "expected"),
    [
        (2, {}, "fppppppppp"),
        (2, {"cut": "chain", "warm_up": 4}, "ffffpppppp"),
        (3, {}, "fppppppppp"),
        (3, {"stride": 2, "warm_up": 3}, "fffpcpcpcp"),
        (4, {"stride": 2, "warm_up": 2, "time_shift": True}, "ffpcpcpcpc"),
    ],
)
def test_stages_on_inputs_of_the_step_before(name: str, ranks: int, settings: dict[str, Any], expected: str) -> None:
    generated = simulated(name, ranks, **settings)
    assert generated.kinds == expected
    assert torch.isfinite(generated.latents).all()
    stock = generate(build(name), name, **TEN)
    assert relative_difference(generated.latents, stock) > 1e-3
    stages, report = generated.report["stages"], generated.report
    assert len(stages["shares"]) == len(stages["begin"]) == ranks - settings.get("stride", 1) + 1
    assert report["bytes_by_purpose"]["boundary"] < expected.count("p") * stages["bytes_if_all_were_sent"]
    time = expected.count("f") + expected.count("p") * max(stages["shares"])
    assert report["ideal_speedup"] == pytest.approx(10 / time)


@pytest.mark.parametrize("name", ["sdxl", "sd3"])
def test_the_more_warm_up_the_nearer_to_the_stock_pipeline(name: str) -> None:
    stock = generate(build(name), name, **TEN)
    errors = [relative_difference(simulated(name, 2, warm_up=warm_up).latents, stock) for warm_up in (2, 5, 8)]
    assert errors == sorted(errors, reverse=True)


def test_where_nothing_changes_stale_inputs_are_fresh() -> None:
    """A network that looks at neither sample nor timestep predicts the same at every step, however old its inputs."""

    def stand_still(pipe: Any) -> Any:
        for part in (pipe.transformer.pos_embed.proj, pipe.transformer.time_text_embed.timestep_embedder.linear_1):
            torch.nn.init.zeros_(part.weight)
        return pipe

    stock = generate(stand_still(build("sd3")), "sd3", **TEN)
    for ranks, settings in ((2, {}), (4, {}), (3, {"stride": 2}), (4, {"stride": 2, "time_shift": True})):
        config = ParallelConfig(strategy="asyncdiff", devices=ranks, simulate=True, settings=settings)
        with parallelize(stand_still(build("sd3")), config) as parallel:
            assert torch.equal(generate(parallel, "sd3", **TEN), stock)


@pytest.mark.parametrize(("name", "settings"), [("sdxl", {}), ("sd3", {"cut": "nested"})])
def test_a_nested_cut_is_where_a_calibration_splits_published(name: str, settings: dict[str, Any]) -> None:
    adapter, network = find_denoiser(build(name))
    points, layers = adapter.split_points(network), [layer.name for layer in adapter.layers(network)]
    last = len(points) - 1

    def stages(strategy: str, index: int | None, **given: Any) -> Any:
        calibration = None if index is None else Calibration("m", (), {"pipelined": index})
        config = {"strategy": strategy, "simulate": True, "calibration": calibration} | given
        return generate_parallel(name, TEN, **config)[0].report["stages"]

    assert stages("published", last)["entry"] == layers[points[last].entry]
    assert stages("asyncdiff", last, settings=settings)["begin"] == [layers[points[last].entry + 1], layers[0]]
    by_work = stages("asyncdiff", None, settings=settings)["begin"]
    assert by_work in [[layers[point.entry + 1], layers[0]] for point in points[:last]]
    assert stages("asyncdiff", len(points), settings=settings)["begin"] == by_work, "the network has no such point"


def test_a_computation_with_stride_2_is_conditioned_on_the_next_step() -> None:
    pipe, seen = build("sd3"), []
    config = ParallelConfig(strategy="asyncdiff", devices=3, simulate=True, settings={"stride": 2, "warm_up": 2})
    with parallelize(pipe, config) as parallel:
        generate(parallel, "sd3", num_inference_steps=7)  # which measures
        pipe.transformer.time_text_embed.register_forward_pre_hook(lambda _, given: seen.append(float(given[0][0])))
        generate(parallel, "sd3", num_inference_steps=7)
    t = pipe.scheduler.timesteps.tolist()
    own = [t[3], t[3], t[2], t[5], t[5], t[4], t[6], t[6], t[6]]
    assert seen == pytest.approx([t[0], t[1], *own])


@pytest.mark.parametrize("settings", [{}, {"stride": 2, "warm_up": 2}], ids=["stride 1", "stride 2"])
@pytest.mark.parametrize("name", ["sd15", "sd3"])
def test_guidance_that_ends_or_pauses(name: str, settings: dict[str, Any]) -> None:
    ended = simulated(name, 3, TEN | guidance_until(name, 5), **settings)
    assert ended.kinds[6:] == "ffff"
    assert [step["branches"] for step in ended.report["steps"]] == [2] * 6 + [1] * 4
    paused = simulated(name, 3, TEN | guidance_except(name, (4, 5)), **settings)
    assert paused.kinds[4:6] == "ff"
    assert torch.isfinite(paused.latents).all()


def test_steps_of_skip_layer_guidance_are_full() -> None:
    changes: dict[str, Any] = TEN | {"skip_guidance_layers": [1]}
    changes |= {"skip_layer_guidance_start": 0.35, "skip_layer_guidance_stop": 0.55}
    assert simulated("sd3", 3, changes, stride=2, warm_up=2).kinds == "ffpcffpcpc"


@pytest.mark.parametrize("name", ["sdxl inpaint 9 channels", "sd3 img2img"])
def test_other_tasks(name: str) -> None:
    steps = simulated(name, 2, {"num_inference_steps": 8}).report["steps"]
    assert {step["kind"] for step in steps[1:]} == {"pipelined"}


def test_nothing_is_left_behind() -> None:
    pipe = build("sdxl")
    generate(pipe, "sdxl", **TEN)
    before = state_of(pipe)
    config = ParallelConfig(strategy="asyncdiff", simulate=True)
    with parallelize(pipe, config) as parallel:
        first, second = (generate(parallel, "sdxl", **TEN) for _ in range(2))
    assert torch.equal(first, second)
    changed = [name for name in differences(before, state_of(pipe)) if not name.startswith(("scheduler", "pipe._"))]
    assert changed == []


@pytest.mark.parametrize(
    ("ranks", "settings", "sentence"),
    [
        (2, {"stride": 2}, "asyncdiff with stride 2 needs 3 ranks or more, got 2; use --devices 3, or stride 1"),
        (4, {"cut": "nested"}, "a nested cut has 2 stages, on 2 ranks with stride 1, got 4"),
        (5, {}, "a network of 4 layers has no 5 stages; use fewer ranks"),
    ],
)
def test_numbers_of_ranks_that_do_not_fit(ranks: int, settings: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UsageError) as error:
        simulated("sd3", ranks, **settings)
    assert str(error.value) == sentence


def test_plans() -> None:
    plan = plan_groups(10, 2, 2, StepKind.PIPELINED, {5})
    assert "".join(kind.value[0] for kind in plan) == "ffpcpfpcpc"
    assert set(plan_groups(3, 5, 2, StepKind.PIPELINED)) == {StepKind.FULL}


def test_ranks_talk_in_pairs() -> None:
    rounds = pair_up([(0, 1), (1, 2), (0, 2), (2, 3), (1, 0)])
    assert all(peers[peers[rank]] == rank for peers in rounds for rank in peers)
    assert {(a, b) for peers in rounds for a, b in peers.items() if a < b} == {(0, 1), (1, 2), (0, 2), (2, 3)}
    assert len(rounds) == 3
