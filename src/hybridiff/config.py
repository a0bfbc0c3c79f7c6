"""What the user asked for: frozen, validated once, plain data."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

from .errors import UsageError
from .utils.checked import check_fields, setting
from .utils.names import offered, require_known

STRATEGIES = ("serial", "cfg", "hybrid", "published")
"""Those that are built in."""
STRATEGY_GROUP = "hybridiff.strategies"
"""Entry points by which a package offers further ones, each with its class."""
STEP_KINDS = ("cached", "reuse")
"""What the steps of `hybrid` between full ones may be."""
EXTENSIONS = ("batch", "layers")
"""How `published` uses more than two ranks."""
OUTPUTS = ("leader", "all")
QUALITIES = {"draft": 0.25, "balanced": 0.5, "high": 0.75, "exact": 1.0}
"""Names of qualities between 0 and 1."""
_LEAST_FIDELITY, _FIDELITY_RANGE = 25.0, 40.0
"""In dB: quality 0 means the first, each quality below 1 a part of the second more."""
BRANCHES = 2
"""Guidance branches of a pipeline: unconditional and conditional."""
OF_HYBRID = ("fidelity", "quality", "tolerance", "step_kind", "full_steps")
"""Settings of the strategy `hybrid` alone."""
LONGEST_TIMEOUT = 7 * 24 * 3600.0
"""Seconds; longer deadlines are typing errors, and overflow the clocks of process groups."""
LEAST_STEPS = 3
"""A run has to have a full step or two before another kind; with fewer steps all are full."""
REFERENCE_STEPS = 50
"""Number of steps for which settings in steps are given."""


@dataclass(frozen=True)
class PublishedSettings:
    """Settings of the published switching rule (Jung et al. 2026); the paper's letters in brackets.

    None takes the model's own: of its calibration, or else the preset of its family, scaled to the number of steps.
    Values given by hand are taken as they are.
    """

    slope_window: int | None = setting(None, "steps over which the discrepancy's slope is taken (L)", least=1)
    slope_threshold: float | None = setting(None, "slopes in [0, slope_threshold) count as flat (g)", above=0)
    parallel_steps: int | None = setting(None, "number of pipelined steps (k)", least=1)
    tau_cap: int | None = setting(None, "the parallel phase starts after this step at the latest", least=1)
    extension: str | None = setting(
        None,
        "how more than two ranks are used, no part of the rule: batch (each pair has images of its own) or layers (the "
        "network is cut into as many stages as there are ranks); unless given, as many groups of ranks as the images "
        "can be dealt out to evenly, with a stage for each rank of a group",
    )

    def __post_init__(self) -> None:
        if self.extension is not None:
            require_known("extension", self.extension, EXTENSIONS)
        check_fields(self)

    @property
    def rule(self) -> tuple[int | None, float | None, int | None, int | None]:
        """The four settings of the rule; None where one is left to the model."""
        return self.slope_window, self.slope_threshold, self.parallel_steps, self.tau_cap

    @property
    def values(self) -> tuple[int, float, int, int]:
        """The same where none is left to the model."""
        assert None not in self.rule
        return self.rule  # type: ignore[return-value]

    def to_dict(self) -> dict[str, Any]:
        """The fields as plain data; no extension where there is none, as in files from before there were any."""
        return {name: value for name, value in asdict(self).items() if name != "extension" or value is not None}

    def or_else(self, preset: PublishedSettings) -> PublishedSettings:
        """The user's own values, and the preset's where there are none."""
        given = {name: value for name, value in asdict(self).items() if value is not None}
        return replace(preset, **given)

    def scaled(self, steps: int, given_for: int = REFERENCE_STEPS) -> PublishedSettings:
        """Complete settings given for one number of steps, for another one."""
        ratio = steps / given_for
        window, threshold, length, cap = self.values
        slope_window = max(1, round(window * ratio))
        # Few steps leave room for at least two full ones before the parallel phase.
        parallel_steps = max(1, min(steps - 2, round(length * ratio)))
        latest = max(1, steps - 1 - parallel_steps)
        return PublishedSettings(
            slope_window=slope_window,
            slope_threshold=threshold / ratio,
            parallel_steps=parallel_steps,
            tau_cap=min(latest, max(slope_window, round(cap * ratio))),
        )


@dataclass(frozen=True)
class ParallelConfig:
    """How the ranks work together on one generation; every field's help text stands in its metadata.

    Raises:
        UsageError: a value is unknown, of the wrong type or out of range.
    """

    strategy: str = setting(
        "cfg",
        "serial: the stock pipeline; cfg: each guidance branch on its own ranks, exact; hybrid: cfg at full steps, "
        "little or nothing between them; published: the method of the paper",
    )
    devices: int | None = setting(
        None, "number of ranks; those that were started unless given, else 2", least=1, most=4096
    )
    shards: int | None = setting(
        None,
        "ranks that evaluate one image of one guidance branch together, each a part of it; unless given, as many as "
        "are left once each image and branch has one, for images of at least 512 x 512 pixels",
        least=1,
        most=4096,
    )
    fidelity: float | None = setting(
        None,
        "promise of hybrid in decibels: the image's PSNR against that of one device, kept by measuring; needs no "
        "calibration",
        least=10,
        most=100,
    )
    quality: str | float | None = setting(
        None,
        "how near hybrid stays to the image of one device: draft (35 dB), balanced (45 dB, the default), high (55 dB), "
        "exact (the image of cfg bit for bit), or a number from 0 (25 dB) to 1 (exact)",
    )
    calibration: object = setting(
        None, "file of thresholds that hybridiff calibrate wrote for the model; the embedded models bring theirs"
    )
    step_kind: str | None = setting(
        None,
        "what the steps of hybrid between full ones are: cached (nothing runs) or reuse (each rank runs the outer "
        "stage); of the calibration unless given",
    )
    tolerance: float | None = setting(
        None, "drift that a step of hybrid may have since the last full one; of the quality unless given", least=0
    )
    full_steps: str | None = setting(None, "a fixed schedule for hybrid: its full steps, such as 0-4,8,11,14,17-19")
    displaced: bool = setting(
        False,
        "ranks that share an image go on with what the others said one step earlier, and wait for nobody within the "
        "network: approximate, for comparisons",
    )
    displaced_warm_up: int = setting(
        4, "displaced begins after this step, counted from 0; up to it all messages are of their own step", least=0
    )
    simulate: bool = setting(False, "play all ranks in one process: the same image, no speed-up")
    outputs: str = setting("leader", "leader decodes and returns images on rank 0 only, all on every rank")
    timeout: float = setting(300.0, "deadline in seconds of every wait for another rank", above=0, most=LONGEST_TIMEOUT)
    trace: bool = setting(
        False,
        "record what each rank does when, and measure what shared images cost; waits for the device at every turn",
    )
    published: PublishedSettings = field(
        default_factory=PublishedSettings, metadata={"help": "settings of the published rule"}
    )

    settings: dict[str, Any] = field(
        default_factory=dict,
        hash=False,
        metadata={"help": "settings of a strategy that another package offers, by name"},
    )

    def __post_init__(self) -> None:
        require_strategy(self.strategy)
        require_known("outputs", self.outputs, OUTPUTS)
        if self.step_kind is not None:
            require_known("step_kind", self.step_kind, STEP_KINDS)
        quality_value(self.quality)
        check_fields(self)
        if self.full_steps is not None:
            parse_steps(self.full_steps)
        _check_fidelity(self)
        _check_hybrid(self)
        _check_displaced(self)
        if self.settings and self.strategy in STRATEGIES:
            raise UsageError(f"strategy {self.strategy!r} has no settings of its own, got {', '.join(self.settings)}")

    def to_dict(self) -> dict[str, Any]:
        """The fields as plain data, ready for JSON; a calibration in memory stands as its text."""
        content = {entry.name: getattr(self, entry.name) for entry in fields(self)}
        calibration = None if self.calibration is None else str(self.calibration)
        further = {"published": self.published.to_dict(), "settings": dict(sorted(self.settings.items()))}
        return content | {"calibration": calibration} | further


def checked_config(config: Any) -> ParallelConfig:
    """A config as given, or the default where there is none; raises UsageError where it is something else."""
    if config is None or isinstance(config, ParallelConfig):
        return config or ParallelConfig()
    kind = type(config)
    given = f"{kind.__module__.partition('.')[0]}.{kind.__name__}".removeprefix("builtins.")  # diffusers has one, too
    raise UsageError(f"config must be a hybridiff.ParallelConfig, got {given}; try ParallelConfig(strategy='hybrid')")


def require_strategy(name: object) -> None:
    """Refuse what is no strategy, neither built in nor offered by an installed package; imports none.

    Raises:
        UsageError: with the names that would do.
    """
    if name not in STRATEGIES:
        require_known("strategy", name, (*STRATEGIES, *offered(STRATEGY_GROUP)))


def _check_hybrid(config: ParallelConfig) -> None:
    for name in OF_HYBRID:
        # A strategy of another package may have a use for any but the promise.
        is_others = config.strategy not in STRATEGIES and name != "fidelity"
        if getattr(config, name) is not None and config.strategy != "hybrid" and not is_others:
            raise UsageError(f"{name} is for strategy 'hybrid', got {config.strategy!r}")


def _check_fidelity(config: ParallelConfig) -> None:
    if config.fidelity is None:
        return
    for name in ("quality", "tolerance", "full_steps"):
        if getattr(config, name) is not None:
            raise UsageError(f"give either fidelity or {name}: both decide which steps are full")
    if config.step_kind not in (None, "cached"):
        raise UsageError(f"fidelity is promised for cached steps only, got step_kind {config.step_kind!r}")


def _check_displaced(config: ParallelConfig) -> None:
    if config.displaced and config.strategy != "cfg":
        raise UsageError(f"displaced messages are for strategy 'cfg', got {config.strategy!r}")
    if config.displaced and config.shards == 1:
        raise UsageError(
            "displaced messages are those of ranks that share an image, got shards=1; use shards=2 or more"
        )


def quality_value(quality: str | float | None) -> float:
    """A quality as a number from 0 to 1; balanced where there is none.

    Raises:
        UsageError: it is none.
    """
    if quality is None:
        return QUALITIES["balanced"]
    if isinstance(quality, str) and quality in QUALITIES:
        return QUALITIES[quality]
    try:
        value = math.nan if isinstance(quality, bool) else float(quality)
    except (ValueError, TypeError):
        value = math.nan
    if not 0 <= value <= 1:
        raise UsageError(f"quality must be {', '.join(QUALITIES)} or a number from 0 to 1, got {quality!r}")
    return value


def quality_fidelity(quality: float) -> float:
    """The fidelity in dB that a quality from 0 to 1 stands for; infinite at 1."""
    return math.inf if quality == 1.0 else _LEAST_FIDELITY + _FIDELITY_RANGE * quality


def parse_steps(text: str) -> list[int]:
    """The steps that a text such as `0-4,8,11` names, in order.

    Raises:
        UsageError: it names none that way.
    """
    steps: set[int] = set()
    for part in text.replace(" ", "").split(","):
        first, dash, last = part.partition("-")
        last = last if dash else first
        if not (first.isdecimal() and last.isdecimal() and int(first) <= int(last) < 10**5):
            raise UsageError(f"full_steps must look like 0-4,8,11, got {text!r}")
        steps.update(range(int(first), int(last) + 1))
    return sorted(steps)


def check_ranks(config: ParallelConfig, ranks: int) -> None:
    """Refuse a number of ranks that a strategy cannot use; needs no model, so that it comes first.

    Raises:
        UsageError: with the numbers and the remedy.
    """
    if config.strategy == "published" and ranks % BRANCHES:
        raise UsageError(
            f"strategy 'published' needs an even number of ranks, 2 at least, got {ranks}; use --devices "
            f"{max(BRANCHES, ranks - 1)}, or strategy 'hybrid'"
        )
    if config.shards is not None and ranks % config.shards:
        raise UsageError(f"{ranks} ranks cannot be grouped by shards of {config.shards}; use a divisor of {ranks}")
    if config.shards not in (None, 1) and config.strategy in ("serial", "published"):
        raise UsageError(
            f"strategy {config.strategy!r} cannot share an image between ranks; use shards=1, or 'cfg' or 'hybrid'"
        )
