"""What ranks would share of a pipeline's steps: found by a short simulated run, before anything is rented."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import PIL.Image

from ...agreement import is_known
from ...config import ParallelConfig
from ...denoiser.adapters import find_denoiser
from ...denoiser.layout import GuidanceLayout
from ...errors import UsageError
from ...pipeline import parallelize
from ...report.report import RunReport
from ...utils.text import one_line

RANKS, STEPS, PIXELS, FRAMES = 2, 4, 256, 9


@dataclass(frozen=True)
class Sharing:
    """What a simulated run of `cfg` on two ranks did.

    Attributes:
        pipeline: The pipeline's class.
        network: The denoiser's class.
        report: What each rank did, what crossed, and notes.
        unsplit: Why the network cannot be split; empty where it can.
    """

    pipeline: str
    network: str
    report: RunReport
    unsplit: str


def inspect_sharing(pipe: Any, **call: Any) -> Sharing:
    """Run a few steps of a pipeline as two ranks would.

    Args:
        pipe: A loaded pipeline.
        call: Its arguments; what is missing is plain: a short prompt, gray images.

    Raises:
        UsageError: the pipeline needs more arguments, or fails.
    """
    adapter, network = find_denoiser(pipe)
    unsplit = ""
    try:
        adapter.layers(network)
    except UsageError as error:
        unsplit = str(error)
    if not unsplit and not is_known(pipe, adapter):
        unsplit = f"how {type(pipe).__name__} does guidance is found out at its first step, so it is not split"
    parallel = parallelize(pipe, ParallelConfig(strategy="cfg", devices=RANKS, simulate=True))
    try:
        parallel(**plain_call(pipe, call))
    except Exception as error:  # of the pipeline, which may want what is not known here
        what = f"{type(pipe).__name__} cannot be run with a short prompt and gray images"
        raise UsageError(f"{what}: {one_line(error, 200)}; what else it needs goes by --arg NAME=VALUE") from error
    finally:
        parallel.detach()
    assert parallel.report is not None
    return Sharing(type(pipe).__name__, type(network).__name__, parallel.report, unsplit)


def plain_call(pipe: Any, call: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of a short call of any pipeline; the user's own come first."""
    size = int(call.get("width") or PIXELS), int(call.get("height") or PIXELS)
    gray = PIL.Image.new("RGB", size, "gray")
    plain = {
        "prompt": "an image",
        "negative_prompt": "",
        "image": gray,
        "control_image": gray,
        "mask_image": PIL.Image.new("L", size, "white"),
        "video": [gray] * FRAMES,
        "num_inference_steps": STEPS,
        "output_type": "latent",
    }
    known = inspect.signature(pipe.__call__).parameters
    embedded = {"prompt", "negative_prompt"} if "prompt_embeds" in call else set()
    return {name: value for name, value in plain.items() if name in known and name not in embedded} | dict(call)


def format_sharing(found: Sharing) -> str:
    """What was found, as lines of text."""
    report = found.report
    lines = [f"{found.pipeline}: {found.network}", f"guidance: {_guidance(report)}"]
    lines += [
        f"layers: {found.unsplit or 'known; the network can be split'}",
        f"cfg on {RANKS} ranks: {_shared(report)}",
    ]
    if report.layout is not None:
        lines.append("hybrid: full steps like these; cached ones between them take no evaluation and no message")
    extra = max((step.extra_evaluations for step in report.steps), default=0)
    if extra:
        lines.append(f"beside guidance: {extra} more evaluations of one branch in a step")
    return "\n".join([*lines, *(f"note: {note}" for note in report.notes)])


def _guidance(report: RunReport) -> str:
    layout = report.layout
    if layout is None:
        return "calls that cannot be shared; see the note"
    if report.branches == 1:
        return "one branch: distilled into the network, or off (--guidance-scale, --arg true_cfg_scale=4)"
    how = "one call of all branches" if layout.calls == 1 else f"{layout.calls} calls, one a branch, replayed"
    return f"{how}: {', then '.join(_branch(layout, branch) for branch in layout.order)}"


def _branch(layout: GuidanceLayout, branch: int) -> str:
    last = layout.branches - 1
    name = "unconditional" if branch == 0 else "conditional" if branch == last else "a branch between"
    return name if layout.coefficients is None else f"{name} (times {layout.coefficients[branch]:.3g})"


def _shared(report: RunReport) -> str:
    part, last = report.partition, report.steps[-1] if report.steps else None
    if part is None or last is None or part.is_whole:
        return "nothing is shared, every rank evaluates everything; cached steps still save whole evaluations"
    saved = f"{part.evaluations:g} of {report.branches} evaluations of a branch on the busiest rank"
    return f"{saved}, {report.branches - part.evaluations:g} saved a step; {last.bytes:,} bytes a step cross"
