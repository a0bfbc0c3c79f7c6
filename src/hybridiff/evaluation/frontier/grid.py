"""The settings that `hybridiff simulate` compares, by method. Numbers of steps are given for 50, and scale."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import Any

from ...config import REFERENCE_STEPS, ParallelConfig, PublishedSettings
from ...schedule.presets import scaled_steps
from ...utils.names import require_known
from .schedules import regular_schedule, steps_as_text
from .settings import Setting, guided
from .solvers import promised, solver_settings

TYPICAL = "typical"
"""The method of fixed schedules that are typical of guided ones: does it pay to adapt to what is generated?"""


SOLVERS = "solvers"
"""Of these settings some belong to methods of their own: `exact`, `fewer-steps`, `fidelity` and `solvers-hybrid`."""


def list_settings(methods: Iterable[str], steps: int, own: Any = None) -> list[Setting]:
    """The settings of some methods for a number of steps, each once; `typical` has to be measured first.

    Args:
        methods: Their names.
        steps: The reference's number of steps.
        own: The reference's scheduler; only `solvers` needs it.

    Raises:
        UsageError: a method is unknown.
    """
    methods = list(methods)
    check_methods(methods)
    settings = [setting for method in methods if method in METHODS for setting in METHODS[method](steps)]
    settings += solver_settings(steps, own) if SOLVERS in methods else ()
    return list({setting.name: setting for setting in settings}.values())


def check_methods(methods: Iterable[str]) -> None:
    """Refuse unknown methods.

    Raises:
        UsageError: with the names that would do.
    """
    for method in methods:
        require_known("method", method, NAMES)


def guided_models() -> list[Setting]:
    """The guided settings that typical schedules are taken from."""
    return [guided("cached", tolerance) for tolerance in (0.03, 0.06, 0.1, 0.14)]


def typical(of: Setting, full_steps: str) -> Setting:
    """The fixed setting that is typical of a guided one, with the same full steps for every prompt."""
    return Setting(TYPICAL, f"as {of.label}", replace(of.config, tolerance=None, full_steps=full_steps))


def _fewer_steps(steps: int) -> Iterator[Setting]:
    """What costs nothing to implement: the same scheduler with fewer steps, partitioned."""
    for number in (33, 25, 20, 16, 12):
        fewer = scaled_steps(number, steps)
        if fewer < steps:
            yield Setting("fewer-steps", f"{fewer} steps", ParallelConfig("cfg"), fewer)


def _published(steps: int) -> Iterator[Setting]:
    """The paper's exchange, wherever its phase starts and however long it is."""
    starts = [(5, start) for start in range(5, 45, 5)]
    starts += [(length, start) for length in (10, 20, 30) for start in range(5, 45, 10)]
    for length, start in starts:
        k, tau1 = scaled_steps(length, steps), scaled_steps(start, steps)
        if start + length < REFERENCE_STEPS and tau1 + k < steps:
            # No slope can be taken before the cap, so that the cap decides.
            rule = PublishedSettings(slope_window=steps, slope_threshold=1e-9, parallel_steps=k, tau_cap=tau1)
            yield Setting("published", f"k {k}, tau1 {tau1}", ParallelConfig("published", published=rule))


def _guided(step_kind: str, *tolerances: float) -> Iterator[Setting]:
    """Guided switching at some tolerances, and at one of them on one device."""
    yield from (guided(step_kind, tolerance) for tolerance in tolerances)
    one = guided(step_kind, 0.1)
    yield replace(one, label=f"{one.label}, 1 device", config=replace(one.config, devices=1))


def _regular(method: str, step_kind: str, interval: int, steps: int) -> Setting:
    """Full steps at regular intervals over nearly the whole run."""
    tau1, tau2 = scaled_steps(5, steps), min(scaled_steps(47, steps), steps - 1)
    full = steps_as_text(regular_schedule(tau1, tau2, interval, steps))
    return Setting(method, f"1 of {interval} full", ParallelConfig("hybrid", step_kind=step_kind, full_steps=full))


METHODS: dict[str, Callable[[int], Iterable[Setting]]] = {
    # Every step is full: the image of one device.
    "exact": lambda steps: [Setting("exact", "cfg", ParallelConfig("cfg"))],
    "fewer-steps": _fewer_steps,
    "published": _published,
    "published-rule": lambda steps: [Setting("published-rule", "as shipped", ParallelConfig("published"))],
    "reuse": lambda steps: [*_guided("reuse", 0.03, 0.06, 0.1, 0.2), _regular("reuse", "reuse", 3, steps)],
    "cached": lambda steps: _guided("cached", 0.01, 0.02, 0.03, 0.045, 0.06, 0.08, 0.1, 0.14, 0.2, 0.3),
    "fixed": lambda steps: [_regular("fixed", "cached", interval, steps) for interval in (2, 3, 4, 5)],
    "quality": lambda steps: [
        Setting("quality", f"{quality:g}", ParallelConfig("hybrid", quality=quality))
        for quality in (0.0, 0.25, 0.5, 0.75, 0.95, 1.0)
    ],
    # Promises to models that nobody has calibrated.
    "fidelity": lambda steps: map(promised, (35.0, 45.0, 55.0, 65.0)),
}
NAMES = (*METHODS, TYPICAL, SOLVERS)
