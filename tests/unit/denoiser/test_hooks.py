"""Contract 5: what attaches detaches, and leaves nothing behind."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers.hooks import HookRegistry, ModelHook

from hybridiff import ParallelConfig, parallelize
from hybridiff.denoiser.attached import AttachedHook
from hybridiff.denoiser.hooks import DenoiserHook
from support.oracles import differences, state_of
from support.pipelines import build, denoiser_of, generate

CONFIG = ParallelConfig(simulate=True)


class Doubling(ModelHook):
    """Somebody else's hook."""

    def post_forward(self, module: torch.nn.Module, output: Any) -> Any:
        return (output[0] * 2,)


@pytest.mark.parametrize("strategy", ["serial", "cfg"])
@pytest.mark.parametrize("name", ["sdxl two levels", "sd15", "sd3.5"])
def test_detaching_restores_everything(name: str, strategy: str) -> None:
    pipe = build(name)
    stock = generate(pipe, name)  # a first call leaves its own marks, such as the scheduler's timesteps
    before = state_of(pipe)
    parallel = parallelize(pipe, ParallelConfig(strategy=strategy, simulate=True))
    generate(parallel, name)
    parallel.detach()
    generate(pipe, name)
    after = state_of(pipe)
    assert [name for name in differences(before, after) if not is_mark_of_a_call(name)] == []
    assert torch.equal(generate(pipe, name), stock)


def is_mark_of_a_call(name: str) -> bool:
    """Whether any call, of the stock pipeline too, gives this a new object."""
    return name.startswith(("scheduler.", "pipe._"))


def test_the_comparison_would_notice_a_hook() -> None:
    pipe = build("sd3")
    before = state_of(pipe)
    parallel = parallelize(pipe, CONFIG)
    assert differences(before, state_of(pipe)) == ["transformer.._diffusers_hook.", "transformer..forward."]
    parallel.detach()
    assert differences(before, state_of(pipe)) == []


def test_a_run_leaves_the_scheduler_as_a_stock_run_does() -> None:
    stock, parallel = build("sdxl two levels", "dpmsolver++"), build("sdxl two levels", "dpmsolver++")
    generate(stock, "sdxl two levels")
    with parallelize(parallel, CONFIG) as attached:
        generate(attached, "sdxl two levels")
    assert vars(stock.scheduler).keys() == vars(parallel.scheduler).keys()
    assert stock.scheduler.step_index == parallel.scheduler.step_index
    assert vars(stock).keys() == vars(parallel).keys()
    assert stock.interrupt == parallel.interrupt is False


def test_a_direct_call_of_the_attached_pipeline_is_the_stock_one() -> None:
    pipe = build("sdxl two levels")
    stock = generate(pipe, "sdxl two levels")
    parallel = parallelize(pipe, CONFIG)
    generate(parallel, "sdxl two levels")
    assert torch.equal(generate(pipe, "sdxl two levels"), stock)


def test_leaving_the_context_detaches_after_an_error_too() -> None:
    pipe = build("sd3")
    before = state_of(pipe)
    with pytest.raises(KeyError), parallelize(pipe, CONFIG):
        raise KeyError
    assert differences(before, state_of(pipe)) == []


def test_an_error_in_a_run_leaves_the_denoiser_to_the_stock_pipeline() -> None:
    pipe = build("sd3")
    stock = generate(pipe, "sd3")
    parallel = parallelize(pipe, CONFIG)

    def fail(*_: Any) -> None:
        raise KeyError("callback")

    with pytest.raises(KeyError, match="callback"):
        generate(parallel, "sd3", callback_on_step_end=fail)
    assert torch.equal(generate(pipe, "sd3"), stock)


def test_detaching_twice_is_harmless() -> None:
    pipe = build("sd3")
    parallel = parallelize(pipe, CONFIG)
    parallel.detach()
    parallel.detach()
    assert not hasattr(pipe.transformer, "_diffusers_hook")


@pytest.mark.parametrize("other_first", [True, False], ids=["other hook first", "other hook second"])
@pytest.mark.parametrize("other_leaves_first", [True, False], ids=["other leaves first", "other leaves second"])
def test_other_hooks_stay_in_force(other_first: bool, other_leaves_first: bool) -> None:
    network = denoiser_of(build("sd3"))
    expected, doubled = predict(network), 2 * predict(network)

    def add_other() -> None:
        HookRegistry.check_if_exists_or_initialize(network).register_hook(Doubling(), "doubling")

    if other_first:
        add_other()
    ours = AttachedHook(network, DenoiserHook(), "ours")
    if not other_first:
        add_other()
    assert torch.equal(predict(network), doubled)
    if other_leaves_first:
        network._diffusers_hook.remove_hook("doubling", recurse=False)
        assert torch.equal(predict(network), expected)
        ours.remove()
    else:
        ours.remove()
        assert torch.equal(predict(network), doubled)
        network._diffusers_hook.remove_hook("doubling", recurse=False)
    assert torch.equal(predict(network), expected)


def test_other_hooks_act_once_in_a_parallel_run() -> None:
    """A hook that came before ours sees the parts, one that came after sees the whole: each prediction doubles once."""
    results = []
    for other_first in (True, False):
        pipe = build("sd3")
        registry = HookRegistry.check_if_exists_or_initialize(pipe.transformer)
        if other_first:
            registry.register_hook(Doubling(), "doubling")
        parallel = parallelize(pipe, CONFIG)
        if not other_first:
            registry.register_hook(Doubling(), "doubling")
        results.append(generate(parallel, "sd3"))
    assert torch.equal(*results)
    assert not torch.equal(results[0], generate(parallelize(build("sd3"), CONFIG), "sd3"))


def test_a_hook_that_came_before_ours_may_leave() -> None:
    pipe = build("sd3")
    registry = HookRegistry.check_if_exists_or_initialize(pipe.transformer)
    registry.register_hook(Doubling(), "doubling")
    parallel = parallelize(pipe, CONFIG)
    registry.remove_hook("doubling", recurse=False)
    assert torch.equal(generate(parallel, "sd3"), generate(parallelize(build("sd3"), CONFIG), "sd3"))
    assert parallel.report is not None
    assert all(step.discrepancy is not None for step in parallel.report.steps)  # ours was not passed by


def predict(network: torch.nn.Module) -> torch.Tensor:
    random = torch.Generator().manual_seed(0)
    with torch.no_grad():
        output = network(
            hidden_states=torch.randn(1, 4, 16, 16, generator=random),
            timestep=torch.tensor([500]),
            encoder_hidden_states=torch.randn(1, 5, 32, generator=random),
            pooled_projections=torch.randn(1, 32, generator=random),
            return_dict=False,
        )
    assert isinstance(output[0], torch.Tensor)
    return output[0]
