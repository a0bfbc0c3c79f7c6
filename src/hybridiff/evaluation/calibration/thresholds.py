"""Measure the thresholds of a model for one scheduler and number of steps, on one device."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from typing import Any

from ...config import STEP_KINDS
from ...denoiser.adapters import find_denoiser
from ...denoiser.adapters.base import guiding_scale
from ...errors import UsageError
from ...models.schedulers import scheduler_name
from ...schedule.calibration import Entry
from ...utils.names import require_known
from ...utils.prompts import Prompt
from ...utils.tables import align
from ..frontier.generation import Reference, generate_references, simulate
from ..frontier.rows import FrontierRow
from ..frontier.settings import guided
from ..inspection.denoiser import measure_splits
from ..metrics import counted_psnr
from ..progress import Progress
from ..simulation import SimulatedPipeline
from ..workload import seeded
from .bands import SweepPoint, choose_bands, expectations, fit_published, rounded

TOLERANCES = tuple(float(f"{0.012 * (0.4 / 0.012) ** (point / 6):.3g}") for point in range(7))
"""The tolerances that are tried."""


def calibrate(
    pipe: Any,
    prompts: Sequence[Prompt],
    call: dict[str, Any],
    step_kinds: Sequence[str] = STEP_KINDS,
    on_progress: Callable[[str, int, int], None] = lambda what, done, total: None,
) -> Entry:
    """Measure a model's thresholds with its scheduler.

    Args:
        pipe: A stock pipeline.
        prompts: What is generated; at least `calibration.FEWEST_PROMPTS` for thresholds to rely on.
        call: Further arguments of the pipeline, with the number of steps and the guidance scale.
        step_kinds: What the steps between full ones may be; the fastest is chosen for each quality.
        on_progress: Is told after every image what is generated, how many are, and of how many.

    Raises:
        UsageError: the scheduler leaves nothing to calibrate, or a step kind is unknown.
    """
    check_candidates(step_kinds)
    check_order(pipe.scheduler)
    steps, images = int(call["num_inference_steps"]), len(prompts) * (1 + len(TOLERANCES) * len(step_kinds))
    progress = Progress(on_progress, images)
    references, curves = _generate_full(pipe, seeded(prompts), call, progress)
    splits = measure_splits(pipe, call)
    sweeps = {}
    for kind in step_kinds:
        settings = [guided(kind, tolerance) for tolerance in TOLERANCES]
        rows = simulate(pipe, references, settings, call, splits, lambda setting: progress.advance(setting.method))
        sweeps[kind] = _sweep(kind, rows)
    return Entry(
        scheduler=scheduler_name(pipe.scheduler),
        num_inference_steps=steps,
        guidance_scale=guiding_scale(pipe, call),
        prompts=len(prompts),
        bands=choose_bands(sweeps),
        published=fit_published(curves["discrepancy"], find_denoiser(pipe)[0].published.scaled(steps)),
        curves={name: [rounded(value) for value in curve] for name, curve in curves.items()},
        measured=[_short(point) for sweep in sweeps.values() for point in sweep],
    )


def check_candidates(step_kinds: Sequence[str]) -> None:
    """Refuse unknown kinds of steps between full ones.

    Raises:
        UsageError: with the names that would do.
    """
    for kind in step_kinds:
        require_known("step kind", kind, STEP_KINDS)


def check_order(scheduler: Any) -> None:
    """Refuse schedulers of second order: calibrations are by number of steps, of one evaluation each.

    Raises:
        UsageError: with the scheduler's order.
    """
    order = getattr(scheduler, "order", 1)
    if order > 1:
        raise UsageError(
            f"{type(scheduler).__name__} is of order {order}: thresholds are calibrated for one evaluation per step; "
            "promise a fidelity instead"
        )


def format_expectations(entry: Entry) -> str:
    """The calibrated qualities as text with aligned columns."""
    rows = [("quality", "step kind", "tolerance", "ideal speed-up", "PSNR against one device")]
    for quality, point in expectations(entry).items():
        measured = f"{point.tolerance:.3g}", f"{point.ideal_speedup:.2f}x", f"{point.psnr:.1f} dB"
        rows.append((f"{quality:g}", point.step_kind, *measured))
    return align([*rows, ("1", "-", "0", "2.00x", "identical")], words=2)


def _generate_full(
    pipe: Any, prompts: Sequence[Prompt], call: dict[str, Any], progress: Progress
) -> tuple[list[Reference], dict[str, list[float]]]:
    """The images of full steps, those of one device bit for bit; and what full steps showed, as curves."""
    references, discrepancies, drifts = [], [], []
    with SimulatedPipeline(pipe, guided("cached", 0.0).config) as attached:
        for reference in generate_references(attached, prompts, call):
            references.append(reference)
            steps = attached.report.steps
            discrepancies.append([step.discrepancy or 0.0 for step in steps])
            drifts.append([step.drift or 0.0 for step in steps[1:]])
            progress.advance("full steps")
    return references, _curve("discrepancy", discrepancies) | _curve("drift", drifts)


def _sweep(kind: str, rows: Iterable[FrontierRow]) -> list[SweepPoint]:
    """What tolerances gave with steps of one kind."""
    points = []
    for tolerance, row in zip(TOLERANCES, rows, strict=True):
        psnr = counted_psnr([result.psnr for result in row.results])
        points.append(SweepPoint(kind, tolerance, row.ideal_speedup, psnr))
    return points


def _curve(name: str, curves: Sequence[Sequence[float]]) -> dict[str, list[float]]:
    """Mean and standard deviation over the prompts, one value per step."""
    steps = list(zip(*curves, strict=True))
    return {
        name: [statistics.mean(values) for values in steps],
        f"{name}_deviation": [statistics.pstdev(values) for values in steps],
    }


def _short(point: SweepPoint) -> dict[str, Any]:
    return {name: rounded(value) if isinstance(value, float) else value for name, value in asdict(point).items()}
