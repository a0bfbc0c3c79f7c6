"""torch.compile around a denoiser: what ranks do is outside of the graphs, which no step makes anew."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from hybridiff.denoiser.compiled import uncompiled
from hybridiff.denoiser.through import through
from support.pipelines import denoiser_of
from support.simulated import simulate
from zoo import ZOO, run

CACHED: dict[str, Any] = {"strategy": "hybrid", "full_steps": "0-1,3,5"}
STEPS = 6


class Doubling(torch.nn.Module):
    def forward(self, given: torch.Tensor) -> torch.Tensor:
        return 2 * given


class Graphs:
    """A backend that compiles nothing and counts what it is asked to compile."""

    def __init__(self) -> None:
        self.made = 0

    def __call__(self, graph: torch.fx.GraphModule, _: Any) -> Callable[..., Any]:
        self.made += 1
        return graph.forward


def wrap(pipe: Any, graphs: Graphs) -> None:
    part = "unet" if hasattr(pipe, "unet") else "transformer"
    setattr(pipe, part, torch.compile(getattr(pipe, part), backend=graphs, fullgraph=True))


def compile_in_place(pipe: Any, graphs: Graphs) -> None:
    denoiser_of(pipe).compile(backend=graphs, fullgraph=True)


def compile_blocks(pipe: Any, graphs: Graphs) -> None:
    denoiser_of(pipe).compile_repeated_blocks(backend=graphs, fullgraph=True)  # type: ignore[operator]


@pytest.fixture(autouse=True)
def _forget_graphs() -> None:
    torch.compiler.reset()


@pytest.mark.parametrize(
    ("name", "compiled", "is_first", "config"),
    [
        pytest.param("WanPipeline", wrap, True, {}, id="replay, wrapped before"),
        pytest.param("WanPipeline", wrap, False, CACHED, id="replay, wrapped after, cached"),
        pytest.param("WanPipeline", compile_in_place, False, {}, id="replay, in place after"),
        pytest.param("StableDiffusion3Pipeline", compile_in_place, True, CACHED, id="known, in place before, cached"),
        pytest.param("StableDiffusionPipeline", compile_blocks, True, {}, id="known, blocks before"),
        pytest.param("FluxPipeline", compile_blocks, False, CACHED, id="replay, blocks after, cached"),
    ],
)
def test_graphs_are_whole_and_made_once(
    name: str, compiled: Callable[[Any, Graphs], None], is_first: bool, config: dict[str, Any]
) -> None:
    pipe, graphs = ZOO[name].build(), Graphs()
    with simulate(ZOO[name].build(), **config) as eager:
        expected = run(ZOO[name], eager, steps=STEPS)
    if is_first:
        compiled(pipe, graphs)
    parallel = simulate(pipe, **config)
    if not is_first:
        compiled(pipe, graphs)
    results = [run(ZOO[name], parallel, steps=STEPS)]
    made = graphs.made
    results.append(run(ZOO[name], parallel, steps=STEPS))
    assert graphs.made == made > 0
    assert all(torch.equal(result, expected) for result in results)
    assert parallel.report is not None
    assert all(step.discrepancy is not None for step in parallel.report.steps if step.kind == "full")
    parallel.detach()
    assert torch.equal(run(ZOO[name], pipe, steps=STEPS), run(ZOO[name], ZOO[name].build(), steps=STEPS))


@pytest.mark.parametrize("compiled", [wrap, compile_in_place])
def test_a_split_network_runs_uncompiled_and_the_report_says_so(compiled: Callable[[Any, Graphs], None]) -> None:
    name, graphs, config = "StableDiffusion3Pipeline", Graphs(), CACHED | {"step_kind": "reuse"}
    pipe = ZOO[name].build()
    compiled(pipe, graphs)
    with simulate(pipe, **config) as parallel, simulate(ZOO[name].build(), **config) as eager:
        assert torch.equal(run(ZOO[name], parallel, steps=STEPS), run(ZOO[name], eager, steps=STEPS))
        assert parallel.report is not None
        assert parallel.report.notes[-1].startswith("the network is compiled as a whole, but its layers run apart here")
    assert graphs.made == 0


def test_an_error_leaves_a_network_compiled() -> None:
    network = torch.nn.Linear(2, 2)
    network.compile(backend="eager")
    wrapped: Any = torch.compile(network, backend="eager")
    before = network._compiled_call_impl, wrapped.forward
    with uncompiled(wrapped) as compiled:
        assert compiled is before[1]
        assert network._compiled_call_impl is None
    with pytest.raises(KeyError), uncompiled(wrapped):
        raise KeyError
    assert (network._compiled_call_impl, wrapped.forward) == before
    with uncompiled(torch.nn.Linear(2, 2)) as compiled:
        assert compiled is None


def test_a_forward_goes_through_the_compiled_network_without_its_hooks() -> None:
    network, graphs, own = Doubling(), Graphs(), Doubling().forward
    network.compile(backend=graphs)
    assert network._compiled_call_impl is not None
    hooked: Any = lambda _: None  # noqa: E731
    network.forward = hooked  # type: ignore[method-assign]
    assert torch.equal(through(network._compiled_call_impl, network, own)(torch.ones(2)), torch.full((2,), 2.0))
    assert graphs.made == 1
    assert network.forward is hooked
