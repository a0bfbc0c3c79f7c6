"""Fidelity against ideal speed-up, for any set of settings, on one device.

Every image is compared with the one that the stock pipeline generates on one device from the same prompt and seed, in
the same number of steps, also where a setting itself takes fewer or another scheduler: the question is how much of that
image is left at a speed, not how good an image is. Speed-ups are ideal ones, against that same one-device generation.
Where it was generated, images are also compared with the converged one, of so many steps that more change nothing: what
every solver is after.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from operator import attrgetter
from typing import Any, TypeVar

import torch

from ...denoiser.reader import count_steps
from ...models.tiny.checking import is_right
from ...utils.prompts import Prompt
from ..metrics import capped_psnr, structural_similarity
from ..simulation import RunSummary, Splits
from ..workload import seeded
from .kept import KeptImages, Pixels
from .rows import FrontierRow, ImageResult
from .settings import Setting

T = TypeVar("T")

_negative_prompt = attrgetter("prompt.negative_prompt")  # of a reference


@dataclass(frozen=True)
class Reference:
    """The one-device image of a prompt.

    Attributes:
        prompt: With its seed.
        pixels: (H, W, 3) from 0 to 1.
        is_right: See `ImageResult`.
        evaluations: Of the network, both branches as one: as many as steps unless the scheduler takes several a step.
        converged: Likewise the image in very many steps; None where it is not asked for.
    """

    prompt: Prompt
    pixels: Pixels
    is_right: bool | None
    evaluations: int
    converged: Pixels | None = None


def generate(pipe: Any, prompts: Sequence[Prompt], call: Mapping[str, Any], output_type: str = "np") -> Any:
    """The images of some prompts, (H, W, 3) from 0 to 1 each, every one from the noise of its own seed.

    All of them have a negative prompt, or none has: to some pipelines none is another than the empty one.
    """
    arguments = {
        **call,
        "prompt": [prompt.prompt for prompt in prompts],
        "generator": [torch.Generator().manual_seed(prompt.seed or 0) for prompt in prompts],
        "output_type": output_type,
    }
    own = [prompt.negative_prompt for prompt in prompts]
    if any(text is not None for text in own):
        arguments["negative_prompt"] = own
    return pipe(**arguments).images


def generate_references(
    pipe: Any, prompts: Sequence[Prompt], call: Mapping[str, Any], batch: int = 1
) -> Iterator[Reference]:
    """Generate every prompt with the stock pipeline, `batch` at once."""
    for part in _parts(seeded(prompts), batch, attrgetter("negative_prompt")):
        for prompt, pixels in zip(part, generate(pipe, part, call), strict=True):
            yield Reference(prompt, pixels, is_right(pixels, prompt.prompt), count_steps(pipe))


def add_converged(
    pipe: Any, references: Sequence[Reference], call: Mapping[str, Any], steps: int, kept: KeptImages, batch: int = 1
) -> Iterator[Reference]:
    """The references with their converged images: those that were kept, and others generated, `batch` at once.

    Args:
        pipe: The stock pipeline.
        references: What is lacking them.
        call: As for the references.
        steps: Number of steps of the converged images.
        kept: Where they are looked for, and kept.
        batch: Prompts at once.
    """
    for part in _parts(references, batch, _negative_prompt):
        found = [kept.find(reference.prompt) for reference in part]
        missing = [reference.prompt for reference, pixels in zip(part, found, strict=True) if pixels is None]
        made = iter(generate(pipe, missing, {**call, "num_inference_steps": steps}) if missing else ())
        for reference, pixels in zip(part, found, strict=True):
            if pixels is None:
                pixels = next(made)
                kept.keep(reference.prompt, pixels)
            yield replace(reference, converged=pixels)


def simulate(
    pipe: Any,
    references: Sequence[Reference],
    settings: Iterable[Setting],
    call: dict[str, Any],
    splits: Splits | None = None,
    on_image: Callable[[Setting], None] = lambda setting: None,
    batch: int = 1,
) -> Iterator[FrontierRow]:
    """Generate every prompt by every setting, all ranks played in this process.

    Args:
        pipe: A stock pipeline.
        references: What the images are compared with.
        settings: What is tried.
        call: Further arguments of the pipeline, the same as for the references; with the number of steps.
        splits: Where the network is split; measured and chosen for each setting unless given.
        on_image: Is called after every image.
        batch: Prompts at once, by settings whose schedule does not depend on them.
    """
    steps = call["num_inference_steps"]
    for setting in settings:
        own = call | {"num_inference_steps": setting.steps or steps}
        results: list[ImageResult] = []
        with setting.attach(pipe, own, splits) as attached:
            for part in _parts(references, 1 if setting.is_adaptive else batch, _negative_prompt):
                images = generate(attached, [reference.prompt for reference in part], own)
                run = attached.summary
                run = replace(run, ideal_speedup=run.ideal_speedup * part[0].evaluations / len(run.schedule))
                for pixels, reference in zip(images, part, strict=True):
                    results.append(_compare(pixels, reference, run))
                    on_image(setting)
        yield FrontierRow(setting, results)


def guided_schedules(
    pipe: Any,
    prompts: Sequence[Prompt],
    guided: Setting,
    call: dict[str, Any],
    on_image: Callable[[], None] = lambda: None,
) -> list[str]:
    """The schedule that a guided setting chose for each prompt, see `RunSummary.schedule`."""
    schedules = []
    with guided.attach(pipe, call, None) as attached:
        for prompt in seeded(prompts):
            generate(attached, [prompt], call, output_type="latent")
            schedules.append(attached.summary.schedule)
            on_image()
    return schedules


def _parts(items: Sequence[T], size: int, negative_prompt: Callable[[T], str | None]) -> Iterator[Sequence[T]]:
    """Batches in order, each of prompts with a negative prompt, or without."""
    for _, alike in groupby(items, lambda item: negative_prompt(item) is None):
        group = list(alike)
        yield from (group[start : start + size] for start in range(0, len(group), size))


def _compare(pixels: Pixels, reference: Reference, run: RunSummary) -> ImageResult:
    return ImageResult(
        psnr=capped_psnr(pixels, reference.pixels),
        ssim=structural_similarity(pixels, reference.pixels),
        is_right=is_right(pixels, reference.prompt.prompt),
        run=run,
        psnr_converged=None if reference.converged is None else capped_psnr(pixels, reference.converged),
    )
