"""A study as a table: aligned text for the terminal, Markdown for a file."""

from __future__ import annotations

from collections.abc import Sequence

from ...numerics.interpolation import interpolate
from ...report.speedup import evaluated_steps
from ...utils.tables import align, markdown_table
from ..metrics import MOST_DECIBELS
from ..tables import Column, Row, said_of, tabulate
from .beside import beside_tolerances
from .rows import upper_envelope
from .solvers import least_evaluations, solver_lines
from .study import Study

SPEEDS = (2.1, 2.5, 3.0, 3.5, 4.0, 4.5, 5.0, 6.0, 7.0)
"""Ideal speed-ups at which methods are compared."""

_NEAR = 0.05
"""A setting that is slower or faster by no more than this stands for a speed too."""

EVALUATIONS = (8, 10, 12, 14, 17, 20, 24, 28, 34, 40, 50)
"""Numbers of evaluations at which solvers are compared."""

_EXPLANATION = """\
Ideal speed-up and PSNR (dB, at most 100 an image) against one device; worst tenth: mean PSNR of the worst tenth of the
prompts; full steps: fewest-median-most over the prompts; right: share of captions whose image is right."""

_CONVERGED = "Converged: PSNR against the image that {scheduler} makes in {converged_steps} steps; its worst tenth.\n"

_PROMISES = """\
What was promised, what runs estimated of themselves, and what is true, in dB; off: mean of the difference of these two.
"""

_BESIDE = f"""\
Ideal speed-up beside that of one tolerance for all images (`cached`) where both keep the same, along straight lines
between tolerances and all steps full; "-" where a promise keeps less than any of them. *As calibrated*: the mean by
which tolerances are calibrated, in which an image counts for {MOST_DECIBELS:g} dB at most, as those that are nearly
untouched would outweigh all others.
"""

_SOLVERS = """\
Every solver alone, with fewer steps, and `hybrid` on it, at equal evaluations of both branches: PSNR in dB at the best
settings; between settings along straight lines.
"""


def format_study(study: Study) -> str:
    """The rows as text with aligned columns, by method and speed, and the notes of their runs."""
    said = [f"note: {note}" for note in said_of(study.rows, "method")]
    return "\n".join([align(_all_settings(study), words=2), *said])


def format_markdown(study: Study) -> str:
    """The same as a page of Markdown, with what was run and how."""
    run, right = study.run, (study.reference or {}).get("right")
    said = [f"- {note}." for note in said_of(study.rows, "method")]
    head = run["model"], f"{run['num_inference_steps']} steps", run["scheduler"], run["dtype"]
    return "\n".join(
        [
            f"# {', '.join(head)}, {len(run['prompts'])} prompts\n",
            _EXPLANATION + ("" if right is None else f"\nOn one device {right:.0%} are right."),
            _CONVERGED.format(**run) if "converged_steps" in run else "",
            f"    {study.made_with.get('command', '')}\n",
            "## At equal speed\n",
            "PSNR in dB of each method at its best settings; between settings along straight lines.\n",
            markdown_table([("method", *(f"{speed:g}x" for speed in SPEEDS)), *_at_equal_speed(study.rows)], words=1),
            *_promises(study.rows),
            *_solvers(study),
            "\n## All settings\n",
            markdown_table(_all_settings(study), words=2),
            "\n".join(["", *said, ""]) if said else "",
        ]
    )


def _all_settings(study: Study) -> list[tuple[str, ...]]:
    return tabulate(sorted(study.rows, key=lambda row: (row["method"], row["ideal_speedup"] or 0.0)), _COLUMNS)


def _at_equal_speed(rows: Sequence[Row]) -> list[tuple[str, ...]]:
    """For each method its PSNR at `SPEEDS`, as far as its settings reach."""
    found = []
    for method in sorted({row["method"] for row in rows}):
        own = [row for row in rows if row["method"] == method and row["config"].get("devices") != 1]
        best = upper_envelope((row["ideal_speedup"], row["psnr"]) for row in own if row["ideal_speedup"])
        found.append((method, *(_at(best, speed, _NEAR) for speed in SPEEDS)))
    return found


def _promises(rows: Sequence[Row]) -> list[str]:
    """A section on what was promised of the reference's own images."""
    promised = [row for row in rows if "estimate_error" in row and "fidelity" in row["config"]]
    if not promised:
        return []
    lines = tabulate(sorted(promised, key=lambda row: row["ideal_speedup"]), _PROMISED)
    beside = beside_tolerances(rows)
    compared = ["", _BESIDE, markdown_table(beside, words=0)] if beside else []
    return ["\n## Promises\n", _PROMISES, markdown_table(lines, words=0), *compared]


def _solvers(study: Study) -> list[str]:
    """A section on solvers beside each other."""
    lines = solver_lines(study.to_dict())
    if not lines:
        return []
    section = ["\n## Solvers\n", f"![Fidelity against evaluations]({study.path.stem}-solvers.png)\n", _SOLVERS]
    for fidelity, what in (("psnr_converged", "the converged image"), ("psnr", "the full-step image")):
        best = {name: least_evaluations(rows, fidelity) for name, rows in lines.items()}
        head = ("evaluations", *(f"{number}" for number in EVALUATIONS if number <= study.run["num_inference_steps"]))
        table = [(name, *(_at(points, float(n)) for n in head[1:])) for name, points in best.items() if points]
        if table:
            section += [f"Against {what}:\n", markdown_table([head, *table]), ""]
    return section[:-1]


def _at(points: Sequence[tuple[float, float]], place: float, near: float = 0.0) -> str:
    """The value between points; empty where they do not reach as far."""
    is_reached = points and points[0][0] - near <= place <= points[-1][0] + near
    return f"{interpolate(points, place):.1f}" if is_reached else ""


def _full_steps(row: Row) -> str:
    """How many steps were full, or ahead: `17`, or over the prompts `14-17-22` (fewest, median, most)."""
    spread = row.get("full_steps")
    if spread is None:
        return str(evaluated_steps(next(iter(row["schedules"]))))
    if spread["min"] == spread["max"]:
        return str(spread["min"])
    return f"{spread['min']}-{spread['median']:g}-{spread['max']}"


_COLUMNS = (
    Column("method", "method", stays=True),
    Column("setting", "label", stays=True),
    Column("speed-up", "ideal_speedup", "{:.2f}x", stays=True),
    Column("estimated", "estimated", "{:.1f} dB"),
    Column("PSNR", "psnr", "{:.1f} dB", stays=True),
    Column("worst tenth", "psnr_worst_tenth", "{:.1f} dB", stays=True),
    Column("converged", "psnr_converged", "{:.1f} dB"),
    Column("its worst", "psnr_converged_worst_tenth", "{:.1f} dB"),
    Column("SSIM", "ssim", "{:.4f}", stays=True),
    Column("right", "right", "{:.0%}", stays=True),
    Column("full steps", "schedules", _full_steps, stays=True),
)

_PROMISED = (
    Column("promised", "config", lambda row: f"{row['config']['fidelity']:g}"),
    Column("estimated", "estimated", "{:.1f}"),
    Column("true", "psnr", "{:.1f}"),
    Column("worst tenth", "psnr_worst_tenth", "{:.1f}"),
    Column("off", "estimate_error", "{:.1f}"),
    Column("speed-up", "ideal_speedup", "{:.2f}x"),
    Column("full steps", "schedules", _full_steps),
)
