"""Every pipeline of the zoo on two simulated ranks, against the unmodified one."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from hybridiff import ParallelConfig, ParallelPipeline, RunReport, UsageError, parallelize
from hybridiff.denoiser.evaluation import Evaluation
from support.oracles import relative_difference
from zoo import ZOO, Specimen, run

ROUNDING = 3e-5
"""Difference that comes of evaluating the branches in batches of their own: ten times the largest that was seen."""

AMPLIFIED = {"Kandinsky3Pipeline": 1e-2, "Kandinsky3Img2ImgPipeline": 1e-3, "KandinskyV22ControlnetPipeline": 1e-3}
"""The same where a network of random weights makes a thousand times as much of a rounding error as others do."""

REFUSED = {
    "LTX2Pipeline": "LTX2VideoTransformer3DModel does not predict one tensor at a call",
    "LTX2Pipeline:four-evaluations": "LTX2VideoTransformer3DModel does not predict one tensor at a call",
}
"""What is refused, and the sentence: a network that predicts film and sound at once."""

ON_ITS_OWN = {
    "StableDiffusionSAGPipeline": "StableDiffusionSAGPipeline: it reads the attention of its network (sag_scale)",
    "GlmImagePipeline": "GlmImagePipeline: its calls share a state (kv_caches)",
    "GlmImagePipeline:edit": "GlmImagePipeline: its calls share a state (kv_caches)",
    "WanModularPipeline:skip-layer": "WanModularPipeline: SkipLayerGuidance changes the network between its calls",
    "WanModularPipeline:auto": "WanModularPipeline: AutoGuidance changes the network between its calls",
}
"""What every rank evaluates as the stock pipeline does, all steps full, and the note that says why."""

WHOLE = frozenset(name for name in ZOO if "PAG" in name)
"""Perturbed attention tells its branches apart by their place in the batch: every rank evaluates the whole batch."""

LATE = frozenset({"StableDiffusionXLModularPipeline:late"})
"""Guidance begins in the second step, whose further call shows it; the third shows how, and the rest is shared."""

EXTRA = frozenset({"StableDiffusion3Pipeline:skip-layer"})
"""The third branch is a further call of its step; beside that call every step is full."""

SEVERAL_STEPS = {"WanPipeline:two-transformers": 8, "WanImageToVideoPipeline:two-transformers": 8}
"""Steps that it takes until a cached one comes: the first one of the other network has to be full."""

SHARED = frozenset(ZOO) - REFUSED.keys() - ON_ITS_OWN.keys() - WHOLE
GUIDED = frozenset(name for name in SHARED if ZOO[name].layout != "single")


@dataclass(frozen=True)
class Made:
    """What a specimen made: alone, and by two ranks."""

    alone: torch.Tensor
    shared: tuple[torch.Tensor, torch.Tensor]
    reports: tuple[RunReport, RunReport]
    restored: torch.Tensor
    is_restored: bool


def every(names: Any) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("name", [name for name in ZOO if name in names])


def simulate(pipe: Any, strategy: str = "cfg", **config: Any) -> ParallelPipeline:
    return parallelize(pipe, ParallelConfig(strategy, devices=2, simulate=True, **config))


def report_of(parallel: ParallelPipeline) -> RunReport:
    assert parallel.report is not None
    return parallel.report


@functools.cache
def made(name: str) -> Made:
    """Alone, twice by two ranks with one parallel pipeline, and alone again."""
    specimen = ZOO[name]
    pipe = specimen.build()
    alone, before = run(specimen, pipe), traces(pipe)
    with simulate(pipe) as parallel:
        first, one = run(specimen, parallel), report_of(parallel)
        second, two = run(specimen, parallel), report_of(parallel)
    after = traces(pipe)
    return Made(alone, (first, second), (one, two), run(specimen, pipe), after == before)


def traces(pipe: Any) -> Any:
    """What a hook or a watch might leave behind: attributes of the scheduler, forwards and registries of modules."""
    modules = {part: set(vars(module)) for part, module in modules_of(pipe)}
    return type(pipe.scheduler), set(vars(pipe.scheduler)), modules


def modules_of(pipe: Any) -> Iterator[tuple[str, torch.nn.Module]]:
    for part, network in pipe.components.items():
        if isinstance(network, torch.nn.Module):
            yield from ((f"{part}.{name}", module) for name, module in network.named_modules())


def branches_of(specimen: Specimen) -> int:
    return {"single": 1, "branches": 2 if specimen.name in EXTRA else 3}.get(specimen.layout, 2)


def most_difference(name: str) -> float:
    return AMPLIFIED.get(name, ROUNDING)


@contextmanager
def exchanged_branches() -> Iterator[None]:
    """While this lasts, the conditional prediction is answered for the unconditional one and the other way round."""
    own: Callable[..., Any] = Evaluation.answer

    def answer(self: Evaluation, prediction: torch.Tensor, call: int = 0) -> Any:
        return own(self, torch.cat(prediction.chunk(self.branches)[::-1]), call)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Evaluation, "answer", answer)
        yield


@every(GUIDED)
def test_exchanged_branches_are_found_out(name: str) -> None:
    specimen = ZOO[name]
    with exchanged_branches(), simulate(specimen.build()) as parallel:
        result = run(specimen, parallel)
    assert not relative_difference(result, made(name).alone) <= 10 * most_difference(name)


@every(ZOO.keys() - REFUSED.keys())
def test_cfg_is_the_stock_pipeline(name: str) -> None:
    for result in made(name).shared:
        assert relative_difference(result, made(name).alone) <= most_difference(name)


@every(ZOO.keys() - REFUSED.keys())
def test_detach_leaves_nothing(name: str) -> None:
    assert made(name).is_restored
    assert torch.equal(made(name).restored, made(name).alone)


@every(SHARED)
def test_branches_are_shared(name: str) -> None:
    specimen, branches = ZOO[name], branches_of(ZOO[name])
    for report in made(name).reports:
        assert report.branches == branches
        # Which say that there is nothing to partition, or that there was nothing at first.
        assert bool(report.notes) == (branches == 1 or name in LATE)
        assert sum(step.extra_evaluations for step in report.steps) > 0 if specimen.name in EXTRA else True
        if branches > 1:
            assert report.partition is not None
            assert report.partition.rows % branches == 0
            assert report.partition.largest == -(-report.partition.rows // 2)


@every(SHARED | WHOLE)
def test_cached_steps(name: str) -> None:
    steps = SEVERAL_STEPS.get(name, len(made(name).reports[0].steps))
    counted = min(steps, SEVERAL_STEPS.get(name, ZOO[name].steps))  # fewer where each part of a film has so many
    full = f"0-1,3-{counted - 1}" if counted > 3 else "0-1"
    with simulate(ZOO[name].build(), "hybrid", full_steps=full) as parallel:
        result = run(ZOO[name], parallel, steps=SEVERAL_STEPS.get(name))
        kinds = report_of(parallel).kinds
    assert torch.isfinite(result).all()
    assert kinds == ({"full": steps} if name in EXTRA else {"full": steps - 1, "cached": 1})


@every(WHOLE)
def test_perturbed_attention_has_whole_batches(name: str) -> None:
    for result, report in zip(made(name).shared, made(name).reports, strict=True):
        assert torch.equal(result, made(name).alone)
        assert report.notes == ["images of a batch and its branches depend on each other: every rank evaluates all"]
        assert report.branches == 3
        assert report.partition is not None
        assert report.partition.is_whole
        assert report.ideal_speedup == 1.0


@pytest.mark.parametrize(("name", "why"), ON_ITS_OWN.items())
def test_what_cannot_be_shared_every_rank_does_on_its_own(name: str, why: str) -> None:
    for result, report in zip(made(name).shared, made(name).reports, strict=True):
        assert torch.equal(result, made(name).alone)
        assert report.notes[0].startswith(why)
        assert report.partition is None
    with simulate(ZOO[name].build(), "hybrid", full_steps="0-1,3") as parallel:
        assert torch.equal(run(ZOO[name], parallel), made(name).alone)
        assert report_of(parallel).kinds == {"full": len(report_of(parallel).steps)}


@pytest.mark.parametrize(("name", "why"), REFUSED.items())
def test_what_is_refused_leaves_the_pipeline_as_it_was(name: str, why: str) -> None:
    specimen = ZOO[name]
    pipe = specimen.build()
    alone, before = run(specimen, pipe), traces(pipe)
    with simulate(pipe) as parallel, pytest.raises(UsageError, match=why):
        run(specimen, parallel)
    assert traces(pipe) == before
    assert torch.equal(run(specimen, pipe), alone)


def test_the_list_of_pipelines_names_every_specimen() -> None:
    words = (Path(__file__).parents[2] / "docs" / "pipelines.md").read_text().replace("\n", " ")
    for name in ZOO:
        kind, _, special = name.partition(":")
        listed = kind.removesuffix("Pipeline") + (f" ({special})" if special else "")
        assert listed in words
