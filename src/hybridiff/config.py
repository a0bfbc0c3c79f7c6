"""What the user asked for: frozen, validated once, plain data."""

from __future__ import annotations

import typing
from dataclasses import asdict, dataclass
from functools import cache
from types import NoneType
from typing import Any, Literal

STRATEGIES = ("serial", "cfg", "reuse", "hybrid")
SWITCHING = ("guided", "published", "fixed")
BETWEEN = ("skipped", "reuse", "pipelined", "mixed")
PARALLEL_GUIDANCE = ("published", "carry")
FORECASTS = ("hold", "linear", "quadratic")
OUTPUTS = ("leader", "all")
QUALITIES = {"draft": 0.25, "balanced": 0.5, "high": 0.75, "exact": 1.0}
"""Names of qualities between 0 and 1."""
BRANCHES = 2
"""Guidance branches of a pipeline: unconditional and conditional."""

_WORDS: dict[type, str] = {bool: "true or false", int: "a whole number", float: "a number", str: "text"}
"""What users call a type."""


@dataclass(frozen=True)
class ParallelConfig:
    """How the ranks work together on one generation.

    Args:
        strategy: `serial` (the stock pipeline), `cfg` (condition-based partitioning: each guidance branch on its own
            ranks; exact), `hybrid` (partitioned, and fewer evaluations while the branches agree) or `reuse` (`hybrid`
            by a fixed schedule; between full steps only the outer stage runs, on a forecast of the inner one).
        devices: Number of ranks the call is meant for. None takes the ranks that were started; under `simulate` it
            is the number of ranks to play, 2 unless given.
        simulate: Play all ranks in this one process, one after the other: the same arithmetic, no speed-up.
        outputs: `leader` decodes and returns pictures on rank 0 only (others return None as images); `all` does so
            on every rank.
        timeout: Deadline in seconds of every wait for another rank.
        trace: Record what each rank does when; waits for the device at every turn, so leave it off to measure.
        quality: How near `hybrid` stays to the picture of one device, from 0 to 1: `draft` (0.25), `balanced` (0.5),
            `high` (0.75), `exact` (1, the picture of `cfg` bit for bit), or a number.
        calibration: File of thresholds that `hybridiff calibrate` wrote for the model; the embedded models bring
            theirs.
        switching: How `hybrid` decides which steps are full: `guided` by what full steps show, `published` by the
            paper's rule, or `fixed`, which full_steps, tau1, tau2 and full_interval imply.
        between: What the steps between full ones are: `skipped` (nothing runs, both predictions are forecast), `reuse`
            (each rank runs the outer stage on its own branch), `pipelined` (each rank runs one stage of one branch), or
            `mixed` (pipelined and reuse in turn).
        parallel_guidance: What pipelined steps do for guidance: `carry` takes the difference of the branches over from
            the last full steps, `published` lets one prediction serve both branches.
        tolerance: Guided: drift that a step may have since the last full one; of the quality unless given.
        settled: Guided: the parallel stage opens once the discrepancy changes by no more than this share in a step.
        longest_interval: Guided: full steps are at most this far apart.
        patience: Guided: the parallel stage closes after this many full steps in a row that leave no room between.
        full_steps: Fixed: the full steps, such as `0-4,8,11,14,17-19`; instead of tau1, tau2 and full_interval.
        slope_window: Steps over which the discrepancy's slope is taken (L); the model's preset unless given.
        slope_threshold: Slopes in [0, slope_threshold) are flat (g); likewise.
        parallel_steps: Number of pipelined steps (k); likewise.
        tau_cap: The parallel stage starts after this step at the latest; likewise.
        tau1: Fixed: last step before the parallel stage.
        tau2: Fixed: last step of the parallel stage.
        full_interval: Fixed: distance of full steps within the parallel stage; 0 for none.
        carry: How the guidance difference is carried over: `hold`, `linear` or `quadratic`.
        forecast: How the inner stage's result, or a skipped prediction, is carried over to the next steps: `hold`
            (for skipped steps), `linear` (for all others) or `quadratic`.
        catch_up: Share of what skipped steps got wrong, seen in hindsight, that the next full step makes up for.
        outer_share: Cost of the outer stage that reuse steps aim at, as a share of a whole evaluation.
        cut: Index of the cut, as `hybridiff inspect` lists them; chosen by measured costs unless given.

    Raises:
        ValueError: a value is unknown, of the wrong type or out of range.
    """

    strategy: str = "cfg"
    devices: int | None = None
    simulate: bool = False
    outputs: Literal["leader", "all"] = "leader"
    timeout: float = 300.0
    trace: bool = False
    quality: str | float = "balanced"
    calibration: str | None = None
    switching: str | None = None
    between: str | None = None
    parallel_guidance: str | None = None
    tolerance: float | None = None
    settled: float | None = None
    longest_interval: int | None = None
    patience: int | None = None
    full_steps: str | None = None
    slope_window: int | None = None
    slope_threshold: float | None = None
    parallel_steps: int | None = None
    tau_cap: int | None = None
    tau1: int | None = None
    tau2: int | None = None
    full_interval: int | None = None
    carry: str = "linear"
    forecast: str | None = None
    catch_up: float | None = None
    outer_share: float | None = None
    cut: int | None = None

    def __post_init__(self) -> None:
        _check_choice("strategy", self.strategy, STRATEGIES)
        _check_choice("outputs", self.outputs, OUTPUTS)
        _check_choice("switching", self.switching, (None, *SWITCHING))
        _check_choice("between", self.between, (None, *BETWEEN))
        _check_choice("parallel_guidance", self.parallel_guidance, (None, *PARALLEL_GUIDANCE))
        _check_choice("carry", self.carry, FORECASTS)
        _check_choice("forecast", self.forecast, (None, *FORECASTS))
        _quality(self.quality)
        for name, kinds in _field_types().items():
            _check_type(name, getattr(self, name), kinds)
        if self.full_steps is not None:
            parse_steps(self.full_steps)
        for name in ("tolerance", "settled", "catch_up"):
            value = getattr(self, name)
            if value is not None and not 0 <= value < float("inf"):
                raise ValueError(f"{name} must be a number of at least 0, got {value}")
        for name, least in (("longest_interval", 1), ("patience", 1)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise ValueError(f"{name} must be at least {least}, got {value}")
        if self.outer_share is not None and not 0 < self.outer_share < 1:
            raise ValueError(f"outer_share must lie between 0 and 1, got {self.outer_share}")
        if self.devices is not None and self.devices < 1:
            raise ValueError(f"devices must be at least 1, got {self.devices}")
        if not 0 < self.timeout < float("inf"):
            raise ValueError(f"timeout must be a positive number of seconds, got {self.timeout}")

    @property
    def quality_value(self) -> float:
        """The quality as a number from 0 to 1."""
        return _quality(self.quality)

    @property
    def kind_between(self) -> str | None:
        """What the steps between full ones are, as the user or the strategy says; None leaves it to the calibration."""
        if self.between is not None:
            return self.between
        if self.strategy == "reuse":
            return "reuse"
        return "pipelined" if self.rule == "published" else None

    @property
    def rule(self) -> str:
        """The switching rule in force: `guided`, `published` or `fixed`."""
        names_steps = (self.full_steps, self.tau1, self.tau2, self.full_interval) != (None,) * 4
        return self.switching or ("fixed" if self.strategy == "reuse" or names_steps else "guided")

    def to_dict(self) -> dict[str, Any]:
        """The fields as plain data, ready for JSON."""
        return asdict(self)


def parse_steps(text: str) -> list[int]:
    """The steps that a text such as `0-4,8,11` names, in order.

    Raises:
        ValueError: it names none that way.
    """
    steps: set[int] = set()
    for part in text.replace(" ", "").split(","):
        first, dash, last = part.partition("-")
        last = last if dash else first
        if not (first.isdecimal() and last.isdecimal() and int(first) <= int(last)):
            raise ValueError(f"full_steps must look like 0-4,8,11, got {text!r}")
        steps.update(range(int(first), int(last) + 1))
    return sorted(steps)


def _quality(quality: str | float) -> float:
    if isinstance(quality, str) and quality in QUALITIES:
        return QUALITIES[quality]
    try:
        value = float(quality)
    except (ValueError, TypeError):
        value = float("nan")
    if not 0 <= value <= 1:
        raise ValueError(f"quality must be {', '.join(QUALITIES)} or a number from 0 to 1, got {quality!r}")
    return value


def _check_choice(field: str, value: str | None, choices: tuple[str | None, ...]) -> None:
    if value not in choices:
        names = ", ".join(choice for choice in choices if choice is not None)
        raise ValueError(f"unknown {field} {value!r}; choose one of {names}")


@cache
def _field_types() -> dict[str, tuple[type, ...]]:
    """The types that each field of ParallelConfig takes; without Literal, whose values `_check_choice` looks at."""
    hints = typing.get_type_hints(ParallelConfig)
    return {
        name: typing.get_args(hint) or (hint,) for name, hint in hints.items() if typing.get_origin(hint) is not Literal
    }


def _check_type(field: str, value: Any, kinds: tuple[type, ...]) -> None:
    # In Python True is an int and 1 no float; to users it is the other way round.
    accepted = (*kinds, int) if float in kinds else kinds
    if isinstance(value, accepted) and (bool in kinds or not isinstance(value, bool)):
        return
    words = " or ".join(_WORDS[kind] for kind in kinds if kind is not NoneType)
    raise ValueError(f"{field} must be {words}, got {value!r}")


def check_ranks(config: ParallelConfig, ranks: int) -> None:
    """Refuse a number of ranks that a strategy cannot use; needs no model, so that it comes first.

    Raises:
        ValueError: with the numbers and the remedy.
    """
    strategy = config.strategy
    if strategy in ("hybrid", "reuse") and config.kind_between in ("pipelined", "mixed"):
        check_pipelined(ranks)
    if strategy == "serial" or (strategy != "cfg" and ranks == 1):
        return
    if ranks % BRANCHES:
        more = ranks + 1
        raise ValueError(
            f"strategy {strategy!r} needs a multiple of {BRANCHES} ranks, one half for each guidance branch; got "
            f"{ranks}; use {more} (--devices {more}, torchrun --nproc-per-node {more}) or strategy 'serial'"
        )


def check_pipelined(ranks: int) -> None:
    """Refuse pipelined steps on other numbers of ranks than two.

    Raises:
        ValueError: with the numbers and the remedy.
    """
    if ranks != BRANCHES:
        raise ValueError(
            f"pipelined steps need {BRANCHES} ranks, got {ranks}; use --devices {BRANCHES}, or --between skipped"
        )
