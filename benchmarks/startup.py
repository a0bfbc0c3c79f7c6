"""What it takes until ranks are ready: `python -m benchmarks.startup`.

A fresh process a run, of each model in turns, makes one engine after another: for the first one the fork server
imports, for later ones it has done so. An engine's memory is that of its ranks and their server, shared pages
counted once.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from statistics import median

from hybridiff.utils.tables import align

ENGINES = 2
"""Engines that a process makes."""
COLUMNS = ("import", *(f"engine {number + 1}" for number in range(ENGINES)), "memory")


def run(model: str, ranks: int, begun: float) -> dict[str, float]:
    """Seconds of one process until it could make an engine and until each one's ranks were ready; memory in MB.

    Args:
        model: See `Engine`.
        ranks: Its devices.
        begun: When the process was started, by `time.time`.
    """
    from hybridiff import Engine, ParallelConfig

    found = {"import": time.time() - begun}
    for number in range(ENGINES):
        start = time.perf_counter()
        with Engine(model, ranks, ParallelConfig(strategy="cfg"), device="auto") as engine:
            found[f"engine {number + 1}"] = time.perf_counter() - start
            found["memory"] = sum(map(_memory, _family(engine.pids)))
    return found


def _family(ranks: list[int]) -> set[int]:
    """Ranks, and the server that forked them if there is one."""
    parents = {int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1]) for pid in ranks}
    return set(ranks) | (parents - {os.getpid()})


def _memory(pid: int) -> float:
    """Proportional set size of a process in MB."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith("Pss:")) / 1024


def main(arguments: list[str] | None = None) -> None:
    """Run the benchmark from the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.startup", description=(__doc__ or "").split(":")[0])
    parser.add_argument("--models", nargs="+", default=["tiny-sdxl", "tiny-sd3"])
    parser.add_argument("--ranks", type=int, default=2, help="(default 2)")
    parser.add_argument("--repeats", type=int, default=5, help="(default 5)")
    parser.add_argument("--begun", type=float, help=argparse.SUPPRESS)  # in the process of one run
    options = parser.parse_args(arguments)
    if options.begun is not None:
        sys.stdout.write(json.dumps(run(options.models[0], options.ranks, options.begun)) + "\n")
        return
    runs: dict[str, list[dict[str, float]]] = {model: [] for model in options.models}
    for _ in range(options.repeats):
        for model in options.models:
            command = [sys.executable, "-m", "benchmarks.startup", "--models", model, "--ranks", str(options.ranks)]
            done = subprocess.run([*command, "--begun", str(time.time())], check=True, stdout=subprocess.PIPE)
            runs[model].append(json.loads(done.stdout.splitlines()[-1]))
    lines = [("model", *COLUMNS)]
    for model, found in runs.items():
        medians = [median(one[column] for one in found) for column in COLUMNS]
        lines.append((model, *(f"{seconds:.2f} s" for seconds in medians[:-1]), f"{medians[-1]:.0f} MB"))
    sys.stdout.write(align(lines) + "\n")


if __name__ == "__main__":
    main()
