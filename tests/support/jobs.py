"""What ranks do in the tests: functions that `run_ranks` calls on every rank."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist

from hybridiff import ParallelConfig, RankError, parallelize
from support.pipelines import build, generate
from support.ranks import run_ranks


@dataclass
class Generated:
    """Latents and the report of the run that generated them."""

    latents: torch.Tensor
    report: dict[str, Any]

    @property
    def kinds(self) -> str:
        """Of the steps, one letter each."""
        return "".join(step["kind"][0] for step in self.report["steps"])


@dataclass
class Outcome:
    """How a call ended on a rank: with a value, or with an error of some type."""

    value: Any = None
    error: str | None = None
    message: str = ""
    seconds: float = 0.0


def generate_parallel(
    name: str,
    changes: dict[str, Any],
    scheduler: str | None = None,
    runs: int = 1,
    dtype: torch.dtype = torch.float32,
    **config: Any,
) -> list[Generated]:
    """Generate several times in turn with one parallel pipeline, with a fresh generator each time."""
    generated = []
    with parallelize(build(name, scheduler).to(dtype), ParallelConfig(outputs="all", **config)) as parallel:
        for _ in range(runs):
            latents = generate(parallel, name, **changes)
            assert parallel.report is not None
            generated.append(Generated(latents, parallel.report.to_dict()))
    return generated


def on_ranks(name: str, changes: dict[str, Any], config: dict[str, Any]) -> list[Generated]:
    """`generate_parallel` with its keyword arguments in a dict."""
    return generate_parallel(name, changes, **config)


def attempt(action: Callable[[], Any]) -> Outcome:
    """Do something that may fail."""
    started = time.monotonic()
    try:
        return Outcome(value=action(), seconds=time.monotonic() - started)
    except Exception as error:
        name = "RankError" if isinstance(error, RankError) else type(error).__name__
        return Outcome(error=name, message=str(error), seconds=time.monotonic() - started)


def rank() -> int:
    """This rank."""
    return dist.get_rank()


def generated_on_ranks(
    ranks: int, name: str, changes: dict[str, Any], config: dict[str, Any], runs: int = 2
) -> Generated:
    """What ranks generate in some runs, which must be the same in all of them and on every rank."""
    results = run_ranks(on_ranks, ranks, name, changes, config | {"runs": runs})
    first = results[0][0]
    for ranks_runs in results:
        for generated in ranks_runs:
            assert torch.equal(generated.latents, first.latents)
            assert told_alike(generated) == told_alike(first)
    return first  # type: ignore[no-any-return]


def told_alike(generated: Generated) -> Any:
    """What reports must agree on: everything but times, and what the first step of a first run costs."""
    return told_in(generated.report)


def told_in(report: dict[str, Any]) -> Any:
    """The same of a report as plain data."""
    told = ("index", "phase", "kind", "discrepancy", "drift")
    steps = [{key: step[key] for key in told} for step in report["steps"]]
    return steps, report["tau1"], report["tau2"], report["stages"].get("point"), report["notes"]
