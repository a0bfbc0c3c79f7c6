"""The paper's tables, redrawn with the embedded models: `python -m benchmarks.paper --table 1`.

Writes `paper-1.json` and the page `paper-1.md`. Table 1 compares methods on two devices, table 2 on four; table 4 is
the ablation of the number of pipelined steps. `--only tiny-sdxl/asyncdiff` measures a method of one model anew, and
keeps the file's other rows.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from hybridiff.evaluation.frontier.generation import generate_references
from hybridiff.evaluation.machine import describe_machine
from hybridiff.evaluation.workload import Workload, take_prompts

from .methods import BOTH, TABLES, Method, methods_of
from .page import format_page, format_tables
from .rows import Row, find_best, measure
from .timing import measure_seconds

CALLS: dict[str, dict[str, Any]] = {"tiny-sdxl": {}, "tiny-sd3": {"max_sequence_length": 16}}
TIMED_PROMPTS = 2


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the benchmark from the command line."""
    options = _parse(arguments)
    given = sys.argv[1:] if arguments is None else arguments
    target = options.output / f"paper-{options.table}.json"
    content: dict[str, Any] = {
        "command": " ".join(["python -m benchmarks.paper", *given]),
        "table": options.table,
        "limit": options.limit,
        "steps": options.num_inference_steps,
        "machine": describe_machine("cpu"),
        "repeats": options.repeats,
        "rows": [],
        "timed": {},
    }
    if options.only:
        again = dict.fromkeys(options.only, content["machine"]["date"])
        content = json.loads(target.read_text())
        content["again"] = content.get("again", {}) | again
    for model in BOTH:
        methods = [m for m in methods_of(content["table"], content["steps"]) if _is_asked_for(model, m, options.only)]
        if methods:
            _enter(content, model, *_measure(model, methods, content, options.measured))
    options.output.mkdir(parents=True, exist_ok=True)
    target.write_text(json.dumps(content, indent=1) + "\n")
    target.with_suffix(".md").write_text(format_page(content))
    sys.stdout.write("\n\n".join(format_tables(content).values()) + "\n")


def _is_asked_for(model: str, method: Method, only: Sequence[str]) -> bool:
    return not only or f"{model}/{method.key}" in only


def _measure(
    model: str, methods: Sequence[Method], content: dict[str, Any], is_timed: bool
) -> tuple[list[Row], dict[str, dict[str, float]]]:
    """All rows of a model, and the seconds of the best ones where they are asked for."""
    workload = Workload.load(model, CALLS[model] | {"num_inference_steps": content["steps"]}, device="cpu")
    prompts = take_prompts(model, None, "evaluation", (content["limit"],))
    references = list(generate_references(workload.pipe, prompts, workload.call))
    rows = list(measure(workload, methods, references, lambda setting: _tell(model, setting)))
    if not is_timed:
        return rows, {}
    timed = [reference.prompt for reference in references[:TIMED_PROMPTS]]
    repeats = content["repeats"]
    return rows, measure_seconds(workload, find_best(rows), timed, repeats, lambda name, _: _tell(model, name))


def _enter(content: dict[str, Any], model: str, rows: Sequence[Row], timed: dict[str, dict[str, float]]) -> None:
    """Put what was measured in the place of what the file has of the same methods and settings, or behind it."""
    places = {_key(row): place for place, row in enumerate(content["rows"])}
    seconds = content["timed"].get(model, {})
    for row in map(asdict, rows):
        place = places.setdefault(_key(row), len(content["rows"]))
        if [_image(row)] != [_image(old) for old in content["rows"][place : place + 1]]:
            seconds.pop(row["setting"], None)  # of other images
        content["rows"][place : place + 1] = [row]
    settings = {row.setting for row in rows}  # serial is timed beside any of them
    seconds |= {setting: found for setting, found in timed.items() if setting in settings}
    content["timed"] |= {model: seconds} if seconds else {}


def _key(row: dict[str, Any]) -> tuple[Any, ...]:
    return tuple(row[name] for name in ("model", "method", "setting", "devices"))


def _image(row: dict[str, Any]) -> tuple[Any, ...]:
    return tuple(row[name] for name in ("psnr", "worst", "bytes"))


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.paper", description=(__doc__ or "").split(":")[0])
    parser.add_argument("--table", type=int, required=True, choices=TABLES, help="the paper's table")
    parser.add_argument("--limit", type=int, default=8, help="number of captions (default 8)")
    parser.add_argument("--num-inference-steps", type=int, default=50, help="(default 50)")
    parser.add_argument("--measured", action="store_true", help="table 1: also seconds on two CPU ranks, in turns")
    parser.add_argument("--repeats", type=int, default=3, help="timed generations of each (default 3)")
    parser.add_argument("--only", nargs="+", default=[], metavar="MODEL/METHOD", help="measured anew, others kept")
    parser.add_argument("--output", type=Path, default=Path("docs/results"), help="a folder (default docs/results)")
    options = parser.parse_args(arguments)
    if options.limit < 1:
        parser.error(f"--limit must be at least 1, got {options.limit}")
    if options.table == 2 and options.limit % 2:
        parser.error(f"--limit must be even, as two images share a batch on four devices; got {options.limit}")
    known = [f"{model}/{m.key}" for model in BOTH for m in methods_of(options.table, 50) if model in m.models]
    if unknown := [name for name in options.only if name not in known]:
        parser.error(f"--only takes {', '.join(known)}; got {unknown[0]}")
    if options.measured and options.table != 1:
        parser.error(f"--measured is for table 1, on two devices; got --table {options.table}")
    return options


def _tell(model: str, what: str) -> None:
    sys.stderr.write(f"{model} {what}\n")


if __name__ == "__main__":
    main()
