"""What a step costs beside the network: `python -m benchmarks.overhead`, or under torchrun with two ranks.

The denoiser is replaced by one that costs nothing, so that what is left is the pipeline's own work and this project's.
The stock pipeline in the same loop is subtracted. Calls of two lengths tell what a step takes from what a call does.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any

import torch

from hybridiff import ParallelConfig, parallelize
from hybridiff.denoiser.adapters import find_denoiser
from hybridiff.distributed.placement import Placement
from hybridiff.evaluation.machine import versions
from hybridiff.evaluation.workload import Workload
from hybridiff.utils.clock import timed
from hybridiff.utils.tables import align

STEPS = (20, 100)
WAYS: dict[str, dict[str, Any]] = {
    "serial": {"strategy": "serial"},
    "cfg": {"strategy": "cfg"},
    "hybrid, full steps": {"strategy": "hybrid", "tolerance": 0.0},
    "hybrid, cached steps": {"strategy": "hybrid", "full_steps": "0-1"},
    "hybrid, promise of 50 dB": {"strategy": "hybrid", "fidelity": 50.0},
}


def measure(workload: Workload, repeats: int) -> Iterator[dict[str, Any]]:
    """One row per way: milliseconds a step and a call over the stock pipeline, medians."""
    pipe = workload.pipe
    with _costing_nothing(pipe):
        stock = _calls(pipe, workload.call, repeats)
        for name, config in WAYS.items():
            parallel = parallelize(pipe, ParallelConfig(**config))
            over = [mine - base for mine, base in zip(_calls(parallel, workload.call, repeats), stock, strict=True)]
            kinds = parallel.report.kinds if parallel.report else {}
            parallel.detach()
            step = (over[1] - over[0]) / (STEPS[1] - STEPS[0])
            yield {"way": name, "kinds": kinds, "step_ms": 1e3 * step, "call_ms": 1e3 * (over[0] - STEPS[0] * step)}


@contextlib.contextmanager
def _costing_nothing(pipe: Any) -> Iterator[None]:
    """While this lasts, the denoiser predicts a tenth of the sample."""
    _, network = find_denoiser(pipe)
    forward = network.forward

    @functools.wraps(forward)
    def tenth(*args: Any, **kwargs: Any) -> tuple[torch.Tensor]:
        return ((args[0] if args else next(kwargs[name] for name in SAMPLES if name in kwargs)) * 0.1,)

    network.forward = tenth
    try:
        yield
    finally:
        del network.forward


SAMPLES = ("sample", "hidden_states")
"""What denoisers call their input."""


def _calls(pipe: Any, call: dict[str, Any], repeats: int) -> list[float]:
    """Seconds of calls with as many steps as `STEPS` says: medians of some repeats after one that warms up."""
    medians = []
    for steps in STEPS:
        times = []
        for _ in range(repeats + 1):
            arguments = call | {"num_inference_steps": steps, "generator": torch.Generator().manual_seed(0)}
            call_once = functools.partial(pipe, "a red ring", output_type="latent", **arguments)
            times.append(timed(call_once, torch.device("cpu")))
        medians.append(median(times[1:]))
    return medians


def main(arguments: list[str] | None = None) -> None:
    """Run the benchmark from the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.overhead", description=(__doc__ or "").split(":")[0])
    parser.add_argument("--models", nargs="+", default=["tiny-sdxl", "tiny-sd3"])
    parser.add_argument("--repeats", type=int, default=9, help="(default 9)")
    parser.add_argument("--output", type=Path, default=Path("out/overhead.json"), help="(default out/overhead.json)")
    options = parser.parse_args(arguments)
    place = Placement.resolve(None if "WORLD_SIZE" in os.environ else 1, device="cpu")
    place.take_core()
    if place.world > 1:
        place.join(60.0)
    found: dict[str, Any] = {"versions": versions(), "ranks": place.world}
    lines = [("model", "way", "a step", "a call")]
    for model in options.models:
        workload = Workload.load(model, {}, device="cpu")
        found[model] = list(measure(workload, options.repeats))
        lines += [(model, row["way"], f"{row['step_ms']:.2f} ms", f"{row['call_ms']:.1f} ms") for row in found[model]]
    if place.rank == 0:
        options.output.parent.mkdir(parents=True, exist_ok=True)
        options.output.write_text(json.dumps(found, indent=1) + "\n")
        sys.stdout.write(align(lines) + "\n")


if __name__ == "__main__":
    main()
