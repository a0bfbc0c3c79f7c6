"""Solvers beside each other: what is tried of each, and the rows of each in a study. Steps are for 50, and scale."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ...config import ParallelConfig
from ...errors import UsageError
from ...models.schedulers import SCHEDULERS, scheduler_kind
from ...schedule.calibration import Calibration
from ...schedule.presets import scaled_steps
from .rows import mean_evaluations, upper_envelope
from .settings import Setting

HYBRID = "solvers-hybrid"
"""The method of promises on other solvers than the model's own; `solvers` is that of these solvers alone."""

PROMISES = (35.0, 40.0, 45.0, 50.0)
"""In dB; farther away the solver's own error is all that is left to see."""

FEWER = (10, 14, 20, 28, 40)
FEWER_HYBRID = 28
"""With so many steps solvers of higher order are about where they stay."""

_CANDIDATES = {"diffusion": ("euler", "dpmsolver++", "unipc"), "flow": ("flow-euler", "flow-dpmsolver++", "flow-unipc")}
"""Euler stands beside DDIM, too: as diffusers has it, DDIM is worse where the number of steps does not divide 1000."""

_FIRST_ORDER = ("DDIMScheduler", "EulerDiscreteScheduler", "FlowMatchEulerDiscreteScheduler")

_NOISY = ("Ancestral", "SDE", "DDPM", "LCM", "SASolver")
"""Of the names of schedulers that add noise at every step."""


def check_converged(converged_steps: int, steps: int, own: Any) -> None:
    """Refuse converged images that would be none.

    Raises:
        UsageError: there are too few steps, or the scheduler adds noise and has no image to converge to.
    """
    if converged_steps <= steps:
        raise UsageError(f"--converged-steps must be 0 or above the {steps} steps of images, got {converged_steps}")
    name, algorithm = type(own).__name__, str(own.config.get("algorithm_type", ""))
    if any(part in name for part in _NOISY) or algorithm.startswith("sde") or own.config.get("stochastic_sampling"):
        raise UsageError(f"{name} adds noise, its images do not converge: give --converged-steps 0, or a --scheduler")


def other_solvers(own: Any) -> list[str]:
    """Names of the schedulers (see `schedulers.SCHEDULERS`) that a model's own one is compared with."""
    kind = scheduler_kind({"_class_name": type(own).__name__, **own.config})
    return [name for name in _CANDIDATES[kind] if SCHEDULERS[name].class_name != type(own).__name__]


def promised(decibels: float, steps: int | None = None, scheduler: str | None = None) -> Setting:
    """A promise to a model that nobody has calibrated, with its own scheduler or another."""
    config = ParallelConfig("hybrid", fidelity=decibels, calibration=Calibration("none", ()))
    label = f"{decibels:g} dB promised"
    if scheduler is None and steps is None:
        return Setting("fidelity", label, config)
    return Setting(HYBRID, f"{_where(steps, scheduler)}, {label}", config, steps, scheduler)


def solver_settings(steps: int, own: Any) -> Iterator[Setting]:
    """Every solver with fewer steps, and promises on every solver; the model's own among them.

    Args:
        steps: The reference's number of steps.
        own: The reference's scheduler.
    """
    names = [None, *other_solvers(own)]
    for name in names:
        yield from _plain(name, steps)
    for name in names:
        yield from (promised(decibels, scheduler=name, steps=None if name is None else steps) for decibels in PROMISES)
        fewer = scaled_steps(FEWER_HYBRID, steps, least=3)
        if fewer < steps and (type(own).__name__ if name is None else SCHEDULERS[name].class_name) not in _FIRST_ORDER:
            yield from (promised(decibels, fewer, name) for decibels in PROMISES)


def solver_lines(content: Mapping[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """The rows of each solver alone, and of `hybrid` on each, by what a chart calls them.

    Args:
        content: Of a study's file, see `study.Study`.
    """
    own, lines = content["run"]["scheduler"], dict[str, list[dict[str, Any]]]()
    for row in content["rows"]:
        name, config = row.get("scheduler"), row["config"]
        solver = (own if name is None else SCHEDULERS[name].class_name).removesuffix("Scheduler")
        if config == {}:  # condition-based partitioning: every step is full
            lines.setdefault(solver, []).append(row)
        elif "fidelity" in config:
            lines.setdefault(f"hybrid on {solver}", []).append(row)
    has_others = any("scheduler" in row for rows in lines.values() for row in rows)
    return dict(sorted(lines.items())) if has_others else {}


def least_evaluations(rows: Sequence[Mapping[str, Any]], fidelity: str) -> list[tuple[float, float]]:
    """What no other row beats with fewer evaluations: (evaluations, dB), from few to many.

    Args:
        rows: Of one line.
        fidelity: `psnr` or `psnr_converged`.
    """
    points = upper_envelope((-mean_evaluations(row), row[fidelity]) for row in rows if fidelity in row)
    return [(-evaluations, decibels) for evaluations, decibels in reversed(points)]


def _plain(name: str | None, steps: int) -> Iterator[Setting]:
    config, numbers = ParallelConfig("cfg"), {scaled_steps(number, steps, least=3) for number in FEWER}
    method = "fewer-steps" if name is None else "solvers"
    for fewer in sorted(number for number in numbers if number < steps):
        yield Setting(method, _where(fewer, name), config, fewer, name)
    yield Setting("exact", "cfg", config) if name is None else Setting(method, _where(steps, name), config, steps, name)


def _where(steps: int | None, scheduler: str | None) -> str:
    return ", ".join(filter(None, [scheduler, f"{steps} steps" if steps else None]))
