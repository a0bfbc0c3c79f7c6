"""The settings that `hybridiff simulate` compares, by family. Numbers of steps are given for 50, and scale."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import Any

from ..config import ParallelConfig
from ..schedule.kinds import PUBLISHED_STEPS
from ..schedule.presets import scaled_steps
from .caches import Cache
from .frontier import Setting

TYPICAL = "typical"
"""The family of fixed schedules that are typical of guided ones: does it pay to adapt to what is drawn?"""


def list_settings(families: Iterable[str], steps: int) -> list[Setting]:
    """The settings of some families for a number of steps, each once; `typical` has to be measured first.

    Raises:
        ValueError: a family is unknown.
    """
    families = list(families)
    check_families(families)
    tables = [FAMILIES[family](steps) for family in families if family in FAMILIES]
    return list(dict.fromkeys(setting for table in tables for setting in table))


def check_families(families: Iterable[str]) -> None:
    """Refuse unknown families.

    Raises:
        ValueError: with the names that would do.
    """
    for family in families:
        if family not in NAMES:
            raise ValueError(f"unknown family {family!r}; choose some of {', '.join(NAMES)}")


def _exact(steps: int) -> Iterator[Setting]:
    """Every step is full: the picture of one device."""
    yield Setting("exact", "cfg", ParallelConfig(strategy="cfg", simulate=True))


def _fewer_steps(steps: int) -> Iterator[Setting]:
    """What costs nothing to implement: the same scheduler with fewer steps, partitioned."""
    for number in (33, 25, 20, 16, 12):
        fewer = scaled_steps(number, steps)
        if fewer < steps:
            yield Setting("fewer-steps", f"{fewer} steps", ParallelConfig(strategy="cfg", simulate=True), fewer)


def _published(steps: int) -> Iterator[Setting]:
    """The paper's exchange, wherever its stage starts and however long it is."""
    starts = [(5, start) for start in range(5, 45, 5)]
    starts += [(length, start) for length in (10, 20, 30) for start in range(5, 45, 10)]
    for length, start in starts:
        k, tau1 = scaled_steps(length, steps), scaled_steps(start, steps)
        if start + length < PUBLISHED_STEPS and tau1 + k < steps:
            pipelined = _fixed("pipelined", tau1=tau1, tau2=tau1 + k, full_interval=0, parallel_guidance="published")
            yield Setting("published", f"k {k}, tau1 {tau1}", pipelined)


def _published_rule(steps: int) -> Iterator[Setting]:
    yield Setting("published-rule", "as shipped", _hybrid(switching="published"))


def _carry(steps: int) -> Iterator[Setting]:
    k = scaled_steps(5, steps)
    for start in (10, 20, 30):
        tau1 = scaled_steps(start, steps)
        yield Setting(
            "carry",
            f"k {k}, tau1 {tau1}, no full steps between",
            _fixed("pipelined", tau1=tau1, tau2=min(tau1 + k, steps - 1), full_interval=0),
        )
    yield from _guided("carry", "pipelined", (0.03, 0.06, 0.1, 0.2))
    yield from _guided("carry", "pipelined", (0.1,), carry="hold")


def _reuse(steps: int) -> Iterator[Setting]:
    yield from _guided("reuse", "reuse", (0.03, 0.06, 0.1, 0.2))
    yield from _guided("reuse", "reuse", (0.1,), devices=1)
    yield from _regular("reuse", "reuse", (3,), steps)
    for forecast in ("hold", "quadratic"):
        yield from _regular("reuse", "reuse", (3,), steps, forecast=forecast)


def _mixed(steps: int) -> Iterator[Setting]:
    yield from _guided("mixed", "mixed", (0.06, 0.14))


def _skipped(steps: int) -> Iterator[Setting]:
    yield from _guided("skipped", "skipped", (0.03, 0.045, 0.06, 0.08, 0.1, 0.14, 0.2, 0.3))
    for catch_up in (0.0, 0.5, 1.0):
        yield from _guided("skipped", "skipped", (0.1,), catch_up=catch_up)
    yield from _guided("skipped", "skipped", (0.1,), devices=1)


def _fixed_skipped(steps: int) -> Iterator[Setting]:
    yield from _regular("fixed", "skipped", (2, 3, 4, 5), steps)


def _quality(steps: int) -> Iterator[Setting]:
    for quality in (0.0, 0.25, 0.5, 0.75, 0.95, 1.0):
        yield Setting("quality", f"{quality:g}", _hybrid(quality=quality))


def _cache(steps: int) -> Iterator[Setting]:
    """What diffusers brings, under partitioning."""
    config = ParallelConfig(strategy="cfg", simulate=True)
    for method, unit, amounts in (
        ("first-block", "threshold", (0.03, 0.06, 0.1, 0.2, 0.3, 0.5)),
        ("mag", "threshold", (0.005, 0.01, 0.02, 0.04, 0.08)),
        ("taylorseer", "1 of", (2, 3, 4, 5)),
        ("pyramid", "1 of", (2, 3)),
    ):
        for amount in amounts:
            yield Setting("cache", f"{method}, {unit} {amount:g}", config, cache=Cache(method, amount))
    yield Setting("cache", "taylorseer, 1 of 3, order 2", config, cache=Cache("taylorseer", 3, order=2))


def guided_models() -> list[Setting]:
    """The guided settings that typical schedules are taken from."""
    return list(_guided("skipped", "skipped", (0.03, 0.06, 0.1, 0.14)))


def typical(guided: Setting, full_steps: str) -> Setting:
    """The fixed setting that is typical of a guided one, with the same full steps for every prompt."""
    config = replace(guided.config, tolerance=None, switching="fixed", full_steps=full_steps)
    return Setting(TYPICAL, f"as {guided.label}", config)


FAMILIES: dict[str, Callable[[int], Iterator[Setting]]] = {
    "exact": _exact,
    "fewer-steps": _fewer_steps,
    "published": _published,
    "published-rule": _published_rule,
    "carry": _carry,
    "reuse": _reuse,
    "mixed": _mixed,
    "skipped": _skipped,
    "fixed": _fixed_skipped,
    "quality": _quality,
    "cache": _cache,
}
NAMES = (*FAMILIES, TYPICAL)


def _guided(family: str, between: str, tolerances: Iterable[float], **changes: Any) -> Iterator[Setting]:
    for tolerance in tolerances:
        label = ", ".join([f"tolerance {tolerance:g}", *_words(changes)])
        yield Setting(family, label, _hybrid(between=between, tolerance=tolerance, **changes))


def _regular(family: str, between: str, intervals: Iterable[int], steps: int, **changes: Any) -> Iterator[Setting]:
    """Full steps at regular intervals over nearly the whole run."""
    tau1, tau2 = scaled_steps(5, steps), min(scaled_steps(47, steps), steps - 1)
    for interval in intervals:
        label = ", ".join([f"1 of {interval} full", *_words(changes)])
        yield Setting(family, label, _fixed(between, tau1=tau1, tau2=tau2, full_interval=interval, **changes))


def _fixed(between: str, **settings: Any) -> ParallelConfig:
    return _hybrid(switching="fixed", between=between, **settings)


def _hybrid(**settings: Any) -> ParallelConfig:
    return ParallelConfig(strategy="hybrid", simulate=True, **settings)


def _words(changes: dict[str, Any]) -> list[str]:
    """What sets a setting apart, for its label: `carry hold`, `1 device`."""
    return [
        f"{value} device{'s' * (value != 1)}" if name == "devices" else f"{name.replace('_', ' ')} {_short(value)}"
        for name, value in changes.items()
    ]


def _short(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
