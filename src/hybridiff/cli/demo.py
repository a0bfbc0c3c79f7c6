"""The same scene with every embedded model on one device and on several: how fast, and how alike."""

from __future__ import annotations

import contextlib
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..config import ParallelConfig
from ..evaluation.metrics import psnr
from ..launch.engine import Engine
from ..launch.protocol import Generation
from ..models.tiny import EMBEDDED, GUIDANCE
from .output import Output

PROMPT = "a large red ring at the left on a white background"

PICTURES = 4
"""Drawn at once, so that the embedded models, which are small, keep a core busy."""

WARM_UP_STEPS = 4


@dataclass(frozen=True)
class DemoRun:
    """One way to generate the scene.

    Attributes:
        strategy: Name of the strategy.
        devices: Number of ranks.
        switching: The rule by which `hybrid` switches; its default unless given.
    """

    strategy: str
    devices: int
    switching: str | None = None

    @property
    def name(self) -> str:
        """What the table and the files call it."""
        return self.strategy if self.switching is None else f"{self.strategy}-{self.switching}"

    @property
    def config(self) -> ParallelConfig:
        """The way as the ranks are told."""
        return ParallelConfig(strategy=self.strategy, switching=self.switching)


RUNS = (
    DemoRun("serial", 1),
    DemoRun("hybrid", 1),
    DemoRun("cfg", 2),
    DemoRun("hybrid", 2, "published"),
    DemoRun("hybrid", 2),
)
"""The first is the reference of the others. On one device `hybrid` shows what is saved without adding a device."""


@dataclass(frozen=True)
class DemoRow:
    """What one way gave for one model.

    Attributes:
        model: The embedded model.
        run: How it ran.
        seconds: Median of the repeats, for the whole call.
        speed_up: Against the first way.
        psnr: Of the pictures against the first way's, in dB.
        path: The pictures on one sheet.
    """

    model: str
    run: DemoRun
    seconds: float
    speed_up: float
    psnr: float
    path: Path


def run_demo(
    folder: str, steps: int, repeats: int, on_progress: Callable[[str], None], **engine_options: Any
) -> Iterator[DemoRow]:
    """Generate the scene in every way with every embedded model; the rows of the table as they come.

    The ways take turns, so that a disturbance of the machine meets all of them, after one short warm-up each.

    Args:
        folder: Where pictures, reports and curves go.
        steps: Denoising steps.
        repeats: How often each way runs; its time is the median.
        on_progress: Is told what happens now.
        engine_options: `device`, `dtype` and deadlines for `Engine`.
    """
    for model in EMBEDDED:
        on_progress(f"{model}: starting {sum(run.devices for run in RUNS)} ranks")
        with contextlib.ExitStack() as stack:
            engines = {run: stack.enter_context(_engine(model, run, engine_options)) for run in RUNS}
            for engine in engines.values():
                _draw(engine, model, WARM_UP_STEPS)
            generations: dict[DemoRun, list[Generation]] = {run: [] for run in RUNS}
            for repeat in range(repeats):
                for run, engine in engines.items():
                    on_progress(f"{model}: {run.name} on {run.devices}, {repeat + 1} of {repeats}")
                    generations[run].append(_draw(engine, model, steps))
        yield from _rows(model, generations, Path(folder))


def format_table(rows: list[DemoRow]) -> str:
    """The rows as text with aligned columns."""
    head = ("model", "strategy", "devices", "seconds", "speed-up", "PSNR against the first")
    body = [
        (
            row.model,
            row.run.name,
            str(row.run.devices),
            f"{row.seconds:.2f}",
            f"{row.speed_up:.2f}x",
            _likeness(row),
        )
        for row in rows
    ]
    columns = [_aligned(column, left=index < 2) for index, column in enumerate(zip(head, *body, strict=True))]
    return "\n".join("  ".join(line) for line in zip(*columns, strict=True))


def _aligned(column: Sequence[str], left: bool) -> list[str]:
    width = max(map(len, column))
    return [cell.ljust(width) if left else cell.rjust(width) for cell in column]


def _engine(model: str, run: DemoRun, options: dict[str, Any]) -> Engine:
    return Engine(model, run.devices, run.config, **options)


def _draw(engine: Engine, model: str, steps: int) -> Generation:
    return engine.generate(
        PROMPT,
        seed=0,
        num_inference_steps=steps,
        num_images_per_prompt=PICTURES,
        guidance_scale=GUIDANCE[model],
    )


def _rows(model: str, generations: dict[DemoRun, list[Generation]], folder: Path) -> Iterator[DemoRow]:
    reference = generations[RUNS[0]]
    reference_seconds = _median_seconds(reference)
    for run, results in generations.items():
        output = Output(folder, f"{model}-{run.name}-{run.devices}", ".png")
        facts = {"model": model, "prompt": PROMPT, "settings": {"repeats": len(results)}}
        path = next(path for path in output.write(results[0], facts) if "-sheet" in path.name)
        seconds = _median_seconds(results)
        likeness = psnr(*(np.stack(images) for images in (results[0].images, reference[0].images)))
        yield DemoRow(model, run, seconds, reference_seconds / seconds, likeness, path)


def _median_seconds(generations: list[Generation]) -> float:
    return statistics.median(generation.report.seconds for generation in generations)


def _likeness(row: DemoRow) -> str:
    if row.run == RUNS[0]:
        return "-"
    return "identical" if row.psnr == float("inf") else f"{row.psnr:.1f} dB"
