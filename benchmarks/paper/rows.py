"""What comes of a method at a setting: ideal time, bytes and fidelity, all ranks played in this process."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from statistics import mean
from typing import Any

from hybridiff.config import ParallelConfig
from hybridiff.evaluation.frontier.generation import Reference, generate
from hybridiff.evaluation.metrics import capped_psnr, structural_similarity
from hybridiff.evaluation.simulation import SimulatedPipeline
from hybridiff.evaluation.strategy_spec import parse_strategy
from hybridiff.evaluation.workload import Workload
from hybridiff.report.report import RunReport
from hybridiff.report.speedup import mean_speedup
from hybridiff.rivals.cached_cfg import CachedCfgSettings
from hybridiff.strategies.offered import make_settings

from ..cached_pipeline import Cache, CachedPipeline
from .methods import Method


@dataclass(frozen=True)
class Row:
    """What came of a method at a setting.

    Attributes:
        model: An embedded model.
        method: The method's key.
        setting: As `strategy_spec.parse_strategy` reads it, less the number of ranks.
        devices: Number of ranks.
        images: Images at once.
        ideal_speedup: Against one device, over all runs.
        one_device: What the approximation alone saves there: the same evaluations on one device.
        bytes: Put on the wire by all ranks together, an image.
        bytes_of_all_modules: The same if every module's output were sent (AsyncDiff's published code); None elsewhere.
        psnr: Mean over the images, in dB.
        worst: Of the worst image, in dB.
        ssim: Mean over the images; None where it cannot be computed.
        outer: Time of the outer stage as a share of an evaluation; None where there is no such stage.
        inner: That of the slowest inner one, likewise.
        pipelined: Number of pipelined steps.
        tau1: Earliest and latest end of the warm-up; None where there is none.
    """

    model: str
    method: str
    setting: str
    devices: int
    images: int
    ideal_speedup: float
    one_device: float
    bytes: int
    bytes_of_all_modules: int | None
    psnr: float
    worst: float
    ssim: float | None
    outer: float | None = None
    inner: float | None = None
    pipelined: int = 0
    tau1: tuple[int, int] | None = None


def measure(
    workload: Workload,
    methods: Sequence[Method],
    references: Sequence[Reference],
    on_row: Callable[[str], None] = lambda setting: None,
) -> Iterator[Row]:
    """One row per method that works with the model, and setting.

    Args:
        workload: The model and how it is called.
        methods: The lines of a table.
        references: What images are compared with; an even number where a method makes two at once.
        on_row: Is told the setting that comes next.
    """
    for method in methods:
        for setting in method.settings if workload.model in method.models else ():
            on_row(setting)
            yield _row(workload, method, setting, references)


def _row(workload: Workload, method: Method, setting: str, references: Sequence[Reference]) -> Row:
    config = parse_strategy(setting, method.devices)
    if config.strategy == "cached_cfg":
        reports, pixels, speedups, alone = _run_cached(workload, config, references)
    else:
        reports, pixels = _run(workload, config, references, method.images)
        speedups, alone = [report.ideal_speedup or 1.0 for report in reports], list(map(_on_one_device, reports))
    pairs = [(image, reference.pixels) for image, reference in zip(pixels, references, strict=True)]
    decibels = [capped_psnr(*pair) for pair in pairs]
    likeness = [found for found in (structural_similarity(*pair) for pair in pairs) if found is not None]
    return Row(
        model=workload.model,
        method=method.key,
        setting=setting,
        devices=method.devices,
        images=method.images,
        ideal_speedup=round(mean_speedup(speedups), 3),
        one_device=round(mean_speedup(alone), 3),
        bytes=round(mean(sum(report.bytes_by_purpose.values()) for report in reports) / method.images),
        psnr=round(mean(decibels), 2),
        worst=round(min(decibels), 2),
        ssim=round(mean(likeness), 5) if likeness else None,
        **_schedule(reports),
    )


def _run(
    workload: Workload, config: ParallelConfig, references: Sequence[Reference], images: int
) -> tuple[list[RunReport], list[Any]]:
    """The reports of all runs, and the images."""
    reports: list[RunReport] = []
    pixels: list[Any] = []
    with SimulatedPipeline(workload.pipe, config) as pipe:
        for start in range(0, len(references), images):
            part = references[start : start + images]
            pixels += list(generate(pipe, [reference.prompt for reference in part], workload.call))
            reports.append(pipe.report)
    return reports, pixels


def _run_cached(
    workload: Workload, config: ParallelConfig, references: Sequence[Reference]
) -> tuple[list[RunReport], list[Any], list[float], list[float]]:
    """By networks that count the work they do, as the strategy's report cannot; of one run by it, to tell the bytes."""
    reports, _ = _run(workload, config, references[:1], 1)
    pixels, speedups, alone = [], [], []
    with CachedPipeline(workload.pipe, _cache(config.settings), workload.call) as pipe:
        for reference in references:
            pixels += list(generate(pipe, [reference.prompt], workload.call))
            speedups.append(pipe.summary.ideal_speedup)
            alone.append(pipe.one_device)
    return reports, pixels, speedups, alone


def _cache(given: dict[str, Any]) -> Cache:
    settings = make_settings(CachedCfgSettings, given)
    if settings.cache == "taylorseer":
        return Cache("taylorseer", settings.interval, settings.order)
    return Cache("first-block", settings.threshold)


def _on_one_device(report: RunReport) -> float:
    """A full step costs an evaluation of both branches there, a pipelined one of `published` all stages of one."""
    steps, kinds = len(report.steps), report.kinds
    if report.strategy == "published":
        return 2 * steps / (2 * steps - kinds.get("pipelined", 0))
    if report.strategy == "parastep":
        return 1.0  # its steps that compute nothing were computed ahead
    return steps / (steps - kinds.get("cached", 0))


def _schedule(reports: Sequence[RunReport]) -> dict[str, Any]:
    """What a row says of stages and phases; those of the first run where runs have measured them anew."""
    first, stages = reports[0], reports[0].stages
    ends = [report.tau1 for report in reports if report.tau1 is not None and report.strategy == "published"]
    pipelined = first.kinds.get("pipelined", 0)
    sent = stages.get("bytes_if_all_were_sent")
    return {
        "outer": round(stages["outer"], 3) if "outer" in stages else None,
        "inner": round(stages["inner"], 3) if "outer" in stages else None,
        "pipelined": pipelined,
        "tau1": (min(ends), max(ends)) if ends else None,
        "bytes_of_all_modules": None if sent is None else sent * pipelined,
    }


def find_best(rows: Sequence[Row]) -> list[Row]:
    """The rows at the best setting for their speed: no other of the same method is as fast and as near."""

    def is_better(other: Row, row: Row) -> bool:
        ours, theirs = (row.ideal_speedup, row.psnr), (other.ideal_speedup, other.psnr)
        return theirs != ours and all(there >= here for here, there in zip(ours, theirs, strict=True))

    return [row for row in rows if not any(is_better(other, row) for other in rows if _method(other) == _method(row))]


def _method(row: Row) -> tuple[str, str, int]:
    return row.model, row.method, row.devices
