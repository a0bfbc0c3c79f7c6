"""The specimens of the zoo on two ranks: what is expected of each, and what was found."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pytest
import torch

from hybridiff import ParallelConfig, ParallelPipeline, RunReport, UsageError, parallelize
from hybridiff.denoiser.evaluation import Evaluation
from support.oracles import relative_difference
from zoo import FAMILIES, ZOO, Specimen, run

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

TREATED = frozenset(ZOO) - REFUSED.keys()
SHARED = TREATED - ON_ITS_OWN.keys() - WHOLE
GUIDED = frozenset(name for name in SHARED if ZOO[name].layout != "single")


def treatment(name: str) -> str:
    """How a specimen is treated: the layout of its guidance, unless something else comes first."""
    special = {"refused": REFUSED, "own": ON_ITS_OWN, "whole": WHOLE, "late": LATE, "extra": EXTRA}
    return next((word for word, names in special.items() if name in names), ZOO[name].layout)


def _usual() -> Iterator[str]:
    """The first specimen of a family in each treatment; whole batches are evaluated alike in all of them."""
    for family in FAMILIES.values():
        first = {treatment(specimen.name): specimen.name for specimen in reversed(family)}
        yield from (name for name in first.values() if name not in WHOLE)


USUAL = frozenset(_usual()) | {
    "StableDiffusionPAGPipeline",
    "StableDiffusionXLControlNetPipeline",
    "StableDiffusionXLInpaintPipeline:9-channels",
    "WanPipeline:two-transformers",
    "ZImagePipeline:two-images",
}
"""What runs by default; the rest is marked slow."""


def every(names: Any) -> pytest.MarkDecorator:
    """A test of each of these specimens."""
    marks = {name: () if name in USUAL else (pytest.mark.slow,) for name in ZOO if name in names}
    return pytest.mark.parametrize("name", [pytest.param(name, marks=mark) for name, mark in marks.items()])


def branches_of(specimen: Specimen) -> int:
    return {"single": 1, "branches": 2 if specimen.name in EXTRA else 3}.get(specimen.layout, 2)


def most_difference(name: str) -> float:
    """The largest difference to the stock pipeline that rounding explains."""
    return AMPLIFIED.get(name, ROUNDING)


@dataclass(frozen=True)
class Generated:
    """What a call gave, and its report."""

    result: torch.Tensor
    report: RunReport


@dataclass(frozen=True)
class Shared:
    """What ranks made of a specimen.

    Attributes:
        cfg: Two calls of one parallel pipeline: at the second how it does guidance may be known.
        cached: With a cached step between full ones.
        reuse: With a reuse step in its place; None where the network cannot be split.
        after: What the stock pipeline gives behind all that.
        traces: What is to be seen of it then.
    """

    cfg: tuple[Generated, Generated]
    cached: Generated
    reuse: Generated | None
    after: torch.Tensor
    traces: Any


def share(name: str, **config: Any) -> Shared:
    """What this rank makes of a specimen with the others, or all of them simulated."""
    return share_pipe(name, ZOO[name].build(), **config)


def share_pipe(name: str, pipe: Any, **config: Any) -> Shared:
    specimen = ZOO[name]
    with parallelize(pipe, ParallelConfig("cfg", **config)) as parallel:
        first, second = call(name, parallel), call(name, parallel)
    between = {"full_steps": full_steps(name, len(first.report.steps)), **config}
    with parallelize(pipe, ParallelConfig("hybrid", **between)) as parallel:
        cached = call(name, parallel, SEVERAL_STEPS.get(name))
    return Shared((first, second), cached, reuse(name, pipe, **between), run(specimen, pipe), traces(pipe))


def reuse(name: str, pipe: Any, **config: Any) -> Generated | None:
    try:
        with parallelize(pipe, ParallelConfig("hybrid", step_kind="reuse", **config)) as parallel:
            return call(name, parallel, SEVERAL_STEPS.get(name))
    except UsageError as error:
        if "cannot be split" not in str(error):
            raise
        return None


def call(name: str, parallel: ParallelPipeline, steps: int | None = None) -> Generated:
    result = run(ZOO[name], parallel, steps=steps)
    assert parallel.report is not None
    return Generated(result, parallel.report)


def full_steps(name: str, steps: int) -> str:
    """All steps but the third, where so many are counted: each part of a film may have as many."""
    counted = SEVERAL_STEPS.get(name, min(steps, ZOO[name].steps))
    return f"0-1,3-{counted - 1}" if counted > 3 else "0-1"


def refusal(name: str, **config: Any) -> str:
    """The sentence that a rank refuses a specimen with; the pipeline is as it was."""
    specimen = ZOO[name]
    pipe = specimen.build()
    alone, before = run(specimen, pipe), traces(pipe)
    with parallelize(pipe, ParallelConfig("cfg", **config)) as parallel, pytest.raises(UsageError) as error:
        run(specimen, parallel)
    assert traces(pipe) == before
    assert torch.equal(run(specimen, pipe), alone)
    return str(error.value)


@dataclass(frozen=True)
class Made:
    """A specimen in one process: alone, by two simulated ranks, and by two that have the branches exchanged."""

    alone: torch.Tensor
    traces: Any
    simulated: Shared
    exchanged: torch.Tensor | None


@functools.cache
def made(name: str) -> Made:
    """All that one process makes of a specimen, built once."""
    specimen = ZOO[name]
    simulation: dict[str, Any] = {"simulate": True, "devices": 2}
    pipe = specimen.build()
    alone, before = run(specimen, pipe), traces(pipe)
    simulated, exchanged = share_pipe(name, pipe, **simulation), None
    if name in GUIDED:
        with exchanged_branches(), parallelize(pipe, ParallelConfig("cfg", **simulation)) as parallel:
            exchanged = run(specimen, parallel)
    return Made(alone, before, simulated, exchanged)


@contextmanager
def exchanged_branches() -> Iterator[None]:
    """While this lasts, the conditional prediction is answered for the unconditional one and the other way round."""
    own: Callable[..., Any] = Evaluation.answer

    def answer(self: Evaluation, prediction: torch.Tensor, call: int = 0) -> Any:
        return own(self, torch.cat(prediction.chunk(self.branches)[::-1]), call)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Evaluation, "answer", answer)
        yield


def traces(pipe: Any) -> Any:
    """What a hook or a watch might leave behind: attributes of the scheduler, forwards and registries of modules."""
    modules = {part: sorted(vars(module)) for part, module in modules_of(pipe)}
    return type(pipe.scheduler).__qualname__, sorted(vars(pipe.scheduler)), modules


def modules_of(pipe: Any) -> Iterator[tuple[str, torch.nn.Module]]:
    for part, network in pipe.components.items():
        if isinstance(network, torch.nn.Module):
            yield from ((f"{part}.{name}", module) for name, module in network.named_modules())


def difference(name: str, generated: Generated) -> float:
    """How far a call is from the stock pipeline, relative to its largest value."""
    return relative_difference(generated.result, made(name).alone)
