"""diffusers' caches beside guided switching: `python -m benchmarks.caches --model tiny-sd3 --limit 2`.

Writes a study as `hybridiff simulate` does: rows, chart and page. Stopped at any time, it goes on where it was.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from hybridiff.config import ParallelConfig
from hybridiff.evaluation.frontier.chart import frontier_figure
from hybridiff.evaluation.frontier.grid import list_settings
from hybridiff.evaluation.frontier.page import format_markdown, format_study
from hybridiff.evaluation.frontier.settings import Setting
from hybridiff.evaluation.frontier.study import Study, run_study
from hybridiff.evaluation.machine import versions
from hybridiff.evaluation.simulation import Splits
from hybridiff.evaluation.workload import Workload, describe_prompts, seeded, take_prompts

from .cached_pipeline import Cache, CachedPipeline


@dataclass(frozen=True, kw_only=True)
class CacheSetting(Setting):
    """Condition-based partitioning with one of diffusers' caches on each branch.

    Attributes:
        cache: Which.
    """

    cache: Cache

    @classmethod
    def make(cls, cache: Cache, amount: str, suffix: str = "") -> CacheSetting:
        """A cache under its name: `first-block, threshold 0.1`."""
        return cls("cache", f"{cache.kind}, {amount} {cache.amount:g}{suffix}", ParallelConfig("cfg"), cache=cache)

    @property
    def is_adaptive(self) -> bool:
        return self.cache.is_adaptive

    def describe(self, pipe: Any, steps: int) -> dict[str, Any]:
        return super().describe(pipe, steps) | {"config": {"cache": asdict(self.cache)}}

    def attach(self, pipe: Any, call: dict[str, Any], splits: Splits | None) -> CachedPipeline:
        return CachedPipeline(pipe, self.cache, call)


def list_caches(pipe: Any) -> list[Setting]:
    """The caches that a pipeline's network can have."""
    settings = [
        CacheSetting.make(Cache(kind, amount), word)
        for kind, word, amounts in (
            ("first-block", "threshold", (0.03, 0.06, 0.1, 0.2, 0.3, 0.5)),
            ("mag", "threshold", (0.005, 0.01, 0.02, 0.04, 0.08)),
            ("taylorseer", "1 of", (2, 3, 4, 5)),
            ("pyramid", "1 of", (2, 3)),
        )
        for amount in amounts
    ]
    settings.append(CacheSetting.make(Cache("taylorseer", 3, order=2), "1 of", ", order 2"))
    return [setting for setting in settings if setting.cache.fits(pipe)]


def compare(
    target: Path,
    workload: Workload,
    limit: int,
    batch: int = 1,
    fresh: bool = False,
    on_progress: Callable[[str, int, int], None] = lambda what, done, total: None,
) -> Study:
    """Measure the caches and the qualities of `hybrid`, and write rows, chart and page.

    Args:
        target: The file of rows (.json); chart and page lie beside it.
        workload: The model and how it is called.
        limit: Number of captions.
        batch: Prompts at once, where the schedule does not depend on them.
        fresh: Start over where the file is there already.
        on_progress: See `study.run_study`.
    """
    prompts = seeded(take_prompts(workload.model, None, "evaluation", (limit,)))
    facts = workload.facts() | {"prompts": describe_prompts(prompts)}
    made_with = {"command": " ".join(["python -m benchmarks.caches", *sys.argv[1:]]), **versions()}
    study = Study.open(target, facts, made_with, fresh)
    settings = [*list_caches(workload.pipe), *list_settings(["quality"], workload.steps)]
    run_study(study, workload.pipe, prompts, settings, workload.call, on_progress=on_progress, batch=batch)
    frontier_figure(study.to_dict()).savefig(target.with_suffix(".png"))
    target.with_suffix(".md").write_text(format_markdown(study), encoding="utf-8")
    return study


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the benchmark from the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.caches", description=(__doc__ or "").split(":")[0])
    parser.add_argument("--model", default="tiny-sd3", help="an embedded model (default tiny-sd3)")
    parser.add_argument("--limit", type=int, default=16, help="number of captions (default 16)")
    parser.add_argument("--num-inference-steps", type=int, default=50, help="(default 50)")
    parser.add_argument("--max-sequence-length", type=int, help="text tokens, SD3 only")
    parser.add_argument("--batch", type=int, default=1, help="prompts at once where schedules allow it (default 1)")
    parser.add_argument("--device", choices=("auto", "cuda", "cpu"), default="auto", help="(default auto)")
    parser.add_argument("--output", type=Path, default=Path("out/caches.json"), help="(default out/caches.json)")
    parser.add_argument("--fresh", action="store_true", help="start over where the output is there already")
    options = parser.parse_args(arguments)
    names = ("num_inference_steps", "max_sequence_length")
    call = {name: getattr(options, name) for name in names if getattr(options, name) is not None}
    workload = Workload.load(options.model, call, options.device)
    options.output.parent.mkdir(parents=True, exist_ok=True)
    study = compare(options.output, workload, options.limit, options.batch, options.fresh, _tell)
    sys.stdout.write(f"{format_study(study)}\n")


def _tell(what: str, done: int, total: int) -> None:
    sys.stderr.write(f"\r{done}/{total} {what:<12}" + "\n" * (done == total))


if __name__ == "__main__":
    main()
