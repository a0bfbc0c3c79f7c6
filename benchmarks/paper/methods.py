"""The methods of each table, each at the settings that are tried."""

from __future__ import annotations

from dataclasses import dataclass

from hybridiff.schedule.presets import scaled_steps

BOTH = ("tiny-sdxl", "tiny-sd3")
TABLES = (1, 2, 4)


@dataclass(frozen=True)
class Method:
    """Lines of a table.

    Attributes:
        key: By which the paper's numbers are found, see `reported.REPORTED`.
        title: What readers are told.
        devices: Number of ranks.
        settings: Texts that are tried, see `strategy_spec.parse_strategy`, less the number of ranks.
        images: Images at once.
        models: Those that it works with.
    """

    key: str
    title: str
    devices: int
    settings: tuple[str, ...]
    images: int = 1
    models: tuple[str, ...] = BOTH


PARTITIONING = Method("partitioning", "condition partitioning alone", 2, ("cfg",))
SHARED = "cfg:shards=2"
DISPLACED = "cfg:shards=2:displaced=true"
QUALITIES = ("hybrid:quality=high", "hybrid:quality=balanced")
PARALLEL_STEPS = (5, 10, 20, 30)
"""k, of the ablation."""


def methods_of(table: int, steps: int) -> tuple[Method, ...]:
    """The lines of a table of this project, by the paper's number; settings are given for 50 steps, and scale."""
    return {1: _two_devices, 2: _four_devices, 4: _ablation}[table](steps)


def _two_devices(steps: int) -> tuple[Method, ...]:
    thresholds, intervals = (0.03, 0.06, 0.1, 0.2), (2, 3, 4)
    first_block = tuple(f"cached_cfg:threshold={threshold}" for threshold in thresholds)
    taylorseer = tuple(f"cached_cfg:cache=taylorseer:interval={interval}" for interval in intervals)
    return (
        Method("original", "original", 1, ("serial",)),
        Method("distrifusion", "DistriFusion", 2, (DISPLACED,)),
        _asyncdiff(2, 1, steps),
        _parastep(2, steps),
        Method("sequence", "sequence parallel, exact", 2, (SHARED,)),
        Method("first-block", "first-block cache, partitioned", 2, first_block, models=("tiny-sd3",)),
        Method("taylorseer", "TaylorSeer, partitioned", 2, taylorseer),
        PARTITIONING,
        _published(5, steps),
        Method("hybrid", "ours", 2, QUALITIES),
    )


def _four_devices(steps: int) -> tuple[Method, ...]:
    shared = tuple(f"{quality}:shards=2" for quality in QUALITIES)
    return (
        Method("published-batch", "published, batch-level", 4, ("published:extension=batch",), images=2),
        Method("hybrid-batch", "ours", 4, QUALITIES, images=2),
        Method("published-layers", "published, layer-wise", 4, ("published:extension=layers",)),
        _asyncdiff(4, 1, steps),
        _asyncdiff(4, 2, steps),
        _parastep(4, steps),
        Method("distrifusion", "DistriFusion, branches x 2 parts", 4, (DISPLACED,)),
        Method("sequence", "branches x 2 parts, exact", 4, (SHARED,)),
        Method("hybrid", "ours, branches x 2 parts", 4, shared),
    )


def _ablation(steps: int) -> tuple[Method, ...]:
    tolerances = (0.01, 0.015, 0.02, 0.025, 0.03, 0.035, 0.045, 0.06)
    return (
        PARTITIONING,
        *(_published(count, steps) for count in PARALLEL_STEPS),
        Method("hybrid", "ours", 2, tuple(f"hybrid:tolerance={tolerance}" for tolerance in tolerances)),
    )


def _asyncdiff(devices: int, stride: int, steps: int) -> Method:
    settings = tuple(f"asyncdiff:stride={stride}:warm_up={scaled_steps(count, steps)}" for count in (1, 9))
    return Method("asyncdiff" if stride == 1 else "asyncdiff-2", f"AsyncDiff, stride {stride}", devices, settings)


def _parastep(devices: int, steps: int) -> Method:
    settings = tuple(f"parastep:warm_up={scaled_steps(count, steps)}" for count in (5, 13))
    return Method("parastep", "ParaStep", devices, settings)


def _published(count: int, steps: int) -> Method:
    """So many pipelined steps; for more than the preset's 5, tau1 is to leave room for them."""
    if count == PARALLEL_STEPS[0]:
        return Method("published", f"published, k = {count}", 2, ("published",))
    pipelined = scaled_steps(count, steps)
    setting = f"published:parallel_steps={pipelined}:tau_cap={steps - 1 - pipelined}"
    return Method(f"published-{count}", f"published, k = {count}", 2, (setting,))
