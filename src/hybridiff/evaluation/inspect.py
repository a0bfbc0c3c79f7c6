"""What a model's denoiser looks like to this project: its units, what they cost, and where it is cut."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from ..denoiser.call import Evaluation, bind_arguments, find_denoiser
from ..denoiser.hooks import AttachedHook, DenoiserHook
from ..denoiser.split import StagePlan, choose_balanced, choose_share
from ..denoiser.stages import StagedDenoiser
from ..schedule.plan import find_calibration
from ..schedule.presets import reuse_share
from ..strategies.base import branch_rows


@dataclass(frozen=True)
class Inspection:
    """How a denoiser can be cut at one resolution.

    Attributes:
        network: The denoiser's class.
        sample_shape: Shape of the sample of one branch.
        dtype: The sample's dtype.
        seconds: Time of one evaluation of one branch.
        units: Paths of the pieces that no cut divides.
        plans: Every legal cut with its costs, by index.
        pipeline: Index of the cut that the pipeline of `hybrid` chooses.
        reuse: Index of the cut that `reuse` chooses.
    """

    network: str
    sample_shape: tuple[int, ...]
    dtype: str
    seconds: float
    units: list[str]
    plans: list[StagePlan]
    pipeline: int
    reuse: int


def inspect_denoiser(pipe: Any, **call: Any) -> Inspection:
    """Measure a pipeline's denoiser in a few evaluations.

    Args:
        pipe: A loaded pipeline.
        call: Arguments of the pipeline that decide the shapes, such as height and width.

    Raises:
        ValueError: the network cannot be cut.
    """
    family, network = find_denoiser(pipe)
    evaluation = first_evaluation(pipe, **call)
    rows = branch_rows(evaluation, evaluation.branches - 1)
    staged = StagedDenoiser(family, network)
    with torch.no_grad():
        plans = staged.measure(evaluation, rows)
    calibration = find_calibration(pipe, None)
    splits = {} if calibration is None else calibration.splits
    return Inspection(
        network=type(network).__name__,
        sample_shape=(rows.stop - rows.start, *evaluation.sample.shape[1:]),
        dtype=str(evaluation.sample.dtype).removeprefix("torch."),
        seconds=plans[0].seconds,
        units=[unit.name for unit in staged.units],
        plans=plans,
        pipeline=splits.get("pipelined", plans.index(choose_balanced(plans))),
        reuse=splits.get("reuse", plans.index(choose_share(plans, reuse_share(pipe)))),
    )


class _CaughtError(Exception):
    """Leaves a pipeline once its denoiser was called."""


def first_evaluation(pipe: Any, **call: Any) -> Evaluation:
    """The first denoiser call that a pipeline would make; nothing is denoised."""
    family, network = find_denoiser(pipe)
    caught: list[Evaluation] = []

    def catch(forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        branches = 2 if pipe.do_classifier_free_guidance else 1
        channels: int = network.config.out_channels  # type: ignore[assignment, union-attr]
        caught.append(Evaluation(family, forward, bind_arguments(forward, args, kwargs), branches, channels))
        raise _CaughtError

    hook = DenoiserHook()
    hook.answer = catch
    attached = AttachedHook(network, hook, "hybridiff_inspection")
    try:
        with contextlib.suppress(_CaughtError):
            pipe(**{"prompt": "a picture", "output_type": "latent", **call})
    finally:
        attached.remove()
    return caught[0]


def format_inspection(found: Inspection, every_cut: bool = False) -> str:
    """The inspection as text.

    Args:
        found: What was measured.
        every_cut: List all legal cuts, not only those that strategies choose.
    """
    shape = " x ".join(map(str, found.sample_shape))
    lines = [
        f"{found.network}, one branch {shape} {found.dtype}: {found.seconds * 1e3:.1f} ms an evaluation, "
        f"{len(found.units)} units, {len(found.plans)} legal cuts",
    ]
    chosen = {found.pipeline: "pipeline (hybrid)", found.reuse: "reuse"}
    if found.pipeline == found.reuse:
        chosen = {found.pipeline: "pipeline (hybrid) and reuse"}
    for index, purpose in chosen.items():
        lines += ["", f"cut for {purpose}: {index}", *_stages(found, index)]
    if every_cut:
        lines += ["", _table(found)]
    return "\n".join(lines)


def _stages(found: Inspection, index: int) -> list[str]:
    plan = found.plans[index]
    entry, exit_ = plan.cut.entry, plan.cut.exit
    units = found.units
    last = f", {units[exit_ + 1]} .. {units[-1]}" if exit_ + 1 < len(units) else ""
    return [
        f"  outer {plan.outer:6.1%}  {units[0]} .. {units[entry]}{last}, and the layers after them",
        f"  inner {plan.inner:6.1%}  {units[entry + 1]} .. {units[exit_]}",
        f"  crosses a step: {_size(plan.down_bytes)} down after {plan.entry}, {_size(plan.up_bytes)} up after "
        f"{plan.exit}",
    ]


def _table(found: Inspection) -> str:
    rows = [("cut", "outer", "inner", "down", "up", "last outer unit before", "last inner unit")]
    for index, plan in enumerate(found.plans):
        sizes = _size(plan.down_bytes), _size(plan.up_bytes)
        rows.append((str(index), f"{plan.outer:.1%}", f"{plan.inner:.1%}", *sizes, plan.entry, plan.exit))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)


def _size(count: int) -> str:
    for unit, size in (("MB", 1e6), ("kB", 1e3)):
        if count >= size:
            return f"{count / size:.2f} {unit}"
    return f"{count} B"
