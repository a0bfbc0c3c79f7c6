"""Fidelity against ideal speed-up, for any set of settings, on one device.

Every picture is compared with the one that the stock pipeline draws on one device from the same prompt and seed, in the
same number of steps, also where a setting itself takes fewer: the question is how much of that picture is left at a
speed, not how good a picture is. Speed-ups are ideal ones, against that same one-device generation.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, TypeVar

import numpy as np
import torch

from ..config import ParallelConfig
from ..models.tiny.checking import check
from ..models.tiny.scenes import parse_caption
from ..pipeline import parallelize
from ..report.report import RunReport
from ..schedule.kinds import StepKind
from ..schedule.plan import STAGED, Schedule
from ..utils.prompts import Prompt
from .caches import Cache, CachedPipeline
from .inspect import Inspection, inspect_denoiser
from .metrics import psnr, structural_similarity

T = TypeVar("T")

Pixels = np.ndarray[Any, np.dtype[np.float32]]


@dataclass(frozen=True)
class Setting:
    """A way to generate, under a name.

    Attributes:
        family: What it belongs to, such as `published`, `carry`, `reuse`.
        label: What sets it apart within the family.
        config: How the ranks would work together; it is simulated.
        steps: Number of denoising steps, where it is not that of the reference.
        cache: A cache of diffusers, with which every branch is evaluated; for `cfg`.
    """

    family: str
    label: str
    config: ParallelConfig
    steps: int | None = None
    cache: Cache | None = None

    def describe(self, pipe: Any, steps: int) -> dict[str, Any]:
        """What tells this setting from any other, the thresholds that it takes from elsewhere included; for JSON.

        Args:
            pipe: The stock pipeline.
            steps: The reference's number of steps.

        Raises:
            ValueError: the setting does not fit the number of steps, or its calibration cannot be read.
        """
        steps = self.steps or steps
        defaults = ParallelConfig().to_dict()
        config = {
            name: value
            for name, value in self.config.to_dict().items()
            if value != defaults[name] and name not in ("simulate", "calibration")  # its thresholds count
        }
        if self.cache is not None:
            config["cache"] = self.cache.to_dict()
        thresholds = _thresholds(Schedule(pipe, self.config, steps)) if self.is_scheduled else {}
        return {
            "family": self.family,
            "label": self.label,
            "steps": steps,
            "config": config,
            "thresholds": thresholds,
        }

    def fits(self, pipe: Any) -> bool:
        """Whether a pipeline's network can be run that way."""
        return self.cache is None or self.cache.fits(pipe)

    def calibrated(self, path: str) -> Setting:
        """With thresholds from a file of `hybridiff calibrate`."""
        return replace(self, config=replace(self.config, calibration=path)) if self.is_scheduled else self

    @property
    def is_scheduled(self) -> bool:
        """Whether some of its steps may not be full."""
        return self.config.strategy in ("hybrid", "reuse")

    @property
    def is_adaptive(self) -> bool:
        """Whether its schedule depends on what is drawn."""
        if self.cache is not None:
            return self.cache.is_adaptive
        return self.is_scheduled and self.config.rule != "fixed"


def _thresholds(schedule: Schedule) -> dict[str, Any]:
    settings = getattr(schedule.policy([1.0] * schedule.steps), "settings", None)
    found = {"between": schedule.between, "forecast": schedule.forecast, "catch_up": schedule.catch_up}
    return found | ({} if settings is None else asdict(settings))


@dataclass(frozen=True)
class Drawing:
    """One picture by one setting, beside the one-device picture of the same prompt and seed.

    Attributes:
        psnr: In dB on float pixels, at most 100.
        ssim: Structural similarity, at most 1; None where torchmetrics is not installed (hybridiff[eval]).
        is_right: Whether colours, position and background are the caption's; None for prompts that are no captions.
        ideal_speedup: Of the recorded schedule, against the reference.
        schedule: A letter a step: f(ull), p(ipelined), r(euse), s(kipped), c(ached).
        tau1: Last step before the parallel stage, None where there was none.
        tau2: Last step of the parallel stage, likewise.
    """

    psnr: float
    ssim: float | None
    is_right: bool | None
    ideal_speedup: float
    schedule: str
    tau1: int | None = None
    tau2: int | None = None


@dataclass(frozen=True)
class FrontierRow:
    """One setting over all prompts.

    Attributes:
        setting: Which.
        drawings: One a prompt.
    """

    setting: Setting
    drawings: list[Drawing]

    @property
    def ideal_speedup(self) -> float:
        """Mean over the prompts."""
        return statistics.mean(drawing.ideal_speedup for drawing in self.drawings)

    @property
    def psnr(self) -> float:
        """Mean over the prompts, in dB."""
        return statistics.mean(drawing.psnr for drawing in self.drawings)

    def to_dict(self) -> dict[str, Any]:
        """What was measured as plain data, ready for JSON."""
        values = sorted(drawing.psnr for drawing in self.drawings)
        schedules = [drawing.schedule for drawing in self.drawings]
        found = {
            "prompts": len(self.drawings),
            "ideal_speedup": round(self.ideal_speedup, 4),
            "psnr": round(self.psnr, 3),
            "psnr_worst_tenth": round(statistics.mean(values[: max(1, len(values) // 10)]), 3),
            "ssim": _mean_if_known(drawing.ssim for drawing in self.drawings),
            "right": share_right(drawing.is_right for drawing in self.drawings),
            "schedules": {schedule: schedules.count(schedule) for schedule in sorted(set(schedules))},
        }
        return found | (self._spread() if self.setting.is_adaptive else {})

    def _spread(self) -> dict[str, Any]:
        """How the schedules differ over the prompts."""
        full = [drawing.schedule.count("f") for drawing in self.drawings]
        return {
            "full_steps": {
                "min": min(full),
                "median": statistics.median(full),
                "max": max(full),
                "deviation": round(statistics.pstdev(full), 3),
            },
            "tau1": _range(drawing.tau1 for drawing in self.drawings),
            "tau2": _range(drawing.tau2 for drawing in self.drawings),
        }


def share_right(verdicts: Iterable[bool | None]) -> float | None:
    """The share of captions that were drawn right; None where there are none."""
    known = [verdict for verdict in verdicts if verdict is not None]
    return round(sum(known) / len(known), 4) if known else None


def _mean_if_known(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return round(statistics.mean(known), 5) if known else None


def _range(values: Iterable[int | None]) -> list[int] | None:
    known = [value for value in values if value is not None]
    return [min(known), max(known)] if known else None


@dataclass(frozen=True)
class Reference:
    """The one-device picture of a prompt."""

    prompt: Prompt
    pixels: Pixels
    is_right: bool | None


def draw_references(pipe: Any, prompts: Sequence[Prompt], call: dict[str, Any], batch: int = 1) -> Iterator[Reference]:
    """Draw every prompt with the stock pipeline, `batch` at once; without a seed it takes its place in the list."""
    for part in _parts(seeded(prompts), batch):
        for prompt, pixels in zip(part, _draw(pipe, part, call), strict=True):
            yield Reference(prompt, pixels, _is_right(pixels, prompt.prompt))


def seeded(prompts: Sequence[Prompt]) -> list[Prompt]:
    """The prompts, each with a seed: its own, or else its place in the list."""
    return [replace(p, seed=number) if p.seed is None else p for number, p in enumerate(prompts)]


@dataclass(frozen=True)
class Cuts:
    """Where the network is cut, measured once for all settings, as no two measurements are the same.

    Attributes:
        pipeline: Index, outer and inner cost of the cut for pipelined steps.
        reuse: Likewise for reuse steps.
    """

    pipeline: dict[str, Any]
    reuse: dict[str, Any]

    @classmethod
    def measure(cls, pipe: Any, call: dict[str, Any]) -> Cuts:
        """Measure the blocks of a pipeline's denoiser, and choose as the strategies do."""
        found = min((inspect_denoiser(pipe, **call) for _ in range(3)), key=lambda inspection: inspection.seconds)
        return cls(cls._cut(found, found.pipeline), cls._cut(found, found.reuse))

    @staticmethod
    def _cut(found: Inspection, index: int) -> dict[str, Any]:
        plan = found.plans[index]
        return {"cut": index, "outer": round(plan.outer, 4), "inner": round(plan.inner, 4)}

    def of(self, kinds: Iterable[StepKind]) -> dict[str, Any] | None:
        """The cut for steps of some kinds; None where they need none."""
        if STAGED.isdisjoint(kinds):
            return None
        return self.pipeline if StepKind.PIPELINED in kinds else self.reuse


def simulate(
    pipe: Any,
    references: Sequence[Reference],
    settings: Iterable[Setting],
    call: dict[str, Any],
    cuts: Cuts | None = None,
    on_drawing: Callable[[Setting], None] = lambda setting: None,
    batch: int = 1,
) -> Iterator[FrontierRow]:
    """Draw every prompt by every setting, all ranks played in this process.

    Args:
        pipe: A stock pipeline.
        references: What the pictures are compared with.
        settings: What is tried.
        call: Further arguments of the pipeline, the same as for the references; with the number of steps.
        cuts: Where the network is cut, for settings that leave that open; measured for each setting unless given.
        on_drawing: Is called after every picture.
        batch: Prompts drawn at once, by settings whose schedule does not depend on them.
    """
    steps = call["num_inference_steps"]
    for setting in settings:
        fewer = steps / (setting.steps or steps)
        with _simulation(pipe, setting, call, cuts) as simulation:
            drawings: list[Drawing] = []
            for part in _parts(references, 1 if setting.is_adaptive else batch):
                for drawing in simulation.draw(part):
                    drawings.append(replace(drawing, ideal_speedup=drawing.ideal_speedup * fewer))
                    on_drawing(setting)
        yield FrontierRow(setting, drawings)


def _simulation(
    pipe: Any, setting: Setting, call: dict[str, Any], cuts: Cuts | None
) -> _Simulation | _CachedSimulation:
    call = call | {"num_inference_steps": setting.steps or call["num_inference_steps"]}
    if setting.cache is not None:
        return _CachedSimulation(pipe, setting.cache, call)
    return _Simulation(pipe, setting, call, cuts)


class _Simulation:
    """A pipeline that draws by one setting, all ranks played in this process."""

    def __init__(self, pipe: Any, setting: Setting, call: dict[str, Any], cuts: Cuts | None) -> None:
        config = replace(setting.config, simulate=True)
        self._call = call
        self._stages = self._own_stages(pipe, setting, cuts)
        if self._stages:
            config = replace(config, cut=self._stages["cut"])
        self._parallel = parallelize(pipe, config)

    def _own_stages(self, pipe: Any, setting: Setting, cuts: Cuts | None) -> dict[str, Any]:
        config = setting.config
        if cuts is None or not setting.is_scheduled or config.cut is not None or config.outer_share is not None:
            return {}
        return cuts.of(Schedule(pipe, config, self._call["num_inference_steps"]).kinds) or {}

    def draw(self, references: Sequence[Reference]) -> list[Drawing]:
        pictures = _draw(self._parallel, [reference.prompt for reference in references], self._call)
        report = self._parallel.report
        assert report is not None
        if report.stages and self._stages:
            report.stages = report.stages | {"outer": self._stages["outer"], "inner": self._stages["inner"]}
        found = {
            "ideal_speedup": report.ideal_speedup or 1.0,
            "schedule": schedule_letters(report),
            "tau1": report.tau1,
            "tau2": report.tau2,
        }
        return [_compare(pixels, one, **found) for pixels, one in zip(pictures, references, strict=True)]

    def __enter__(self) -> _Simulation:
        return self

    def __exit__(self, *_: object) -> None:
        self._parallel.detach()


class _CachedSimulation:
    """A pipeline that draws with one of diffusers' caches."""

    def __init__(self, pipe: Any, cache: Cache, call: dict[str, Any]) -> None:
        self._call = call
        self._cached = CachedPipeline(pipe, cache, call)

    def draw(self, references: Sequence[Reference]) -> list[Drawing]:
        pictures = _draw(self._cached, [reference.prompt for reference in references], self._call)
        found = {"ideal_speedup": self._cached.ideal_speedup, "schedule": self._cached.schedule}
        return [_compare(pixels, one, **found) for pixels, one in zip(pictures, references, strict=True)]

    def __enter__(self) -> _CachedSimulation:
        return self

    def __exit__(self, *_: object) -> None:
        self._cached.detach()


def _compare(pixels: Pixels, reference: Reference, **found: Any) -> Drawing:
    return Drawing(
        psnr=min(100.0, psnr(pixels * 255.0, reference.pixels * 255.0)),
        ssim=_ssim(pixels, reference.pixels),
        is_right=_is_right(pixels, reference.prompt.prompt),
        **found,
    )


def schedule_letters(report: RunReport) -> str:
    """A letter a step: f(ull), p(ipelined), r(euse), s(kipped)."""
    return "".join(step.kind.value[0] for step in report.steps)


def guided_schedules(
    pipe: Any,
    prompts: Sequence[Prompt],
    guided: Setting,
    call: dict[str, Any],
    on_drawing: Callable[[], None] = lambda: None,
) -> list[str]:
    """The schedule that a guided setting chose for each prompt, see `schedule_letters`.

    Args:
        pipe: A stock pipeline.
        prompts: What is drawn.
        guided: The setting.
        call: Further arguments of the pipeline.
        on_drawing: Is called after every run.
    """
    schedules = []
    with parallelize(pipe, guided.config) as parallel:
        for prompt in seeded(prompts):
            _draw(parallel, [prompt], call, output_type="latent")
            assert parallel.report is not None
            schedules.append(schedule_letters(parallel.report))
            on_drawing()
    return schedules


def typical_schedule(schedules: Sequence[str]) -> list[int]:
    """The full steps of the schedule that is most like the others, among those with the median number of full steps.

    Args:
        schedules: A letter a step, see `schedule_letters`; all of one length.
    """
    median = statistics.median_low(schedule.count("f") for schedule in schedules)
    candidates = [schedule for schedule in schedules if schedule.count("f") == median]
    nearest = min(candidates, key=lambda schedule: sum(_difference(schedule, other) for other in schedules))
    return [step for step, letter in enumerate(nearest) if letter == "f"]


def _difference(schedule: str, other: str) -> int:
    """In how many steps one schedule is full and the other is not."""
    return sum((ours == "f") != (theirs == "f") for ours, theirs in zip(schedule, other, strict=True))


def steps_as_text(steps: Iterable[int]) -> str:
    """Steps in order as `config.parse_steps` reads them: `0-4,8,11`."""
    runs: list[list[int]] = []
    for step in steps:
        if runs and step == runs[-1][-1] + 1:
            runs[-1].append(step)
        else:
            runs.append([step])
    return ",".join(f"{run[0]}-{run[-1]}" if len(run) > 1 else f"{run[0]}" for run in runs)


def upper_envelope(points: Iterable[tuple[float, float]]) -> list[tuple[float, float]]:
    """The points, (speed, fidelity), that no other one beats in both; from slow to fast."""
    best: list[tuple[float, float]] = []
    for speed, fidelity in sorted(points, reverse=True):
        if not best or fidelity > best[-1][1]:
            best.append((speed, fidelity))
    return best[::-1]


def _draw(pipe: Any, prompts: Sequence[Prompt], call: Mapping[str, Any], output_type: str = "np") -> Any:
    """The pictures of some prompts, (H, W, 3) from 0 to 1 each, every one from the noise of its own seed."""
    arguments = {
        **call,
        "prompt": [prompt.prompt for prompt in prompts],
        "generator": [torch.Generator().manual_seed(prompt.seed or 0) for prompt in prompts],
        "output_type": output_type,
    }
    if any(prompt.negative_prompt is not None for prompt in prompts):
        general = call.get("negative_prompt") or ""
        own = [prompt.negative_prompt for prompt in prompts]
        arguments["negative_prompt"] = [general if text is None else text for text in own]
    return pipe(**arguments).images


def _parts(items: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]


def _ssim(pixels: Pixels, reference: Pixels) -> float | None:
    try:
        return structural_similarity(pixels, reference)
    except ModuleNotFoundError:
        return None


def _is_right(pixels: Pixels, text: str) -> bool | None:
    try:
        scene = parse_caption(text)
    except ValueError:
        return None
    return check(pixels, scene).core
