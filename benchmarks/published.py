"""The paper's table of two and four devices, in ideal times: `python -m benchmarks.published`.

Generates a few captions with both embedded models by the published method as two pairs of ranks, and as a network cut
into four stages, all ranks played in this process, and writes `published.md` and `published.json`.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import mean
from typing import Any

from hybridiff import ParallelConfig, PublishedSettings
from hybridiff.evaluation.frontier import Reference, generate, generate_references
from hybridiff.evaluation.metrics import HIGHEST_PSNR, psnr
from hybridiff.evaluation.simulation import SimulatedPipeline
from hybridiff.evaluation.workload import Workload, take_prompts, versions
from hybridiff.report.report import RunReport

CALLS: dict[str, dict[str, Any]] = {"tiny-sdxl": {}, "tiny-sd3": {"max_sequence_length": 16}}
PAPER = {
    "tiny-sdxl": ("SDXL", {("cfg", 2): (1.78, None), ("published", 2): (2.31, 26.640), ("batch", 4): (3.41, None)}),
    "tiny-sd3": ("SD3-medium", {("published", 2): (2.07, 27.875), ("batch", 4): (3.50, None)}),
}
"""Of Jung et al. 2026: the model, and per method and number of devices speed-up and PSNR against one device, in dB."""


@dataclass(frozen=True)
class Method:
    """A line of the table.

    Attributes:
        name: What it is called.
        devices: Number of ranks.
        images: Images at once.
        title: What readers are told.
    """

    name: str
    devices: int
    images: int
    title: str

    @property
    def config(self) -> ParallelConfig:
        """The config that it stands for."""
        if self.name == "cfg":
            return ParallelConfig(devices=self.devices)
        extension = None if self.name == "published" else self.name
        return ParallelConfig("published", devices=self.devices, published=PublishedSettings(extension=extension))


METHODS = (
    Method("cfg", 2, 1, "partitioning alone"),
    Method("published", 2, 1, "published"),
    Method("batch", 4, 2, "published, batch-level"),
    Method("layers", 4, 1, "published, layer-wise"),
)


@dataclass(frozen=True)
class Row:
    """What came of a method.

    Attributes:
        model: An embedded model.
        method: Its name.
        devices: Number of ranks.
        images: Images at once.
        ideal_speedup: Against one device, mean over the runs.
        one_device: The same schedule on one device, which has all stages to itself.
        outer: Time of the outer stage as a share of an evaluation; None where the network is not cut.
        inner: That of the slowest inner one, likewise.
        pipelined: Number of pipelined steps (k).
        tau1: Earliest and latest end of the warm-up.
        psnr: Mean over the images, in dB.
        worst: Of the worst image, in dB.
    """

    model: str
    method: str
    devices: int
    images: int
    ideal_speedup: float
    one_device: float
    outer: float | None
    inner: float | None
    pipelined: int
    tau1: tuple[int, int] | None
    psnr: float
    worst: float


def measure(model: str, limit: int, steps: int) -> Iterator[Row]:
    """One row per method.

    Args:
        model: An embedded model.
        limit: Number of captions, an even one.
        steps: Number of denoising steps.
    """
    workload = Workload.load(model, CALLS[model] | {"num_inference_steps": steps}, device="cpu")
    prompts = take_prompts(model, None, "evaluation", (limit,))
    references = list(generate_references(workload.pipe, prompts, workload.call))
    for method in METHODS:
        yield _row(workload, method, references)


def _row(workload: Workload, method: Method, references: Sequence[Reference]) -> Row:
    reports: list[RunReport] = []
    decibels: list[float] = []
    with SimulatedPipeline(workload.pipe, method.config) as pipe:
        for start in range(0, len(references), method.images):
            part = references[start : start + method.images]
            made = generate(pipe, [reference.prompt for reference in part], workload.call)
            reports.append(pipe.report)
            pairs = zip(made, part, strict=True)
            decibels += [min(HIGHEST_PSNR, psnr(255 * image, 255 * reference.pixels)) for image, reference in pairs]
    stages, ends = reports[0].stages, [report.tau1 for report in reports if report.tau1 is not None]
    return Row(
        model=workload.model,
        method=method.name,
        devices=method.devices,
        images=method.images,
        ideal_speedup=round(mean(report.ideal_speedup or 1.0 for report in reports), 3),
        one_device=round(mean(map(_on_one_device, reports)), 3),
        outer=round(stages["outer"], 3) if stages else None,
        inner=round(stages["inner"], 3) if stages else None,
        pipelined=reports[0].kinds.get("pipelined", 0),
        tau1=(min(ends), max(ends)) if ends else None,
        psnr=round(mean(decibels), 2),
        worst=round(min(decibels), 2),
    )


def _on_one_device(report: RunReport) -> float:
    """A full step costs an evaluation of both branches, a pipelined one all stages of one branch."""
    pipelined = report.kinds.get("pipelined", 0)
    return 2 * len(report.steps) / (2 * len(report.steps) - pipelined)


def format_table(rows: Sequence[Row]) -> list[str]:
    """The table in Markdown, the paper's own numbers beside ours."""
    titles = {(method.name, method.devices): method.title for method in METHODS}
    lines = [
        "| model | devices | images at once | method | ideal speed-up | the same on one device | stages "
        "| tau1 | PSNR mean / worst | the paper's model | its speed-up | its PSNR |",
        "|---|---:|---:|---|---:|---:|---|---|---|---|---:|---:|",
    ]
    for row in rows:
        name, known = PAPER[row.model]
        speed, decibels = known.get((row.method, row.devices), (None, None))
        cells = [
            row.model,
            str(row.devices),
            str(row.images),
            titles[row.method, row.devices],
            f"{row.ideal_speedup:.2f}x",
            f"{row.one_device:.2f}x",
            "" if row.outer is None or row.inner is None else f"{row.outer:.2f}, {row.inner:.2f}",
            "" if row.tau1 is None else "-".join(map(str, sorted(set(row.tau1)))),
            f"{row.psnr:.1f} / {row.worst:.1f} dB" if row.psnr < HIGHEST_PSNR else "identical",
            name,
            "" if speed is None else f"{speed:.2f}x",
            "" if decibels is None else f"{decibels:.1f} dB",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def _text(rows: Sequence[Row], limit: int, steps: int) -> str:
    head = f"""# The published method on two and four devices

{limit} captions, {steps} steps, k = {rows[-1].pipelined}, tau1 by the rule with each model's calibration; PSNR against
one device. *Ideal speed-up*: serial time of all images over the critical path of the schedule that ran, stage costs
measured alone, messages free. *The same on one device*: what the approximation alone saves, without a second device.
*Stages*: times of the outer and of the slowest inner one as shares of an evaluation.

    python -m benchmarks.published
"""
    return "\n".join([head, *format_table(rows), "", NOT_COMPARABLE])


NOT_COMPARABLE = """Two stages are split where a calibration found their times equal.
Four are chosen by counted work, and have nearly equal shares of it; but the deep layers of tiny-sdxl take longer on a
CPU than they count.

What cannot be compared:

- The paper measured latencies of its 1024 x 1024 models on RTX 3090s behind PCIe 3, messages and schedulers included;
  ours are ideal times of small models. PSNR of other models, prompts and sizes compares with its own column only.
- Its 2.31x on two devices lies above the limit of the method (2.11x with two equal stages), so its figures hold
  something that is unexplained. Our ideal on four devices at batch level is that of two, twice: images an hour.
- Which extension stands behind its row of four devices is taken from arithmetic: cut into four stages, one image has
  full steps no faster than on two devices, so 2.16x at most at k = 5. The row is therefore put beside batch level.
- Its code runs pipelined steps on results of other ages than ours (`docs/method.md`), and its first one gains nothing.
"""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the benchmark from the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.published", description=(__doc__ or "").split(":")[0])
    parser.add_argument("--limit", type=int, default=8, help="number of captions, an even one (default 8)")
    parser.add_argument("--num-inference-steps", type=int, default=50, help="(default 50)")
    parser.add_argument("--output", type=Path, default=Path("docs/results"), help="a folder (default docs/results)")
    options = parser.parse_args(arguments)
    if options.limit % 2:
        parser.error(f"--limit must be even, as two images share a batch on four devices; got {options.limit}")
    steps = options.num_inference_steps
    rows = [row for model in CALLS for row in measure(model, options.limit, steps)]
    options.output.mkdir(parents=True, exist_ok=True)
    found = {"limit": options.limit, "steps": steps, "versions": versions(), "rows": [asdict(row) for row in rows]}
    (options.output / "published.json").write_text(json.dumps(found, indent=1) + "\n")
    (options.output / "published.md").write_text(_text(rows, options.limit, steps))
    sys.stdout.write("\n".join(format_table(rows)) + "\n")


if __name__ == "__main__":
    main()
