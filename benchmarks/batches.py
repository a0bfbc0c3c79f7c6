"""What prompts lose that share a batch: `python -m benchmarks.batches`.

A step is full for a whole batch as soon as one image needs it. Generates the same prompts under a promise alone and in
batches, and tells how many full steps that took, in the manner of `docs/results/batches.json`.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

from hybridiff.evaluation.frontier.generation import Reference, generate, generate_references
from hybridiff.evaluation.frontier.solvers import promised
from hybridiff.evaluation.machine import versions
from hybridiff.evaluation.metrics import capped_psnr
from hybridiff.evaluation.simulation import SimulatedPipeline
from hybridiff.evaluation.workload import Workload, seeded, take_prompts
from hybridiff.utils.tables import align

FIDELITIES = (35.0, 45.0, 55.0)
SIZES = (1, 2, 4, 8)


def measure(workload: Workload, limit: int, sizes: Sequence[int] = SIZES) -> Iterator[dict[str, Any]]:
    """One row per promise and size of batch, and one per promise for batches of prompts that are alike.

    Prompts are alike that needed about as many full steps alone: what a queue could know that has seen them before.

    Args:
        workload: The model and how it is called.
        limit: Number of prompts.
        sizes: Prompts in a batch, 1 first.
    """
    prompts = seeded(take_prompts(workload.model, None, "evaluation", (limit,)))
    references = list(generate_references(workload.pipe, prompts, workload.call, 8))
    for fidelity in FIDELITIES:
        with SimulatedPipeline(workload.pipe, promised(fidelity).config) as pipe:
            for size in sizes:
                full, decibels = _generate(pipe, references, workload.call, size)
                yield _row(fidelity, size, full, decibels)
                if size == 1:
                    alone = full
            alike = [one for _, one in sorted(zip(alone, references, strict=True), key=lambda pair: pair[0])]
            yield _row(fidelity, sizes[-1], *_generate(pipe, alike, workload.call, sizes[-1]), are_alike=True)


def _generate(
    pipe: SimulatedPipeline, references: Sequence[Reference], call: dict[str, Any], size: int
) -> tuple[list[int], list[float]]:
    """Full steps of each image, and its PSNR in dB."""
    full, decibels = [], []
    for start in range(0, len(references), size):
        part = references[start : start + size]
        images = generate(pipe, [reference.prompt for reference in part], call)
        full += [pipe.summary.schedule.count("f")] * len(part)
        pairs = zip(images, part, strict=True)
        decibels += [capped_psnr(image, reference.pixels) for image, reference in pairs]
    return full, decibels


def _row(
    fidelity: float, size: int, full: Sequence[int], decibels: Sequence[float], are_alike: bool = False
) -> dict[str, Any]:
    found = {"full_steps": round(mean(full), 2), "psnr": round(mean(decibels), 2)}
    return {"promised": fidelity, "batch": size, "are_alike": are_alike, **found}


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the benchmark from the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.batches", description=(__doc__ or "").split(":")[0])
    parser.add_argument("--model", default="tiny-sd3", help="an embedded model (default tiny-sd3)")
    parser.add_argument("--limit", type=int, default=32, help="number of captions (default 32)")
    parser.add_argument("--num-inference-steps", type=int, default=50, help="(default 50)")
    parser.add_argument("--max-sequence-length", type=int, help="text tokens, SD3 only")
    parser.add_argument("--output", type=Path, default=Path("out/batches.json"), help="(default out/batches.json)")
    options = parser.parse_args(arguments)
    names = ("num_inference_steps", "max_sequence_length")
    call = {name: getattr(options, name) for name in names if getattr(options, name) is not None}
    rows = list(measure(Workload.load(options.model, call), options.limit))
    found = {"model": options.model, "limit": options.limit, "call": call, "versions": versions(), "rows": rows}
    known = json.loads(options.output.read_text()) if options.output.exists() else {}
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(known | {options.model: found}, indent=1) + "\n")
    head = ("promised", "batch", "full steps", "PSNR")
    cells = [
        (f"{row['promised']:g} dB", _batch(row), f"{row['full_steps']:.1f}", f"{row['psnr']:.1f} dB") for row in rows
    ]
    sys.stdout.write(align([head, *cells], words=2) + "\n")


def _batch(row: dict[str, Any]) -> str:
    return f"{row['batch']}, alike ones together" if row["are_alike"] else str(row["batch"])


if __name__ == "__main__":
    main()
