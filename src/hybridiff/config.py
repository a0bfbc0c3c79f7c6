"""What the user asked for: frozen, validated once, plain data."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

STRATEGIES = ("serial", "cfg", "reuse", "hybrid")
SWITCHING = ("published", "fixed")
PARALLEL_GUIDANCE = ("published", "carry")
FORECASTS = ("hold", "linear", "quadratic")
OUTPUTS = ("leader", "all")
BRANCHES = 2
"""Guidance branches of a pipeline: unconditional and conditional."""


@dataclass(frozen=True)
class ParallelConfig:
    """How the ranks work together on one generation.

    Args:
        strategy: `serial` (the stock pipeline) or `cfg` (condition-based partitioning: each guidance branch on its
            own ranks; exact), `reuse` (partitioned; between full steps only the outer stage runs, on a forecast of
            the inner one) or `hybrid` (partitioned, and pipelined over two stages while the branches agree).
        devices: Number of ranks the call is meant for. None takes the ranks that were started; under `simulate` it
            is the number of ranks to play, 2 unless given.
        simulate: Play all ranks in this one process, one after the other: the same arithmetic, no speed-up.
        outputs: `leader` decodes and returns pictures on rank 0 only (others return None as images); `all` does so
            on every rank.
        timeout: Deadline in seconds of every wait for another rank.
        trace: Record what each rank does when; waits for the device at every turn, so leave it off to measure.
        switching: How `hybrid` decides when to pipeline: `published`, the paper's rule, or `fixed` by tau1 and tau2.
        parallel_guidance: What pipelined steps do for guidance: `published` lets one prediction serve both branches,
            `carry` takes the difference of the branches over from the last full steps.
        slope_window: Steps over which the discrepancy's slope is taken (L); the model's preset unless given.
        slope_threshold: Slopes in [0, slope_threshold) are flat (g); likewise.
        parallel_steps: Number of pipelined steps (k); likewise.
        tau_cap: The parallel stage starts after this step at the latest; likewise.
        tau1: Last step before the parallel stage, for `reuse` and for fixed switching.
        tau2: Last step of the parallel stage, likewise.
        full_interval: Distance of full steps within the parallel stage, likewise; 0 for none.
        carry: How the guidance difference is carried over: `hold`, `linear` or `quadratic`.
        forecast: How the inner stage's result is carried over to the next steps: `hold`, `linear` or `quadratic`.
        outer_share: Cost of the outer stage that `reuse` aims at, as a share of a whole evaluation.
        cut: Index of the cut, as `hybridiff inspect` lists them; chosen by measured costs unless given.

    Raises:
        ValueError: a value is unknown or out of range.
    """

    strategy: str = "cfg"
    devices: int | None = None
    simulate: bool = False
    outputs: Literal["leader", "all"] = "leader"
    timeout: float = 300.0
    trace: bool = False
    switching: str = "published"
    parallel_guidance: str = "published"
    slope_window: int | None = None
    slope_threshold: float | None = None
    parallel_steps: int | None = None
    tau_cap: int | None = None
    tau1: int | None = None
    tau2: int | None = None
    full_interval: int | None = None
    carry: str = "linear"
    forecast: str = "linear"
    outer_share: float | None = None
    cut: int | None = None

    def __post_init__(self) -> None:
        _check_choice("strategy", self.strategy, STRATEGIES)
        _check_choice("outputs", self.outputs, OUTPUTS)
        _check_choice("switching", self.switching, SWITCHING)
        _check_choice("parallel_guidance", self.parallel_guidance, PARALLEL_GUIDANCE)
        _check_choice("carry", self.carry, FORECASTS)
        _check_choice("forecast", self.forecast, FORECASTS)
        if self.outer_share is not None and not 0 < self.outer_share < 1:
            raise ValueError(f"outer_share must lie between 0 and 1, got {self.outer_share}")
        if self.devices is not None and self.devices < 1:
            raise ValueError(f"devices must be at least 1, got {self.devices}")
        if not 0 < self.timeout < float("inf"):
            raise ValueError(f"timeout must be a positive number of seconds, got {self.timeout}")

    def to_dict(self) -> dict[str, Any]:
        """The fields as plain data, ready for JSON."""
        return asdict(self)


def _check_choice(field: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"unknown {field} {value!r}; choose one of {', '.join(choices)}")


def check_ranks(strategy: str, ranks: int) -> None:
    """Refuse a number of ranks that a strategy cannot use; needs nothing but the two, so that it comes first.

    Raises:
        ValueError: with the numbers and the remedy.
    """
    if strategy == "serial" or (strategy == "reuse" and ranks == 1):
        return
    if strategy == "hybrid" and ranks != 2:
        raise ValueError(f"strategy 'hybrid' runs on 2 ranks, got {ranks}; use --devices 2, or strategy 'cfg'")
    if ranks % BRANCHES:
        more = ranks + 1
        raise ValueError(
            f"strategy {strategy!r} needs a multiple of {BRANCHES} ranks, one half for each guidance branch; got "
            f"{ranks}; use {more} (--devices {more}, torchrun --nproc-per-node {more}) or strategy 'serial'"
        )
