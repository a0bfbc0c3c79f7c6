"""Fidelity against ideal speed-up, for any set of settings, on one device."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from .config import ParallelConfig
from .metrics import psnr, structural_similarity
from .parallel import parallelize
from .prompts import Prompt
from .tiny.scenes import check, parse_caption
from .trace import RunReport

Pixels = np.ndarray[Any, np.dtype[np.float32]]


@dataclass(frozen=True)
class Setting:
    """A way to generate, under a name.

    Attributes:
        family: What it belongs to, such as `published`, `carry`, `reuse`.
        config: How the ranks would work together; it is simulated.
    """

    family: str
    config: ParallelConfig


@dataclass(frozen=True)
class Drawing:
    """One picture by one setting, beside the one-device picture of the same prompt and seed.

    Attributes:
        psnr: In dB on float pixels, at most 100.
        ssim: Structural similarity, at most 1.
        is_right: Whether colours, position and background are the caption's; None for prompts that are no captions.
        ideal_speedup: Of the recorded schedule.
        schedule: A letter a step: f(ull), p(ipelined), r(euse).
        tau1: Last step before the parallel stage.
        tau2: Last step of the parallel stage.
    """

    psnr: float
    ssim: float
    is_right: bool | None
    ideal_speedup: float
    schedule: str
    tau1: int | None
    tau2: int | None


@dataclass(frozen=True)
class FrontierRow:
    """One setting over all prompts.

    Attributes:
        setting: Which.
        drawings: One a prompt.
    """

    setting: Setting
    drawings: list[Drawing]

    def to_dict(self) -> dict[str, Any]:
        """The row as plain data, ready for JSON."""
        values = sorted(drawing.psnr for drawing in self.drawings)
        tenth = values[: max(1, len(values) // 10)]
        right = [drawing.is_right for drawing in self.drawings if drawing.is_right is not None]
        schedules = [drawing.schedule for drawing in self.drawings]
        return {
            "family": self.setting.family,
            "config": self.setting.config.to_dict(),
            "prompts": len(self.drawings),
            "ideal_speedup": statistics.mean(drawing.ideal_speedup for drawing in self.drawings),
            "psnr": statistics.mean(values),
            "psnr_worst_tenth": statistics.mean(tenth),
            "ssim": statistics.mean(drawing.ssim for drawing in self.drawings),
            "right": sum(right) / len(right) if right else None,
            "schedules": {schedule: schedules.count(schedule) for schedule in sorted(set(schedules))},
        }


@dataclass(frozen=True)
class Reference:
    """The one-device picture of a prompt."""

    prompt: Prompt
    pixels: Pixels
    is_right: bool | None


def draw_references(pipe: Any, prompts: Sequence[Prompt], call: dict[str, Any]) -> Iterator[Reference]:
    """Draw every prompt with the stock pipeline; prompts without a seed take their place in the list."""
    for number, prompt in enumerate(prompts):
        seeded = prompt if prompt.seed is not None else Prompt(prompt.prompt, number, prompt.negative_prompt)
        pixels = _draw(pipe, seeded, call)
        yield Reference(seeded, pixels, _is_right(pixels, seeded.prompt))


def simulate(
    pipe: Any,
    references: Sequence[Reference],
    settings: Sequence[Setting],
    call: dict[str, Any],
    on_progress: Callable[[str], None] = lambda text: None,
) -> Iterator[FrontierRow]:
    """Draw every prompt by every setting, all ranks played in this process.

    Args:
        pipe: A stock pipeline.
        references: What the pictures are compared with.
        settings: What is tried.
        call: Further arguments of the pipeline, the same as for the references.
        on_progress: Is told what happens now.
    """
    for number, setting in enumerate(settings, start=1):
        on_progress(f"{setting.family}: {number} of {len(settings)}")
        with parallelize(pipe, setting.config) as parallel:
            drawings = []
            for reference in references:
                pixels = _draw(parallel, reference.prompt, call)
                assert parallel.report is not None
                drawings.append(_compare(pixels, reference, parallel.report))
        yield FrontierRow(setting, drawings)


def _draw(pipe: Any, prompt: Prompt, call: dict[str, Any]) -> Pixels:
    generator = torch.Generator().manual_seed(prompt.seed or 0)
    negative = {} if prompt.negative_prompt is None else {"negative_prompt": prompt.negative_prompt}
    output = pipe(prompt.prompt, generator=generator, output_type="np", **negative, **call)
    pixels: Pixels = output.images[0]  # (H, W, 3), 0 to 1
    return pixels


def _compare(pixels: Pixels, reference: Reference, report: RunReport) -> Drawing:
    return Drawing(
        psnr=min(100.0, psnr(pixels * 255.0, reference.pixels * 255.0)),
        ssim=structural_similarity(pixels, reference.pixels),
        is_right=_is_right(pixels, reference.prompt.prompt),
        ideal_speedup=report.ideal_speedup or 1.0,
        schedule="".join(step.kind.value[0] for step in report.steps),
        tau1=report.tau1,
        tau2=report.tau2,
    )


def _is_right(pixels: Pixels, text: str) -> bool | None:
    try:
        scene = parse_caption(text)
    except ValueError:
        return None
    return check(pixels, scene).core
