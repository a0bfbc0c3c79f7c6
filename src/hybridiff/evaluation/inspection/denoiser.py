"""What a model's denoiser looks like to this project: its layers, what they cost, and where it is split."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from ...denoiser.adapters import find_denoiser
from ...denoiser.attached import AttachedHook
from ...denoiser.call import DenoiserCall
from ...denoiser.evaluation import Evaluation
from ...denoiser.hooks import DenoiserHook
from ...denoiser.rows import branch_rows
from ...denoiser.split import Split, choose_balanced, choose_outer
from ...denoiser.stages import StagedDenoiser
from ...schedule.kinds import StepKind
from ...schedule.presets import ModelSettings
from ...utils.tables import align
from ..simulation import Splits

USERS = {StepKind.PIPELINED: "published", StepKind.REUSE: "hybrid with reuse steps"}
"""Which strategy splits the network, by the kind of steps that need it."""


@dataclass(frozen=True)
class Inspection:
    """How a denoiser can be split at one resolution.

    Attributes:
        network: The denoiser's class.
        sample: Shape and dtype of the sample of one branch.
        seconds: Time of one evaluation of one branch.
        layers: Paths of the pieces that no split divides.
        splits: Every legal split with its costs, by index.
        chosen: Index of the split for pipelined and for reuse steps: the calibration's, or else by counted work.
    """

    network: str
    sample: str
    seconds: float
    layers: list[str]
    splits: list[Split]
    chosen: dict[str, int]


def inspect_denoiser(pipe: Any, **call: Any) -> Inspection:
    """Measure a pipeline's denoiser in a few evaluations.

    Args:
        pipe: A loaded pipeline.
        call: Arguments of the pipeline that decide the shapes, such as height and width.

    Raises:
        UsageError: the network cannot be split.
    """
    adapter, network = find_denoiser(pipe)
    staged = StagedDenoiser(adapter, network)
    evaluation = first_evaluation(pipe, **call)
    rows = branch_rows(evaluation, evaluation.branches - 1)
    with torch.no_grad():
        splits = staged.measure(evaluation, rows)
    settings = ModelSettings.find(pipe, adapter)
    chosen = {
        StepKind.PIPELINED: splits.index(choose_balanced(splits)),
        StepKind.REUSE: splits.index(choose_outer(splits, settings.reuse_share)),
    }
    stored = {kind: settings.split_point(kind) for kind in chosen}
    sample = evaluation.sample[rows]
    return Inspection(
        network=type(network).__name__,
        sample=f"{' x '.join(map(str, sample.shape))} {str(sample.dtype).removeprefix('torch.')}",
        seconds=splits[0].seconds,
        layers=[layer.name for layer in staged.layers],
        splits=splits,
        chosen={kind.value: chosen[kind] if index is None else index for kind, index in stored.items()},
    )


def measure_splits(pipe: Any, call: dict[str, Any]) -> Splits:
    """Measure a pipeline's denoiser, and choose as the strategies do."""
    found = min((inspect_denoiser(pipe, **call) for _ in range(3)), key=lambda inspection: inspection.seconds)
    chosen = {kind: (index, found.splits[index]) for kind, index in found.chosen.items()}
    return {
        kind: {"index": index, "outer": round(split.outer, 4), "inner": round(split.inner, 4)}
        for kind, (index, split) in chosen.items()
    }


class _CaughtError(Exception):
    """Leaves a pipeline once its denoiser was called."""


def first_evaluation(pipe: Any, **call: Any) -> Evaluation:
    """The first denoiser call that a pipeline would make; nothing is denoised."""
    adapter, network = find_denoiser(pipe)
    caught: list[Evaluation] = []

    def catch(module: Any, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        call = DenoiserCall.bind(adapter, module, forward, args, kwargs)
        caught.append(Evaluation((call,), (0, 1) if getattr(pipe, "do_classifier_free_guidance", False) else (0,)))
        raise _CaughtError

    hook = DenoiserHook()
    hook.answer = catch
    attached = AttachedHook(network, hook, "hybridiff_inspection")
    try:
        with contextlib.suppress(_CaughtError):
            pipe(**{"prompt": "an image", "output_type": "latent", **call})
    finally:
        attached.remove()
    return caught[0]


def format_inspection(found: Inspection, every_split: bool = False) -> str:
    """The inspection as text.

    Args:
        found: What was measured.
        every_split: List all legal splits, not only those that strategies choose.
    """
    lines = [
        f"{found.network}, one branch {found.sample}: {found.seconds * 1e3:.1f} ms per evaluation, "
        f"{len(found.layers)} layers, {len(found.splits)} legal split points"
    ]
    for kind, user in USERS.items():
        index = found.chosen[kind.value]
        lines += ["", f"split point for {user}: {index}", *_stages(found.layers, found.splits[index])]
    return "\n".join([*lines, "", _table(found.splits)] if every_split else lines)


def _stages(layers: list[str], split: Split) -> list[str]:
    entry, exit_ = split.point.entry, split.point.exit
    last = f", {layers[exit_ + 1]} .. {layers[-1]}" if exit_ + 1 < len(layers) else ""
    outer = f"  outer stage, {split.outer:.1%} of the time, {split.outer_work:.1%} of the work"
    inner = f"  inner stage, {split.inner:.1%} of the time, {split.inner_work:.1%} of the work"
    down, up = _size(split.down_bytes), _size(split.up_bytes)
    return [
        f"{outer}: {layers[0]} .. {split.entry}{last}, and what lies around the layers",
        f"{inner}: {layers[entry + 1]} .. {split.exit}",
        f"  crosses per step: {down} down after {split.entry}, {up} up after {split.exit}",
    ]


def _table(splits: list[Split]) -> str:
    rows = [("last outer layer before", "last inner layer", "index", "outer time", "inner time", "down", "up")]
    for index, split in enumerate(splits):
        costs = f"{split.outer:.1%}", f"{split.inner:.1%}", _size(split.down_bytes), _size(split.up_bytes)
        rows.append((split.entry, split.exit, str(index), *costs))
    return align(rows, words=2)


def _size(count: int) -> str:
    for unit, size in (("MB", 1e6), ("kB", 1e3)):
        if count >= size:
            return f"{count / size:.2f} {unit}"
    return f"{count} B"
